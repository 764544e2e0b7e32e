//! Where layers get their tensors from, and how they hold them.

use crate::Result;
use crate::kernels::{self, PackedWeight, Products};
use candle_core::{DType, Device, Tensor};

/// A source of named tensors: a checkpoint, trainable variables, random numbers.
pub trait WeightSource {
    /// The tensor called `name`, with the source's element type, on the source's device.
    ///
    /// # Errors
    /// If the tensor cannot be given. A checkpoint notes a missing or mis-shaped tensor, gives a stand-in and
    /// reports all of them together at the end.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;

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

/// A place in a [`WeightSource`]: what a layer is made from.
///
/// Cloning is cheap; [`Weights::at`] goes deeper, as the dots in tensor names do.
#[derive(Clone)]
pub struct Weights<'a> {
    source: &'a dyn WeightSource,
    backend: Backend,
    products: Option<Products>,
    path: String,
}

impl<'a> Weights<'a> {
    /// The root of a source, computed with the backend of its device.
    pub fn new(source: &'a dyn WeightSource) -> Self {
        Self { source, backend: Backend::for_device(source.device()), products: None, path: String::new() }
    }

    /// The same place, computed in another way.
    #[must_use]
    pub fn with_backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// The same place, with products taken so by the kernels, instead of in full.
    #[must_use]
    pub fn with_products(mut self, products: Products) -> Self {
        self.products = Some(products);
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

    /// Whether this place has a tensor `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.source.contains(&self.name_of(name))
    }

    /// How layers made from here compute.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Where the tensors are.
    pub fn device(&self) -> &'a Device {
        self.source.device()
    }

    fn name_of(&self, name: impl std::fmt::Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }
}

/// A weight as a layer holds it, `[out, in]` or `[out, in, kernel, kernel]`.
///
/// The element type is that of storage. The CPU's activations are f32; it widens what is stored in half precision while it
/// multiplies, or rounds the activations too ([`Products`]).
#[derive(Debug, Clone)]
pub enum Weight {
    /// As it is: for candle's operations, and for the kernels where a gradient is asked for.
    Plain(Tensor, Products),
    /// Laid out for the kernels.
    Packed(PackedWeight),
}

impl Weight {
    /// The tensor `weight` of a place. One that no gradient is asked for is laid out for the kernels here, once.
    ///
    /// # Errors
    /// If the source cannot give it.
    pub fn new(weights: &Weights<'_>, shape: &[usize]) -> Result<Self> {
        let tensor = weights.tensor("weight", shape)?;
        if weights.backend() != Backend::Kernels || tensor.track_op() {
            // What is trained is rounded only where somebody asks for it.
            return Ok(Self::Plain(tensor, weights.products.unwrap_or_default()));
        }
        Ok(Self::Packed(PackedWeight::with_products(&tensor, weights.products.unwrap_or_default())?))
    }

    /// How products with it are taken.
    pub fn products(&self) -> Products {
        match self {
            &Self::Plain(_, products) => products,
            Self::Packed(weight) => weight.products(),
        }
    }

    /// A vector of zeros, `[outputs]`, in the type of the other vectors of its layer.
    pub(super) fn no_bias(&self) -> Result<Tensor> {
        let (outputs, dtype, device) = match self {
            Self::Plain(tensor, _) => (tensor.dim(0)?, tensor.dtype(), tensor.device()),
            Self::Packed(weight) => (weight.shape()[0], weight.dtype(), &Device::Cpu),
        };
        widened(Tensor::zeros(outputs, dtype, device)?)
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
