//! Weights with the changes of adapters in them.

use super::Loras;
use super::lora_names::Module;
use crate::Result;
use crate::kernels::{MatmulPrecision, is_dry_run};
use crate::layers::{Computation, Weight, WeightSource};
use candle_core::{DType, Device, Tensor};

/// A component's weights with the changes of [`Loras`] in them.
///
/// It never fails for a LoRA: what does not fit is kept for [`Loras::finish`].
pub struct MergedWeights<'a> {
    pub(super) loras: &'a Loras,
    pub(super) component: &'a str,
    pub(super) source: &'a dyn WeightSource,
}

impl MergedWeights<'_> {
    /// A tensor with the changes in it, as what `products` wants of the type that it is stored in; as it is stored if a change does
    /// not fit.
    fn merged(&self, module: Module, stored: Tensor, products: MatmulPrecision) -> Result<Tensor> {
        let merged = match is_dry_run() {
            true => Ok(Tensor::zeros(stored.shape(), DType::F32, stored.device())?),
            false => self.loras.merged(&module, &stored),
        };
        let Some(sum) = self.loras.note(module, merged) else { return Ok(stored) };
        if !stored.device().is_cpu() {
            return Ok(sum.to_dtype(stored.dtype())?.to_device(stored.device())?);
        }
        // MatmulPrecision that round their factors lose nothing by a sum that is rounded already.
        let rounded = products == MatmulPrecision::Bf16 && stored.dtype() == DType::BF16;
        Ok(if rounded { sum.to_dtype(DType::BF16)? } else { sum })
    }
}

impl WeightSource for MergedWeights<'_> {
    /// Vectors and tables are multiplied with in full.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let stored = self.source.tensor(name, shape)?;
        match self.loras.changed(self.component, name, shape) {
            Some(module) => self.merged(module, stored, MatmulPrecision::Full),
            None => Ok(stored),
        }
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        let Some(module) = self.loras.changed(self.component, name, shape) else {
            return self.source.weight(name, shape, computation);
        };
        let stored = self.source.tensor(name, shape)?;
        Weight::from_tensor(&self.merged(module, stored, computation.products)?, computation)
    }

    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    fn device(&self) -> &Device {
        self.source.device()
    }
}
