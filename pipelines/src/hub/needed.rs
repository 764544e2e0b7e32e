//! Which files of a repository a pipeline reads.

use super::cache::Snapshot;
use super::name::is_weights;
use super::{HubName, Model};
use crate::device::DTypeChoice;
use crate::model::Purpose;
use serde_json::Value;
use std::collections::BTreeSet;
use tweedie::checkpoints::{ComponentKind, ModelFiles, Precision, weight_file, weight_files};
use tweedie::families::{Component, Drawn, Families};
use tweedie::{DType, Device, Error, ErrorKind, Result};

/// What is wanted of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// What it is taken for.
    pub purpose: Purpose,
    /// Which variant of the weights to take, if there are several.
    pub precision: Precision,
    /// Whether the other variant in the cache does not do if the hub has this one.
    pub exact: bool,
}

impl Wanted {
    /// What a run in a number format takes: half-precision variants where the weights are held so.
    pub fn new(purpose: Purpose, dtype: DTypeChoice, device: &Device) -> Self {
        let half = dtype.of_any_model(device) == Some(DType::F16);
        let precision = if half { Precision::Half } else { Precision::Full };
        Self { purpose, precision, exact: dtype == DTypeChoice::F32 }
    }
}

impl Purpose {
    /// What messages call it.
    fn name(self) -> &'static str {
        match self {
            Self::Model | Self::Pixel => "checkpoint",
            Self::Autoencoder => "autoencoder",
            Self::Control => "control model",
            Self::Lora => "LoRA",
            Self::TextualInversion => "textual inversion",
        }
    }

    /// Whether it is one of the folders of a whole model, or all of them.
    fn is_in_layout(self, names: &BTreeSet<String>) -> bool {
        matches!(self, Self::Model | Self::Autoencoder | Self::Pixel) && names.contains(INDEX)
    }
}

const INDEX: &str = "model_index.json";

/// What is needed, by its paths in the repository.
pub(super) struct Needed {
    pub files: BTreeSet<String>,
    /// The one that is the whole model, if there is no folder layout.
    single: Option<String>,
    /// Whether that one is taken because there is no other: in the cache, others may only not have been fetched.
    pub only: bool,
}

impl Needed {
    /// Whether one file is taken, and the name of a repository with files of these `names` means that one.
    pub fn is_alone_in(&self, name: &HubName, purpose: Purpose, names: &BTreeSet<String>) -> bool {
        self.single.is_some() && lone_file(name, purpose, names).is_ok_and(|file| file == self.single)
    }

    /// The model, once all files are there.
    pub fn model(&self, name: &HubName, snapshot: &Snapshot) -> Model {
        match &self.single {
            Some(file) => Model::File { path: snapshot.folder().join(file), config: None },
            None => Model::Cached { name: name.to_string(), folder: snapshot.folder() },
        }
    }
}

/// What is needed of a repository with files of these names. `get` sees to it that a file is in the snapshot: some say
/// which others are needed.
pub(super) fn needed(
    name: &HubName,
    names: &BTreeSet<String>,
    snapshot: &Snapshot,
    wanted: Wanted,
    get: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Needed> {
    if let Some(single) = lone_file(name, wanted.purpose, names)? {
        let only = name.file().is_none() && !wanted.purpose.usual_files().contains(&single.as_str());
        return Ok(Needed { files: [single.clone()].into(), single: Some(single), only });
    }
    let mut search = Search { name, names, snapshot, wanted, get, files: BTreeSet::new() };
    if wanted.purpose.is_in_layout(names) {
        search.layout()?;
    } else {
        // The repository itself is the component's folder.
        search.files.insert("config.json".into());
        search.weights("")?;
    }
    Ok(Needed { files: search.files, single: None, only: false })
}

/// The one file of a repository that is meant, by its own name or because there is no folder.
fn lone_file(name: &HubName, purpose: Purpose, names: &BTreeSet<String>) -> Result<Option<String>> {
    let in_folder = purpose.is_in_layout(names)
        || matches!(purpose, Purpose::Autoencoder | Purpose::Control) && names.contains("config.json");
    match name.file() {
        None if in_folder => Ok(None),
        _ if purpose == Purpose::Pixel => {
            let fix = "a model in pixel space is a repository in diffusers layout; choose one, as owner/name";
            let value = if name.file().is_some() { "one file" } else { "without a model_index.json" };
            Err(Error::unusable(ErrorKind::Model, format!("the checkpoint {name}"), value, fix))
        }
        Some(file) => named_file(name, file, names).map(Some),
        None => single_file(name, purpose, names).map(Some),
    }
}

struct Search<'a> {
    name: &'a HubName,
    names: &'a BTreeSet<String>,
    snapshot: &'a Snapshot,
    wanted: Wanted,
    get: &'a mut dyn FnMut(&str) -> Result<()>,
    files: BTreeSet<String>,
}

impl Search<'_> {
    /// A model in diffusers layout.
    fn layout(&mut self) -> Result<()> {
        let index = self.index()?;
        let has = |name: &str| index[name][1].is_string();
        let purpose = self.wanted.purpose;
        let (drawn, kind) = match purpose {
            Purpose::Pixel => (Drawn::FromNoise, "in pixel space"),
            _ => (Drawn::FromText, "of Stable Diffusion 1.x, 2.x or XL"),
        };
        let families = Families::built_in();
        for Component { folder, .. } in families.required(drawn) {
            if !has(folder) {
                let class = index["_class_name"].as_str().unwrap_or("unknown");
                let fix = format!("it has no {folder}; take a model {kind}");
                return Err(Error::unusable(ErrorKind::Model, format!("the pipeline of {}", self.name), class, fix));
            }
        }
        let components: Vec<_> = families.components().into_iter().filter(|component| has(component.folder)).collect();
        for &Component { folder, kind, .. } in &components {
            if purpose != Purpose::Autoencoder || kind == ComponentKind::Autoencoder {
                self.must(&format!("{folder}/config.json"))?;
                self.weights(folder)?;
            }
        }
        if purpose == Purpose::Autoencoder {
            return Ok(());
        }
        self.must("scheduler/scheduler_config.json")?;
        self.may(&[INDEX, "defaults.json"]);
        let tokenizers = components.iter().filter_map(|component| component.tokenizer);
        for tokenizer in tokenizers.filter(|name| has(name)) {
            let at = |name: &str| format!("{tokenizer}/{name}");
            if self.names.contains(&at("vocab.json")) && self.names.contains(&at("merges.txt")) {
                self.may(&[&at("vocab.json"), &at("merges.txt")]);
            } else {
                self.must(&at("tokenizer.json"))?;
            }
            self.may(&[&at("tokenizer_config.json"), &at("special_tokens_map.json"), &at("words.txt")]);
        }
        Ok(())
    }

    fn index(&mut self) -> Result<Value> {
        (self.get)(INDEX)?;
        ModelFiles::Folder(self.snapshot.folder()).index()
    }

    fn must(&mut self, name: &str) -> Result<()> {
        if !self.names.contains(name) {
            let fix = "the repository is not a whole model in diffusers layout; choose another";
            return Err(Error::unusable(ErrorKind::Model, format!("the file {name} of {}", self.name), "missing", fix));
        }
        self.files.insert(name.into());
        Ok(())
    }

    fn may(&mut self, names: &[&str]) {
        self.files.extend(names.iter().filter(|name| self.names.contains(**name)).map(|name| (*name).to_owned()));
    }

    /// The files of a component's weights; "" is the repository itself.
    fn weights(&mut self, component: &str) -> Result<()> {
        let snapshot = self.snapshot.folder();
        // The loader's way to look for a component is by its folder's name.
        let (root, folder) = match component {
            "" => (snapshot.with_file_name(""), self.snapshot.commit()),
            _ => (snapshot, component),
        };
        let in_repository = |name: &str| match component {
            "" => name.strip_prefix(folder).and_then(|name| name.strip_prefix('/')).unwrap_or(name).to_owned(),
            _ => name.to_owned(),
        };
        let Wanted { precision, exact, .. } = self.wanted;
        let found = weight_file(folder, precision, |name| self.names.contains(&in_repository(name)));
        let Some(found) = found.filter(|name| !exact || !name.contains("fp16")) else {
            let fix = "the repository has them in no form that is read; choose another";
            return Err(Error::unusable(
                ErrorKind::Model,
                format!("the file of weights in {:?} of {}", component, self.name),
                "missing",
                fix,
            ));
        };
        let found = in_repository(&found);
        if !found.ends_with(".json") {
            self.files.insert(found);
            return Ok(());
        }
        (self.get)(&found)?;
        self.files.insert(found);
        let shards = weight_files(&ModelFiles::Folder(root), folder, precision)?;
        self.files.extend(shards.iter().map(|name| in_repository(name)));
        Ok(())
    }
}

/// The file that is meant alone.
fn named_file(name: &HubName, file: &str, names: &BTreeSet<String>) -> Result<String> {
    if names.contains(file) {
        return Ok(file.into());
    }
    let others: Vec<_> = names.iter().filter(|name| is_weights(name)).take(4).map(String::as_str).collect();
    let fix = match others[..] {
        [] => "it has no files of weights; check the name".into(),
        _ => format!("it has {}; check the spelling (capitals count)", others.join(", ")),
    };
    Err(Error::missing(format!("the file {file} of {}", name.id()), "missing", fix))
}

/// The one file of weights in a repository without folder layout: the one with the usual name, or else the only one;
/// safetensors before pickles, and those before GGUF, of which repositories have many of one model.
fn single_file(name: &HubName, purpose: Purpose, names: &BTreeSet<String>) -> Result<String> {
    if let Some(usual) = purpose.usual_files().iter().find(|usual| names.contains(**usual)) {
        return Ok((*usual).into());
    }
    let of_adapters = [Purpose::Lora, Purpose::TextualInversion].map(Purpose::usual_files).concat();
    let may_be_meant = |name: &&String| {
        let at_the_top = !name.contains(['/', '\\', ':']) && !name.starts_with('.');
        at_the_top && is_weights(name) && !of_adapters.contains(&name.as_str())
    };
    let rank = |name: &String| match () {
        () if name.ends_with(".safetensors") => 0,
        () if name.ends_with(".gguf") => 2,
        () => 1,
    };
    let first = names.iter().filter(may_be_meant).map(rank).min();
    let found: Vec<_> = names.iter().filter(may_be_meant).filter(|&name| Some(rank(name)) == first).collect();
    match found[..] {
        [file] => Ok(file.clone()),
        [] => {
            let fix = match purpose {
                Purpose::Model => {
                    "it has neither a model_index.json nor a checkpoint; choose the repository of a diffusion model"
                        .into()
                }
                _ => format!("there is no {} at its top; give a file's whole name, as owner/name/FILE", purpose.name()),
            };
            Err(Error::unusable(ErrorKind::Model, format!("the number of files of {name}"), names.len(), fix))
        }
        _ => {
            let list: Vec<_> = found.iter().take(4).map(|name| name.as_str()).collect();
            let fix = format!("name the one you want, as in {}/{}", name.id(), list[0]);
            Err(Error::invalid(format!("the {} of {name}", purpose.name()), format!("one of {}", list.join(", ")), fix))
        }
    }
}
