//! Convolutions.

use super::weights::vector;
use super::{Backend, FeatureMap, Weight, Weights};
use crate::{Result, kernels};
use candle_core::Tensor;

pub use kernels::ConvGeometry;

/// A two-dimensional convolution with a square kernel and a bias.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Weight,
    bias: Tensor,
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
        Ok(Self {
            weight: Weight::new(weights, &[outputs, inputs, geometry.kernel, geometry.kernel])?,
            bias: vector(weights, "bias", outputs)?,
            geometry,
            backend: weights.backend(),
        })
    }

    /// The same without a bias.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn without_bias(weights: &Weights<'_>, inputs: usize, outputs: usize, geometry: ConvGeometry) -> Result<Self> {
        let weight = Weight::new(weights, &[outputs, inputs, geometry.kernel, geometry.kernel])?;
        Ok(Self { bias: weight.no_bias()?, weight, geometry, backend: weights.backend() })
    }

    /// # Shapes
    /// A map with the layer's input channels to one with its output channels.
    ///
    /// # Errors
    /// If the channels do not fit.
    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.apply(x, &self.bias)
    }

    /// The same with a value per image and output channel added, `[batch, outputs]`.
    ///
    /// # Errors
    /// If the dimensions do not fit.
    pub fn forward_plus(&self, x: &FeatureMap, values: &Tensor) -> Result<FeatureMap> {
        self.apply(x, &values.broadcast_add(&self.bias.to_dtype(values.dtype())?)?)
    }

    /// As [`Self::forward`] plus a residual, which is as the result.
    ///
    /// # Errors
    /// If the dimensions do not fit.
    pub fn forward_plus_residual(&self, x: &FeatureMap, residual: &FeatureMap) -> Result<FeatureMap> {
        let Weight::Packed(weight) = &self.weight else {
            return residual.add(&self.forward(x)?);
        };
        let bias = self.bias.to_dtype(x.dtype())?;
        x.map_with(residual, |x, residual| Ok(kernels::conv2d_packed_plus(x, weight, &bias, residual, self.geometry)?))
    }

    /// `bias`: `[outputs]` or `[batch, outputs]`.
    fn apply(&self, x: &FeatureMap, bias: &Tensor) -> Result<FeatureMap> {
        let bias = bias.to_dtype(x.dtype())?;
        x.map(|x| match (&self.weight, self.backend) {
            (Weight::Packed(weight), _) => Ok(kernels::conv2d_packed(x, weight, &bias, self.geometry)?),
            (&Weight::Plain(ref weight, products), Backend::Kernels) => {
                Ok(kernels::conv2d_with(x, &weight.to_dtype(x.dtype())?, &bias, self.geometry, products)?)
            }
            (Weight::Plain(weight, _), Backend::Candle) => {
                let ConvGeometry { stride, pad_before, pad_after, .. } = self.geometry;
                let after = pad_after - pad_before.min(pad_after);
                let padded = x.pad_with_zeros(2, 0, after)?.pad_with_zeros(3, 0, after)?;
                let y = padded.conv2d(&weight.to_dtype(x.dtype())?, pad_before, stride, 1, 1)?;
                let outputs = weight.dim(0)?;
                Ok(y.broadcast_add(&bias.reshape(((), outputs, 1, 1))?)?)
            }
        })
    }
}
