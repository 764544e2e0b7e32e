//! Where layers get their tensors from.

use super::Weight;
use crate::Result;
use crate::kernels::{self, MatmulPrecision};
use candle_core::{DType, Device, Tensor};

/// A source of named tensors: a checkpoint, trainable variables, random numbers.
///
/// Layers take what they multiply with by [`Self::weight`] and all else, vectors and tables, by [`Self::tensor`].
pub trait WeightSource {
    /// The tensor called `name`, with the source's element type, on the source's device.
    ///
    /// # Errors
    /// If the tensor cannot be given. A checkpoint notes a missing or mis-shaped tensor, gives a stand-in and
    /// reports all of them together at the end.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

    /// The weight called `name`, in whatever form the source has it, with whatever adapters it puts on it. Unless a source knows
    /// better it is [`Self::tensor`] as [`Weight::from_tensor`] takes it; one that stores blocks gives those.
    ///
    /// # Shapes
    /// `shape`: `[out, in]` or `[out, in, height, width]`.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        Weight::from_tensor(&self.tensor(name, shape)?, computation)
    }

    /// Whether there is a tensor of this name; for models that differ in an optional layer.
    fn contains(&self, name: &str) -> bool;

    /// Where the tensors are.
    fn device(&self) -> &Device;
}

/// How layers compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// This crate's kernels, with channels-last activations: on the CPU.
    Kernels,
    /// candle's own operations, with channels-first activations: on any device.
    Candle,
}

impl Backend {
    /// The backend for a device.
    pub fn for_device(device: &Device) -> Self {
        if device.is_cpu() { Self::Kernels } else { Self::Candle }
    }
}

/// How a layer will multiply with the weight that it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Computation {
    /// With whose operations, which is how activations lie in memory.
    pub backend: Backend,
    /// How exactly the kernels take products.
    pub products: MatmulPrecision,
}

/// A place in a [`WeightSource`]: what a layer is made from.
///
/// Cloning is cheap; [`Weights::at`] goes deeper, as the dots in tensor names do.
#[derive(Clone)]
pub struct Weights<'a> {
    source: &'a dyn WeightSource,
    computation: Computation,
    path: String,
}

impl<'a> Weights<'a> {
    /// The root of a source, computed with the backend of its device.
    pub fn new(source: &'a dyn WeightSource) -> Self {
        let computation =
            Computation { backend: Backend::for_device(source.device()), products: MatmulPrecision::Full };
        Self { source, computation, path: String::new() }
    }

    /// The same place, computed in another way.
    #[must_use]
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.computation.backend = backend;
        self
    }

    /// The same place, with products taken so by the kernels, instead of in full.
    #[must_use]
    pub fn with_products(mut self, products: MatmulPrecision) -> Self {
        self.computation.products = products;
        self
    }

    /// The place `name` below this one.
    #[must_use]
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self { path: self.name_of(name), ..self.clone() }
    }

    /// The tensor `name` of this place.
    ///
    /// # Errors
    /// If the source cannot give it.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.source.tensor(&self.name_of(name), shape)
    }

    /// What a layer at this place multiplies with, which is called `weight`.
    ///
    /// # Shapes
    /// `shape`: `[out, in]` or `[out, in, height, width]`.
    ///
    /// # Errors
    /// If the source cannot give it.
    pub fn weight(&self, shape: &[usize]) -> Result<Weight> {
        self.source.weight(&self.name_of("weight"), shape, self.computation)
    }

    /// Whether this place has a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.source.contains(&self.name_of(name))
    }

    /// With whose operations layers made from here compute.
    pub fn backend(&self) -> Backend {
        self.computation.backend
    }

    /// How layers made from here compute.
    pub(super) fn computation(&self) -> Computation {
        self.computation
    }

    /// Where the tensors are.
    pub fn device(&self) -> &'a Device {
        self.source.device()
    }

    fn name_of(&self, name: impl std::fmt::Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}

/// Norms, biases and embeddings are small and are kept in f32 at least on the CPU, where nothing is gained
/// by less; on other devices they have the source's type.
pub(super) fn vector(weights: &Weights<'_>, name: &str, len: usize) -> Result<Tensor> {
    widened(weights.tensor(name, &[len])?)
}

/// Half precision to f32 on the CPU.
pub(super) fn widened(tensor: Tensor) -> Result<Tensor> {
    Ok(match tensor.dtype() {
        DType::F16 if tensor.device().is_cpu() => kernels::widened(&tensor)?,
        DType::BF16 if tensor.device().is_cpu() => tensor.to_dtype(DType::F32)?,
        _ => tensor,
    })
}
