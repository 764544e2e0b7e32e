//! Convolutions.

use super::weights::vector;
use super::{Backend, FeatureMap, Weight, Weights};
use crate::{Result, kernels};
use candle_core::Tensor;

pub use kernels::ConvGeometry;

/// A two-dimensional convolution with a square kernel and a bias.
#[derive(Debug, Clone)]
pub struct Conv2d {
    /// `[out, kernel * kernel * in]` for the kernels, `[out, in * kernel * kernel]` for candle.
    weight: Weight,
    /// The weight as it came, if it is trained: it is laid out anew at every use, so that gradients reach it.
    trainable: Option<Tensor>,
    bias: Tensor,
    inputs: usize,
    geometry: ConvGeometry,
    backend: Backend,
}

impl Conv2d {
    /// From `weight` `[outputs, inputs, kernel, kernel]` and `bias` `[outputs]`, stride 1, with as much padding
    /// as keeps the size.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, inputs: usize, outputs: usize, kernel: usize) -> Result<Self> {
        let pad = kernel / 2;
        let geometry = ConvGeometry { kernel, stride: 1, pad_before: pad, pad_after: pad };
        Self::with_geometry(weights, inputs, outputs, geometry)
    }

    /// The same with stride and padding given.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn with_geometry(weights: &Weights<'_>, inputs: usize, outputs: usize, geometry: ConvGeometry) -> Result<Self> {
        let kernel = weights.tensor("weight", &[outputs, inputs, geometry.kernel, geometry.kernel])?;
        let backend = weights.backend();
        Ok(Self {
            trainable: kernel.is_variable().then(|| kernel.clone()),
            weight: Weight::dense(as_matrix(&kernel, backend)?),
            bias: vector(weights, "bias", outputs)?,
            inputs,
            geometry,
            backend,
        })
    }

    /// # Shapes
    /// A map with the layer's input channels to one with its output channels.
    ///
    /// # Errors
    /// If the channels do not fit.
    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let dtype = x.dtype();
        let bias = self.bias.to_dtype(dtype)?;
        let matrix = match &self.trainable {
            Some(kernel) => as_matrix(kernel, self.backend)?.to_dtype(dtype)?,
            None => self.weight.to_dtype(dtype)?,
        };
        x.map(|x| match self.backend {
            Backend::Kernels => Ok(kernels::conv2d(x, &matrix, &bias, self.geometry)?),
            Backend::Candle => {
                let ConvGeometry { kernel, stride, pad_before, pad_after } = self.geometry;
                let matrix = matrix.reshape(((), self.inputs, kernel, kernel))?;
                let after = pad_after - pad_before.min(pad_after);
                let padded = x.pad_with_zeros(2, 0, after)?.pad_with_zeros(3, 0, after)?;
                let y = padded.conv2d(&matrix, pad_before, stride, 1, 1)?;
                Ok(y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?)
            }
        })
    }
}

fn as_matrix(kernel: &Tensor, backend: Backend) -> Result<Tensor> {
    let rows = match backend {
        Backend::Kernels => kernel.permute((0, 2, 3, 1))?.contiguous()?,
        Backend::Candle => kernel.clone(),
    };
    Ok(rows.flatten_from(1)?)
}
