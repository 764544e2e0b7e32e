//! The LoRAs of one model.

use super::lora_file::LoraFile;
use super::lora_names::Module;
use super::{AdaptedWeights, LoraTarget, MergedWeights, TextualInversion};
use crate::layers::{Adapter, Computation, WeightSource};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// LoRAs with their weights, in the order in which they are merged. It matters for DoRA alone, which as in PEFT rescales what
/// was merged before it, by a factor that does not know of that.
///
/// All components of a model are built through it, [merged](Self::over) or with the changes [beside](Self::beside) their weights;
/// then [`Self::finish`] tells what of the files was of no use.
#[derive(Debug, Default)]
pub struct Loras {
    files: Vec<(Arc<LoraFile>, f64)>,
    use_made: Mutex<UseMade>,
}

/// What came of the files while components were built.
#[derive(Debug, Default)]
struct UseMade {
    modules: BTreeSet<Module>,
    failure: Option<Error>,
}

impl Loras {
    /// Opens files for a model, each with what its change is multiplied by.
    ///
    /// # Errors
    /// If a file cannot be used, or a weight is not finite.
    pub fn open<'a>(files: impl IntoIterator<Item = (&'a Path, f64)>, target: &LoraTarget) -> Result<Self> {
        let open = |(path, weight): (&Path, f64)| {
            check_finite(path, weight)?;
            Ok((Arc::new(LoraFile::open(path, target)?), weight))
        };
        Ok(Self { files: files.into_iter().map(open).collect::<Result<_>>()?, ..Self::default() })
    }

    /// The same of files that are open, whose changes are laid out for weights once, however often they are used.
    ///
    /// # Errors
    /// If a weight is not finite.
    pub fn new(files: impl IntoIterator<Item = (Arc<LoraFile>, f64)>) -> Result<Self> {
        let files: Vec<(Arc<LoraFile>, f64)> = files.into_iter().collect();
        files.iter().try_for_each(|(file, weight)| check_finite(file.path(), *weight))?;
        Ok(Self { files, ..Self::default() })
    }

    /// The weights of a component ("unet", "text_encoder", "text_encoder_2") with the changes in them.
    pub fn over<'a>(&'a self, component: &'a str, source: &'a dyn WeightSource) -> MergedWeights<'a> {
        MergedWeights { loras: self, component, source }
    }

    /// The weights of a component with the changes beside them: `source` stays as it is, and so does whatever else was made
    /// from it.
    pub fn beside<'a>(&'a self, component: &'a str, source: &'a dyn WeightSource) -> AdaptedWeights<'a> {
        AdaptedWeights { loras: self, component, source }
    }

    /// Whether a component has to be built through this.
    pub fn changes(&self, component: &str) -> bool {
        self.files.iter().any(|(file, _)| file.changes_component(component))
    }

    /// The embeddings of words that were trained with the files and come in them.
    ///
    /// # Errors
    /// If one is of no form that is read.
    pub fn embeddings(&self) -> Result<Vec<TextualInversion>> {
        let each = self.files.iter().map(|(file, _)| file.embeddings()).collect::<Result<Vec<_>>>()?;
        Ok(each.concat())
    }

    /// To be called when every component that they change is built: warnings of what had no effect on the model, of this `family`,
    /// one at most for each file.
    ///
    /// # Errors
    /// If a tensor did not fit, or nothing in a file had an effect.
    pub fn finish(self, family: &str) -> Result<Vec<String>> {
        let UseMade { modules, failure } = self.use_made.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = failure {
            return Err(error);
        }
        let warnings = self.files.iter().map(|(file, weight)| match file.unused(&modules, family)? {
            None if *weight == 0.0 => {
                Ok(Some(format!("the LoRA {} has the weight 0, and with it no effect", file.path().display())))
            }
            warning => Ok(warning),
        });
        warnings.filter_map(Result::transpose).collect()
    }

    /// The module of a component's tensor if a file changes it.
    pub(super) fn changed(&self, component: &str, name: &str, shape: &[usize]) -> Option<Module> {
        let module = Module::of_tensor(component, name).filter(|_| !shape.is_empty())?;
        self.files.iter().any(|(file, _)| file.changes(&module)).then_some(module)
    }

    /// A tensor with the changes in it, in f32 on the CPU.
    pub(super) fn merged(&self, module: &Module, stored: &Tensor) -> Result<Tensor> {
        let base = stored.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let merge = |sum: Tensor, (file, weight): &(Arc<LoraFile>, f64)| file.merge(module, &sum, &base, *weight);
        self.files.iter().try_fold(base.clone(), merge)
    }

    /// What stands beside a weight.
    pub(super) fn adapters(
        &self,
        module: &Module,
        shape: &[usize],
        computation: Computation,
        device: &Device,
    ) -> Result<Vec<Adapter>> {
        let of_file = |(file, scale): &(Arc<LoraFile>, f64)| {
            let delta = file.delta(module, shape, computation, device).transpose()?;
            Some(delta.map(|delta| Adapter { delta, scale: *scale }))
        };
        self.files.iter().filter_map(of_file).collect()
    }

    /// Notes that a module was changed, or why not. Building goes on: what does not fit is told by [`Self::finish`], so that the
    /// checkpoint can still say what is wrong with itself.
    pub(super) fn note<T>(&self, module: Module, outcome: Result<T>) -> Option<T> {
        let mut made = self.use_made();
        made.modules.insert(module);
        match outcome {
            Ok(changed) => Some(changed),
            Err(error) => {
                made.failure.get_or_insert(error);
                None
            }
        }
    }

    fn use_made(&self) -> MutexGuard<'_, UseMade> {
        self.use_made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_finite(path: &Path, weight: f64) -> Result<()> {
    if weight.is_finite() {
        return Ok(());
    }
    let what = format!("the weight of the LoRA {}", path.display());
    Err(Error::invalid(what, weight, "take a number; 1 is usual, 0 is none"))
}
