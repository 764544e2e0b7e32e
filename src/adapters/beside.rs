//! Adapters that are put beside a model's weights while it is built.

use crate::Result;
use crate::layers::{Adapter, Computation, Weight, WeightSource};
use candle_core::{Device, Tensor};

/// What puts adapters beside the weights of a model's components while these are built: those of a LoRA in training, whose
/// factors are variables.
pub trait AdapterSource {
    /// What stands beside the weight `name` of a component, if anything does.
    ///
    /// # Shapes
    /// `shape`: `[out, in]` or `[out, in, height, width]`.
    ///
    /// # Errors
    /// If it cannot be given.
    fn adapter(
        &self,
        component: &str,
        name: &str,
        shape: &[usize],
        computation: Computation,
    ) -> Result<Option<Adapter>>;
}

/// A component's weights with what an [`AdapterSource`] puts beside them.
pub(crate) struct WithAdapters<'a> {
    pub adapters: &'a dyn AdapterSource,
    pub component: &'a str,
    pub source: &'a dyn WeightSource,
}

impl WeightSource for WithAdapters<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.source.tensor(name, shape)
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        let weight = self.source.weight(name, shape, computation)?;
        match self.adapters.adapter(self.component, name, shape, computation)? {
            Some(adapter) => weight.with_adapter(adapter),
            None => Ok(weight),
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    fn device(&self) -> &Device {
        self.source.device()
    }
}
