//! The models of a server, by their names, each loaded once.

use super::failure::{Failure, FailureCode};
use crate::builder::Builder;
use crate::device::{DTypeChoice, DeviceChoice};
use crate::latent_diffusion::LatentDiffusion;
use crate::model::{Model, ModelInfo};
use crate::requests::text_to_image::TextToImageRequest;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tweedie::{Error, Result};

/// The folder of LoRAs in a folder of models.
const LORAS: &str = "loras";

/// Names of files and folders, and what has been loaded of them.
#[derive(Debug)]
pub struct Shelf {
    /// The first is what is taken where none is named.
    models: Vec<Entry>,
    loras: BTreeMap<String, PathBuf>,
    /// Least recently used first.
    loaded: Mutex<Vec<Loaded>>,
    /// One is loaded at a time.
    loading: Mutex<()>,
    options: ShelfOptions,
}

/// How models are loaded.
#[derive(Debug, Clone, Default)]
pub struct ShelfOptions {
    /// Where to compute.
    pub device: DeviceChoice,
    /// Number format of the weights.
    pub dtype: DTypeChoice,
    /// Bytes of the weights of all loaded models; without it what is free when a model is loaded bounds them.
    pub budget: Option<u64>,
}

/// A model by its name.
#[derive(Debug)]
struct Entry {
    name: String,
    model: Model,
    info: ModelInfo,
}

#[derive(Debug)]
struct Loaded {
    name: String,
    model: Arc<LatentDiffusion>,
    bytes: u64,
}

impl Entry {
    fn new(model: Model) -> Result<Self> {
        Ok(Self { name: model.name(), info: ModelInfo::read(&model)?, model })
    }

    /// Bytes of its weights as they are stored.
    fn bytes(&self) -> u64 {
        self.info.components.iter().map(|component| component.bytes as u64).sum()
    }
}

impl Shelf {
    /// Models that are named, and those in a folder: folders in diffusers' layout and checkpoint files in it, and LoRAs in its folder
    /// `loras`. Without any of both it is the embedded model. Headers are read, no weights.
    ///
    /// # Errors
    /// If a named model cannot be used, two have the same name, or the folder cannot be read. What is no model in the folder is
    /// passed over.
    pub fn new(named: Vec<Model>, folder: Option<&Path>, options: ShelfOptions) -> Result<Self> {
        let mut models = named.into_iter().map(Entry::new).collect::<Result<Vec<_>>>()?;
        let mut loras = BTreeMap::new();
        if let Some(folder) = folder {
            models.extend(
                files_of(folder)?.into_iter().filter_map(|path| Model::at(path, None).and_then(Entry::new).ok()),
            );
            let files = if folder.join(LORAS).is_dir() { files_of(&folder.join(LORAS))? } else { Vec::new() };
            loras.extend(
                files
                    .into_iter()
                    .filter(|path| path.is_file())
                    .filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path))),
            );
        }
        if models.is_empty() {
            models.push(Entry::new(Model::Embedded)?);
        }
        for (i, entry) in models.iter().enumerate() {
            if models[..i].iter().any(|other| other.name == entry.name) {
                let fix = "two have this name; rename the folder or file of one";
                return Err(Error::invalid("the name of a model", &entry.name, fix));
            }
        }
        Ok(Self { models, loras, loaded: Mutex::default(), loading: Mutex::default(), options })
    }

    /// The name of the model that is taken where none is named.
    pub fn default_name(&self) -> &str {
        self.models.first().map_or("", |entry| entry.name.as_str())
    }

    /// The names of all models.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.models.iter().map(|entry| entry.name.as_str())
    }

    /// The names of LoRAs.
    pub fn lora_names(&self) -> impl Iterator<Item = &str> {
        self.loras.keys().map(String::as_str)
    }

    /// The file of a LoRA.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn lora(&self, name: &str) -> Result<&Path, Failure> {
        self.loras.get(name).map(PathBuf::as_path).ok_or_else(|| {
            let known = listed(self.lora_names(), "there are none; put them into the folder loras of --models");
            Failure::field("loras", format!("`loras` has {name:?}, which is not in the server's list: {known}"))
        })
    }

    /// The name of a model that is there.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn check(&self, name: &str) -> Result<&str, Failure> {
        Ok(&self.entry(name)?.name)
    }

    fn entry(&self, name: &str) -> Result<&Entry, Failure> {
        self.models.iter().find(|entry| entry.name == name).ok_or_else(|| Failure {
            field: Some("model".into()),
            ..Failure::new(
                FailureCode::Missing,
                format!("`model` is {name:?}, which is not in the server's list: {}", listed(self.names(), "none")),
            )
        })
    }

    /// A model if it is loaded, which does not count as its use.
    pub fn loaded(&self, name: &str) -> Option<Arc<LatentDiffusion>> {
        self.lock().iter().find(|loaded| loaded.name == name).map(|loaded| loaded.model.clone())
    }

    /// A model, loaded if it is not yet; others go if there is no room beside it.
    ///
    /// # Errors
    /// If there is none of that name, or it cannot be loaded.
    pub fn get(&self, name: &str) -> Result<Arc<LatentDiffusion>, Failure> {
        let _alone = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let mut loaded = self.lock();
        if let Some(i) = loaded.iter().position(|loaded| loaded.name == name) {
            let used = loaded.remove(i);
            let model = used.model.clone();
            loaded.push(used);
            return Ok(model);
        }
        let entry = self.entry(name)?;
        let budget = self.options.budget.unwrap_or_else(|| free_for_models(&loaded));
        while !loaded.is_empty() && loaded.iter().map(|loaded| loaded.bytes).sum::<u64>() + entry.bytes() > budget {
            loaded.remove(0);
        }
        drop(loaded);
        let builder =
            Builder::default().model(entry.model.clone()).device(self.options.device).dtype(self.options.dtype);
        let model = Arc::new(builder.build()?);
        self.lock().push(Loaded { name: name.into(), model: model.clone(), bytes: entry.bytes() });
        Ok(model)
    }

    /// The number of models that are loaded.
    pub fn count_loaded(&self) -> usize {
        self.lock().len()
    }

    /// What there is to know of each model, as JSON.
    pub fn list(&self) -> Vec<Value> {
        self.models.iter().map(|entry| self.describe(entry)).collect()
    }

    fn describe(&self, entry: &Entry) -> Value {
        let loaded = self.loaded(&entry.name);
        // What it takes where nothing is said.
        let usual = loaded.as_ref().and_then(|model| model.settle(&TextToImageRequest::default()).ok());
        let (width, height) = entry.info.size.unzip();
        json!({
            "name": entry.name,
            "family": entry.info.family,
            "loaded": loaded.is_some(),
            "bytes": entry.bytes(),
            "width": usual.as_ref().map(|usual| usual.width).or(width),
            "height": usual.as_ref().map(|usual| usual.height).or(height),
            "factor": loaded.as_ref().map(|model| model.decode().latent_space().factor),
            "steps": usual.as_ref().map(|usual| usual.steps),
            "guidance_scale": usual.as_ref().map(|usual| usual.guidance_scale),
            "scheduler": usual.as_ref().map(|usual| usual.scheduler.name()),
            "words": entry.info.words,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Half of what is free and of what models have already: the rest is for the states of networks.
fn free_for_models(loaded: &[Loaded]) -> u64 {
    let had: u64 = loaded.iter().map(|loaded| loaded.bytes).sum();
    crate::memory::available().map_or(u64::MAX, |free| (free + had) / 2)
}

/// What is in a folder, in the order of names.
fn files_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    Ok(paths)
}

/// Names with commas between, or what is said where there are none.
fn listed<'a>(names: impl Iterator<Item = &'a str>, none: &str) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { none.into() } else { format!("known are {}", names.join(", ")) }
}
