//! Convolutions.

use super::weights::vector;
use super::{FeatureMap, Weight, Weights};
use crate::{Result, kernels};
use candle_core::{DType, Tensor};

pub use kernels::ConvGeometry;

/// A two-dimensional convolution with a square kernel.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Weight,
    bias: Option<Tensor>,
    geometry: ConvGeometry,
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
        let conv = Self::without_bias(weights, inputs, outputs, geometry)?;
        Ok(Self { bias: Some(vector(weights, "bias", outputs)?), ..conv })
    }

    /// The same without a bias.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn without_bias(weights: &Weights<'_>, inputs: usize, outputs: usize, geometry: ConvGeometry) -> Result<Self> {
        let weight = weights.weight(&[outputs, inputs, geometry.kernel, geometry.kernel])?;
        Ok(Self { weight, bias: None, geometry })
    }

    /// # Shapes
    /// A map with the layer's input channels to one with its output channels.
    ///
    /// # Errors
    /// If the channels do not fit.
    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.apply(x, self.bias_as(x.dtype())?.as_ref())
    }

    /// The same with a value per image and output channel added, `[batch, outputs]`.
    ///
    /// # Errors
    /// If the dimensions do not fit.
    pub fn forward_plus(&self, x: &FeatureMap, values: &Tensor) -> Result<FeatureMap> {
        let bias = match self.bias_as(values.dtype())? {
            Some(bias) => values.broadcast_add(&bias)?,
            None => values.clone(),
        };
        self.apply(x, Some(&bias.to_dtype(x.dtype())?))
    }

    /// As [`Self::forward`] plus a residual, which is as the result.
    ///
    /// # Errors
    /// If the dimensions do not fit.
    pub fn forward_plus_residual(&self, x: &FeatureMap, residual: &FeatureMap) -> Result<FeatureMap> {
        let bias = self.bias_as(x.dtype())?;
        x.map_with(residual, |x, residual| self.weight.conv2d_plus_residual(x, bias.as_ref(), residual, self.geometry))
    }

    /// `bias`: `[outputs]` or `[batch, outputs]`.
    fn apply(&self, x: &FeatureMap, bias: Option<&Tensor>) -> Result<FeatureMap> {
        x.map(|x| self.weight.conv2d(x, bias, self.geometry))
    }

    fn bias_as(&self, dtype: DType) -> Result<Option<Tensor>> {
        Ok(self.bias.as_ref().map(|bias| bias.to_dtype(dtype)).transpose()?)
    }
}
