//! A file of low-rank adaptation (Hu et al. 2022) or one of its relatives.

use super::lora_delta::{Change, Factors, Failure};
use super::lora_names::{Module, Role, parse, parse_ia3, unsupported_kind};
use super::{LoraTarget, TextualInversion, adapter_file};
use crate::checkpoints::{StoredTensor, TensorFile};
use crate::config::LONGEST;
use crate::layers::{Computation, WeightDelta};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A LoRA file: for some weights of a UNet and its text encoders, factors of a change.
///
/// It may hold LoRA, LoCon, LoHa, LoKr, whole differences, each with or without DoRA, IA3, changes of biases and norms, and
/// embeddings of words that were trained with it, under the names that kohya's scripts, LyCORIS, OneTrainer, PEFT or diffusers
/// write, in safetensors or in a pickle of PyTorch's, of which nothing is run. What else it holds has no effect. Only
/// its header is read until a weight is asked for. What stands beside weights is then kept, in f32, so that a model is built
/// again with another strength, or in another request, without reading the file: shared by all who share the file.
#[derive(Debug)]
pub struct LoraFile {
    path: PathBuf,
    file: TensorFile,
    /// Where the tensors of each module are stored.
    modules: BTreeMap<Module, BTreeMap<Role, StoredTensor>>,
    /// The tensors of words' embeddings, by word, then by what the embedding's own file would call them.
    bundled: BTreeMap<String, BTreeMap<String, StoredTensor>>,
    /// The names of tensors that are no part of any of these, in their order.
    unknown: Vec<String>,
    settings: PeftSettings,
    /// What it was made for.
    family: Option<&'static str>,
    /// What has stood beside a weight, for the next time that the weight's model is built.
    deltas: Mutex<BTreeMap<Module, Laid>>,
}

/// A change as it was laid out, and for what.
#[derive(Debug, Clone)]
struct Laid {
    computation: Computation,
    delta: Arc<WeightDelta>,
}

/// What PEFT says beside the tensors, in files that diffusers saves: the component's settings by their names.
#[derive(Debug, Default)]
struct PeftSettings(BTreeMap<String, Value>);

impl PeftSettings {
    fn read(file: &TensorFile) -> Self {
        let stated = file.metadata("lora_adapter_metadata").filter(|text| text.len() <= LONGEST);
        let json = stated.and_then(|text| serde_json::from_str(text).ok());
        Self(json.unwrap_or_default())
    }

    fn alpha(&self, module: &Module) -> Option<f64> {
        let stated = |name: &str| self.0.get(&format!("{}.{name}", module.component));
        // As far as diffusers writes them, patterns are the ends of modules' names, in alphabetic order, of which the first that fits counts.
        let mut patterns = stated("alpha_pattern").and_then(Value::as_object).into_iter().flatten();
        let fits = |end: &str| {
            let before = module.name.strip_suffix(&end.replace('.', "_"));
            before.is_some_and(|before| before.is_empty() || before.ends_with('_'))
        };
        let own = patterns.find(|(name, _)| fits(name)).map(|(_, alpha)| alpha);
        own.or_else(|| stated("lora_alpha")).and_then(Value::as_f64)
    }

    fn by_root_of_rank(&self, component: &str) -> bool {
        self.0.get(&format!("{component}.use_rslora")).and_then(Value::as_bool).unwrap_or(false)
    }
}

impl LoraFile {
    /// Opens a file for a model.
    ///
    /// # Errors
    /// If it is of no form that is read, or holds nothing that is used; the message names the first tensor.
    pub fn open(path: &Path, target: &LoraTarget) -> Result<Self> {
        let file = adapter_file::open("LoRA", path)?;
        if target.components.is_empty() {
            let fix = "models of this family take none; leave it away";
            return Err(Error::unusable(ErrorKind::Model, "the LoRA", path.display(), fix));
        }
        let mut tensors = file.tensors();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let names: BTreeSet<String> = tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let mut modules: BTreeMap<Module, BTreeMap<Role, StoredTensor>> = BTreeMap::new();
        let (mut bundled, mut unknown) = (BTreeMap::<String, BTreeMap<_, _>>::new(), Vec::new());
        for tensor in tensors {
            if let Some((word, part)) = bundled_part(&tensor.name) {
                bundled.entry(word.into()).or_default().insert(part.into(), tensor);
                continue;
            }
            let ia3 = || parse_ia3(&tensor.name, |name| names.contains(name), target);
            let Some((module, role)) = parse(&tensor.name, target).or_else(ia3) else {
                unknown.push(tensor.name);
                continue;
            };
            let name = tensor.name.clone();
            if let Some(StoredTensor { name: other, .. }) = modules.entry(module).or_default().insert(role, tensor) {
                let reason = format!("{name} and {other} are the same part of the same weight; keep one");
                return Err(Error::malformed(ErrorKind::Model, "LoRA file", path, reason));
            }
        }
        // What an alpha alone was to multiply is among the unknown.
        let lone = |parts: &BTreeMap<Role, StoredTensor>| parts.keys().all(|role| *role == Role::Alpha);
        let alphas = modules.values().filter(|parts| lone(parts)).map(|parts| first_name(parts).to_owned());
        if unknown.is_empty() {
            unknown.extend(alphas);
        }
        modules.retain(|_, parts| !lone(parts));
        if modules.is_empty() && bundled.is_empty() {
            let telling = unknown.iter().find(|name| unsupported_kind(name).is_some()).or(unknown.first());
            return Err(match telling {
                Some(name) => no_lora(path, name),
                None => Error::malformed(ErrorKind::Model, "LoRA file", path, "it holds no tensor; get it again"),
            });
        }
        let settings = PeftSettings::read(&file);
        let looks_at_text = modules.iter().find(|(module, _)| module.name.ends_with("attn2_to_k"));
        let text_width = looks_at_text.and_then(|(_, tensors)| tensors.get(&Role::Down)?.shape.get(1));
        let family = text_width.and_then(|&width| target.family(width));
        Ok(Self { path: path.into(), file, modules, bundled, unknown, settings, family, deltas: Mutex::default() })
    }

    /// The model family that it was made for, as far as the width of the text in its cross-attention tells.
    pub fn family(&self) -> Option<&'static str> {
        self.family
    }

    fn factors(&self, module: &Module, parts: &BTreeMap<Role, StoredTensor>) -> Result<Factors> {
        let mut factors = Factors {
            alpha: self.settings.alpha(module),
            by_root_of_rank: self.settings.by_root_of_rank(&module.component),
            ..Factors::default()
        };
        for (&role, stored) in parts {
            match role {
                Role::Alpha => factors.alpha = Some(self.file.scalar(stored)?),
                Role::OnInput => factors.on_input = self.file.scalar(stored)? != 0.0,
                _ => {
                    let tensor = self.file.read(stored, DType::F32, &Device::Cpu)?;
                    let tensor =
                        tensor.ok_or_else(|| self.malformed(&stored.name, "has values that are not finite"))?;
                    factors.tensors.insert(role, tensor);
                }
            }
        }
        Ok(factors)
    }

    /// Whether it changes a weight.
    pub(super) fn changes(&self, module: &Module) -> bool {
        self.modules.contains_key(module)
    }

    /// Whether it changes a weight of a component.
    pub(super) fn changes_component(&self, component: &str) -> bool {
        self.modules.keys().any(|module| module.component == component)
    }

    /// The embeddings of words that were trained with it.
    ///
    /// # Errors
    /// If one is of no form that is read.
    pub(super) fn embeddings(&self) -> Result<Vec<TextualInversion>> {
        let read = |(word, parts): (&String, &BTreeMap<String, StoredTensor>)| {
            TextualInversion::bundled(&self.file, word, parts)
        };
        self.bundled.iter().map(read).collect()
    }

    /// What has no effect on a model that is `family` and had use for the `used` of all modules; nothing if all has.
    ///
    /// # Errors
    /// If nothing had an effect.
    pub(super) fn unused(&self, used: &BTreeSet<Module>, family: &str) -> Result<Option<String>> {
        let unused = || self.modules.iter().filter(|(module, _)| !used.contains(module));
        let first = unused().map(|(_, tensors)| first_name(tensors)).min();
        let mut reasons = Vec::new();
        if let Some(first) = first {
            let made_for = self.family.map_or(" for another one".into(), |family| format!(" for {family}"));
            reasons.push(format!(
                "{} of its {} weights are not in this model, which is {family}: first {first}; take a LoRA for this model \
                 (this one is{made_for})",
                unused().count(),
                self.modules.len(),
            ));
            if unused().count() == self.modules.len() && self.bundled.is_empty() {
                return Err(Error::malformed(ErrorKind::Model, "LoRA file", &self.path, reasons.concat()));
            }
        }
        let mut unknown: BTreeMap<Option<&str>, Vec<&str>> = BTreeMap::new();
        for name in &self.unknown {
            unknown.entry(unsupported_kind(name)).or_default().push(name);
        }
        reasons.extend(unknown.into_iter().map(|(kind, names)| {
            let what = kind.map_or("no part of a LoRA".into(), |kind| format!("{kind}, which is not supported"));
            format!("{} of its tensors are {what}: first {}", names.len(), names[0])
        }));
        let warning = format!("a part of the LoRA {} has no effect: {}", self.path.display(), reasons.join("; "));
        Ok((!reasons.is_empty()).then_some(warning))
    }

    /// A module's weight with this file's change of it: see [`Factors::merge`].
    pub(super) fn merge(&self, module: &Module, sum: &Tensor, base: &Tensor, weight: f64) -> Result<Tensor> {
        let Some(tensors) = self.modules.get(module) else { return Ok(sum.clone()) };
        let merged = self.factors(module, tensors)?.merge(sum, base, weight);
        merged.map_err(|failure| self.explained(failure, tensors, base.dims()))
    }

    /// This file's change of a module's weight of `shape`, to stand beside it.
    pub(super) fn delta(
        &self,
        module: &Module,
        shape: &[usize],
        computation: Computation,
        device: &Device,
    ) -> Result<Option<Arc<WeightDelta>>> {
        let Some(tensors) = self.modules.get(module) else { return Ok(None) };
        // Not under the lock: laying out waits for other threads, and whoever comes second lays the same out again.
        let laid = self.deltas.lock().unwrap_or_else(PoisonError::into_inner).get(module).cloned();
        if let Some(Laid { computation: of, delta }) = laid
            && of == computation
            && delta.fits(shape)
            && delta.device().same_device(device)
        {
            return Ok(Some(delta));
        }
        let change = self.factors(module, tensors)?.change(shape);
        let delta = match change.map_err(|failure| self.explained(failure, tensors, shape))? {
            Change::LowRank { down, up } => {
                WeightDelta::low_rank(&down.to_device(device)?, &up.to_device(device)?, shape, computation)?
            }
            Change::Full(delta) => WeightDelta::full(&delta.to_device(device)?, computation)?,
        };
        let delta = Arc::new(delta);
        let laid = Laid { computation, delta: delta.clone() };
        self.deltas.lock().unwrap_or_else(PoisonError::into_inner).insert(module.clone(), laid);
        Ok(Some(delta))
    }

    fn explained(&self, failure: Failure, tensors: &BTreeMap<Role, StoredTensor>, shape: &[usize]) -> Error {
        let named = |role: Role| tensors.get(&role).map(|stored| stored.name.clone());
        match failure {
            Failure::Tensor(error) => error.into(),
            Failure::OnlyMerged(role) => {
                let name = named(role).unwrap_or_else(|| first_name(tensors).into());
                let reason = "belongs to a DoRA or IA3, which rescale whole weights; it cannot stand beside them: merge it \
                              while the model is loaded";
                self.malformed(&name, reason)
            }
            Failure::Part(role, reason) => {
                let name = named(role).unwrap_or_else(|| format!("the factor {role:?} of {}", first_name(tensors)));
                let made_for = self.family().map(|family| format!(", it was made for {family}")).unwrap_or_default();
                self.malformed(&name, &format!("{reason} for a weight {shape:?}; take a LoRA for this model{made_for}"))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn malformed(&self, name: &str, reason: &str) -> Error {
        Error::malformed(ErrorKind::Model, "LoRA file", &self.path, format!("{name} {reason}"))
    }
}

/// What is wrong with a file that has no part of a LoRA, by the first of its tensors.
fn no_lora(path: &Path, name: &str) -> Error {
    let reason = match unsupported_kind(name) {
        Some(kind) => format!("{name} is {kind}, which is not supported; LoRA, LoCon, LoHa, LoKr, DoRA and IA3 are"),
        None => format!("{name} is no part of a LoRA; a whole model belongs to `model`"),
    };
    Error::malformed(ErrorKind::Model, "LoRA file", path, reason)
}

/// The word of a bundled embedding's tensor, and what the tensor would be called in a file of its own.
fn bundled_part(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("bundle_emb.")?;
    let parts = [("string_to_param.*", "*"), ("emb_params", "emb_params"), ("clip_l", "clip_l"), ("clip_g", "clip_g")];
    parts.into_iter().find_map(|(ending, part)| Some((rest.strip_suffix(ending)?.strip_suffix('.')?, part)))
}

fn first_name(tensors: &BTreeMap<Role, StoredTensor>) -> &str {
    tensors.values().next().map_or("", |stored| &stored.name)
}
