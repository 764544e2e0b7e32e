//! Weights with adapters beside them.

use super::Loras;
use crate::Result;
use crate::layers::{Computation, Weight, WeightSource};
use candle_core::{Device, Tensor};

/// A component's weights with the changes of [`Loras`] beside them, each an [`Adapter`](crate::layers::Adapter) of the weight that
/// the source gives. Of tables of embeddings, which are not multiplied with, it gives changed copies.
///
/// It never fails for a LoRA: what does not fit is kept for [`Loras::finish`].
pub struct AdaptedWeights<'a> {
    pub(super) loras: &'a Loras,
    pub(super) component: &'a str,
    pub(super) source: &'a dyn WeightSource,
}

impl WeightSource for AdaptedWeights<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.source.tensor(name, shape)?;
        let Some(module) = self.loras.changed(self.component, name, shape) else { return Ok(stored) };
        let merged = self.loras.merged(&module, &stored);
        let Some(sum) = self.loras.note(module, merged) else { return Ok(stored) };
        let dtype = if stored.device().is_cpu() { sum.dtype() } else { stored.dtype() };
        Ok(sum.to_dtype(dtype)?.to_device(stored.device())?)
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        let weight = self.source.weight(name, shape, computation)?;
        let Some(module) = self.loras.changed(self.component, name, shape) else { return Ok(weight) };
        let adapters = self.loras.adapters(&module, shape, computation, self.device());
        let adapters = self.loras.note(module, adapters).unwrap_or_default();
        adapters.into_iter().try_fold(weight, Weight::with_adapter)
    }

    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    fn device(&self) -> &Device {
        self.source.device()
    }
}
