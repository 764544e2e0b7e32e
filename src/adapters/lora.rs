//! Low-rank adaptation (Hu et al. 2022) and its relatives, merged into weights while a model is built.

use super::lora_delta::{Factors, Failure};
use super::lora_names::{Module, Part, parse, unsupported_kind};
use crate::checkpoints::{ModelFiles, StoredTensor, TensorFile};
use crate::layers::WeightSource;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A LoRA file: for some weights of a UNet and its text encoders, factors of a change.
///
/// It may hold LoRA, LoCon, LoHa, LoKr, whole differences, each with or without DoRA, under the names that kohya's
/// scripts, LyCORIS, PEFT or diffusers write, in safetensors or in a pickle of PyTorch's, of which nothing is run. Only
/// its header is read until a weight is asked for.
#[derive(Debug)]
pub struct LoraFile {
    path: PathBuf,
    file: TensorFile,
    /// Where each part is stored.
    modules: BTreeMap<Module, BTreeMap<Part, StoredTensor>>,
    settings: Settings,
}

/// What PEFT says beside the tensors, in files that diffusers saves: the component's settings by their names.
#[derive(Debug, Default)]
struct Settings(BTreeMap<String, Value>);

impl Settings {
    fn read(file: &TensorFile) -> Self {
        let json = file.metadata("lora_adapter_metadata").and_then(|text| serde_json::from_str(text).ok());
        Self(json.unwrap_or_default())
    }

    fn alpha(&self, module: &Module) -> Option<f64> {
        let stated = |name: &str| self.0.get(&format!("{}.{name}", module.component));
        // Patterns name whole modules, as far as diffusers writes them.
        let pattern = stated("alpha_pattern").and_then(Value::as_object).into_iter().flatten();
        let mut own =
            pattern.filter(|(name, _)| module.name.ends_with(&name.replace('.', "_"))).map(|(_, alpha)| alpha);
        own.next_back().or_else(|| stated("lora_alpha")).and_then(Value::as_f64)
    }

    fn by_root_of_rank(&self, component: &str) -> bool {
        self.0.get(&format!("{component}.use_rslora")).and_then(Value::as_bool).unwrap_or(false)
    }
}

impl LoraFile {
    /// Opens a file. `layers` is the UNet's `layers_per_block`, by which the names of the original code are read.
    ///
    /// # Errors
    /// If it is of no form that is read, or holds what is not supported; the message names the first such tensor.
    pub fn open(path: &Path, layers: usize) -> Result<Self> {
        let file = open_tensors("LoRA", path)?;
        let mut modules: BTreeMap<Module, BTreeMap<Part, StoredTensor>> = BTreeMap::new();
        for tensor in file.tensors() {
            let Some((module, part)) = parse(&tensor.name, layers) else { return Err(unknown(path, &tensor.name)) };
            let name = tensor.name.clone();
            if let Some(StoredTensor { name: other, .. }) = modules.entry(module).or_default().insert(part, tensor) {
                let reason = format!("{name} and {other} are the same part of the same weight; keep one");
                return Err(Error::malformed("LoRA file", path, reason));
            }
        }
        if modules.is_empty() {
            return Err(Error::malformed("LoRA file", path, "it holds no tensor; get it again"));
        }
        let settings = Settings::read(&file);
        Ok(Self { path: path.into(), file, modules, settings })
    }

    /// The model family that it was made for, as far as the width of the text in its cross-attention tells.
    pub fn family(&self) -> Option<&'static str> {
        let down = self.modules.iter().find(|(module, _)| module.name.ends_with("attn2_to_k"))?.1.get(&Part::Down)?;
        match down.shape.get(1)? {
            768 => Some("Stable Diffusion 1.x"),
            1024 => Some("Stable Diffusion 2.x"),
            2048 => Some("Stable Diffusion XL"),
            _ => None,
        }
    }

    fn factors(&self, module: &Module, parts: &BTreeMap<Part, StoredTensor>) -> Result<Factors> {
        let mut factors = Factors {
            alpha: self.settings.alpha(module),
            by_root_of_rank: self.settings.by_root_of_rank(module.component),
            ..Factors::default()
        };
        for (&part, stored) in parts {
            if part == Part::Alpha {
                factors.alpha = Some(self.file.scalar(stored)?);
            } else {
                let tensor = self.file.read(stored, DType::F32, &Device::Cpu)?;
                let tensor = tensor.ok_or_else(|| self.malformed(&stored.name, "has values that are not finite"))?;
                factors.tensors.insert(part, tensor);
            }
        }
        Ok(factors)
    }

    /// A module's weight with this file's change of it: see [`Factors::merge`].
    fn merge(&self, module: &Module, sum: &Tensor, base: &Tensor, weight: f64) -> Result<Tensor> {
        let Some(parts) = self.modules.get(module) else { return Ok(sum.clone()) };
        self.factors(module, parts)?.merge(sum, base, weight).map_err(|failure| match failure {
            Failure::Tensor(error) => error.into(),
            Failure::Part(part, reason) => {
                let first = || parts.values().next().map_or("", |stored| stored.name.as_str());
                let missing = || format!("the factor {part:?} of {}", first());
                let name = parts.get(&part).map_or_else(missing, |stored| stored.name.clone());
                let made_for = self.family().map(|family| format!(", it was made for {family}")).unwrap_or_default();
                let shape = base.dims();
                self.malformed(&name, &format!("{reason} for a weight {shape:?}; take a LoRA for this model{made_for}"))
            }
        })
    }

    fn malformed(&self, name: &str, reason: &str) -> Error {
        Error::malformed("LoRA file", &self.path, format!("{name} {reason}"))
    }
}

/// Opens an adapter's file, known by its first bytes and not by its name.
pub(super) fn open_tensors(what: &str, path: &Path) -> Result<TensorFile> {
    let (Some(name), true) = (path.file_name().and_then(|name| name.to_str()), path.is_file()) else {
        let fix =
            if path.is_dir() { "it is a folder; give the file in it" } else { "there is no such file; give its path" };
        return Err(Error::invalid(format!("the {what}"), path.display(), fix));
    };
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    TensorFile::open(&ModelFiles::Folder(folder), name)
}

fn unknown(path: &Path, name: &str) -> Error {
    let reason = match unsupported_kind(name) {
        Some(kind) => format!("{name} is {kind}, which is not supported; LoRA, LoCon, LoHa, LoKr and DoRA are"),
        None => format!("{name} is no part of a LoRA; a whole model belongs to --model"),
    };
    Error::malformed("LoRA file", path, reason)
}

/// The LoRAs of a run, in the order in which they are merged. It matters for DoRA alone, which as in PEFT rescales what
/// was merged before it, by a factor that does not know of that.
#[derive(Debug, Default)]
pub struct Loras {
    files: Vec<(LoraFile, f64)>,
    used: RefCell<BTreeSet<Module>>,
    failure: RefCell<Option<Error>>,
}

impl Loras {
    /// Opens files, each with what its change is multiplied by. `layers` is the UNet's `layers_per_block`.
    ///
    /// # Errors
    /// If a file cannot be used, or a weight is not finite.
    pub fn open<'a>(files: impl IntoIterator<Item = (&'a Path, f64)>, layers: usize) -> Result<Self> {
        let open = |(path, weight): (&Path, f64)| {
            if !weight.is_finite() {
                let what = format!("the weight of the LoRA {}", path.display());
                return Err(Error::invalid(what, weight, "take a number; 1 is usual, 0 is none"));
            }
            Ok((LoraFile::open(path, layers)?, weight))
        };
        Ok(Self { files: files.into_iter().map(open).collect::<Result<_>>()?, ..Self::default() })
    }

    /// The weights of a component ("unet", "text_encoder", "text_encoder_2") with the changes in them.
    pub fn over<'a>(&'a self, component: &'a str, source: &'a dyn WeightSource) -> MergedWeights<'a> {
        MergedWeights { loras: self, component, source }
    }

    /// To be called when every component is built: whether each file was of use, and all of it.
    ///
    /// # Errors
    /// If a tensor did not fit, or belongs to a weight that the model, of this `family`, does not have.
    pub fn finish(self, family: &str) -> Result<()> {
        if let Some(error) = self.failure.into_inner() {
            return Err(error);
        }
        let used = self.used.into_inner();
        for (file, _) in &self.files {
            let unused: Vec<_> = file.modules.iter().filter(|(module, _)| !used.contains(module)).collect();
            let Some(first) = unused.first().and_then(|(_, parts)| parts.values().next()) else { continue };
            let first = &first.name;
            let made_for = file.family().map(|family| format!(" for {family}")).unwrap_or_default();
            let reason = format!(
                "{} of its {} weights are not in this model, which is {family}: first {first}; take a LoRA for this \
                 model (this one is{made_for})",
                unused.len(),
                file.modules.len(),
                made_for = if made_for.is_empty() { " for another one".into() } else { made_for },
            );
            return Err(Error::malformed("LoRA file", &file.path, reason));
        }
        Ok(())
    }
}

/// A component's weights with the changes of [`Loras`] in them.
///
/// It never fails for a LoRA: what does not fit is kept for [`Loras::finish`], so that the checkpoint can still say
/// what is wrong with itself.
pub struct MergedWeights<'a> {
    loras: &'a Loras,
    component: &'a str,
    source: &'a dyn WeightSource,
}

impl MergedWeights<'_> {
    fn merged(&self, module: &Module, stored: &Tensor) -> Result<Tensor> {
        let base = stored.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let mut sum = base.clone();
        for (file, weight) in &self.loras.files {
            sum = file.merge(module, &sum, &base, *weight)?;
        }
        // Rounded on the CPU, the sum would move pictures of full products; others round it anyway.
        let stays_f32 = stored.device().is_cpu();
        if stays_f32 { Ok(sum) } else { Ok(sum.to_dtype(stored.dtype())?.to_device(stored.device())?) }
    }
}

impl WeightSource for MergedWeights<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.source.tensor(name, shape)?;
        let Some(module) = Module::of_tensor(self.component, name).filter(|_| shape.len() >= 2) else {
            return Ok(stored);
        };
        if !self.loras.files.iter().any(|(file, _)| file.modules.contains_key(&module)) {
            return Ok(stored);
        }
        let merged = self.merged(&module, &stored);
        self.loras.used.borrow_mut().insert(module);
        merged.or_else(|error| {
            self.loras.failure.borrow_mut().get_or_insert(error);
            Ok(stored)
        })
    }

    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    fn device(&self) -> &Device {
        self.source.device()
    }
}
