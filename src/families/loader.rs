//! From a component's files to what is built of its weights.

use crate::adapters::Loras;
use crate::checkpoints::{Checkpoint, ModelFiles, Precision};
use crate::kernels::Products;
use crate::layers::{Backend, WeightSource, Weights};
use crate::{DType, Device, Result};

/// Opens components of one model, and says how their weights are held and computed with.
#[derive(Clone, Copy)]
pub struct Loader<'a> {
    /// The model's files.
    pub files: &'a ModelFiles,
    /// Where weights go.
    pub device: &'a Device,
    /// The element type of matrices in memory.
    pub weights: DType,
    /// Whether those that are stored in half precision stay as they are, which changes no result.
    pub keeps_halves: bool,
    /// The element type of activations.
    pub activations: DType,
    /// Another way to compute than the device's own.
    pub backend: Option<Backend>,
    /// Other products than are fastest here for the element type.
    pub products: Option<Products>,
    /// What is merged into the weights.
    pub loras: Option<&'a Loras>,
}

impl Loader<'_> {
    /// The same, all in f32.
    #[must_use]
    pub fn in_f32(self) -> Self {
        Self { weights: DType::F32, keeps_halves: false, activations: DType::F32, ..self }
    }

    /// Builds a component from the weights in its folder, and gives the names of its files too. Tensors under the prefixes
    /// `unused` may be left alone.
    ///
    /// # Errors
    /// If the weights cannot be had, or are not those that are asked for: all that did not fit is in the message.
    pub fn load<T>(
        &self,
        component: &str,
        unused: &[&str],
        build: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<(T, Vec<String>)> {
        let precision = if self.weights == DType::F16 { Precision::Half } else { Precision::Full };
        let checkpoint = Checkpoint::open(self.files, component, precision, self.weights, self.device)?;
        self.load_from(checkpoint, component, unused, build)
    }

    /// Builds a component from weights that were opened otherwise.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from<T>(
        &self,
        checkpoint: Checkpoint,
        component: &str,
        unused: &[&str],
        build: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<(T, Vec<String>)> {
        let names = checkpoint.file_names().to_vec();
        let checkpoint = if self.keeps_halves { checkpoint.keeping_halves() } else { checkpoint };
        let merged = self.loras.map(|loras| loras.over(component, &checkpoint));
        let source = merged.as_ref().map_or(&checkpoint as &dyn WeightSource, |merged| merged);
        let weights = Weights::new(source);
        let weights = match self.backend {
            Some(backend) => weights.with_backend(backend),
            None => weights,
        };
        let weights = match self.products {
            Some(products) => weights.with_products(products),
            None => weights,
        };
        let built = build(&weights);
        // What did not fit explains a failure to build better than the failure itself.
        checkpoint.finish(unused)?;
        Ok((built?, names))
    }
}
