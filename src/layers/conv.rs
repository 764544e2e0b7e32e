//! Convolutions.

use super::weights::vector;
use super::{FeatureMap, Weight, Weights};
use crate::{Result, kernels};
use candle_core::{DType, Tensor};
use std::ops::Range;

pub use kernels::ConvGeometry;

/// A two-dimensional convolution.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Weight,
    bias: Option<Tensor>,
    geometry: ConvGeometry,
}

impl Conv2d {
    /// From `weight` `[outputs, inputs, height, width]` and `bias` `[outputs]`, stride 1, with as much padding
    /// as keeps the size.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, inputs: usize, outputs: usize, kernel: usize) -> Result<Self> {
        Self::with_geometry(weights, inputs, outputs, ConvGeometry::same([kernel; 2]))
    }

    /// The same with the kernel's height and width, stride and padding given.
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
        let [height, width] = geometry.kernel;
        let weight = weights.weight(&[outputs, inputs, height, width])?;
        Ok(Self { weight, bias: None, geometry })
    }

    /// A convolution without a bias and the batch normalization after it, by the statistics of training, as one convolution
    /// (Ioffe and Szegedy 2015, algorithm 2): `conv.weight`, and `weight`, `bias`, `running_mean` and `running_var` below `bn`.
    /// `epsilon` is added to the variance.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn with_batch_norm(
        weights: &Weights<'_>,
        inputs: usize,
        outputs: usize,
        geometry: ConvGeometry,
        epsilon: f64,
    ) -> Result<Self> {
        let [height, width] = geometry.kernel;
        let norm = weights.at("bn");
        let [gain, bias, mean, variance] =
            ["weight", "bias", "running_mean", "running_var"].map(|name| vector(&norm, name, outputs));
        let scale = (gain? / (variance? + epsilon)?.sqrt()?)?;
        let bias = (bias? - (mean? * &scale)?)?;
        let weight = weights.at("conv").tensor("weight", &[outputs, inputs, height, width])?;
        let weight = weight.broadcast_mul(&scale.to_dtype(weight.dtype())?.reshape((outputs, 1, 1, 1))?)?;
        Ok(Self { weight: Weight::from_tensor(&weight, weights.computation())?, bias: Some(bias), geometry })
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

    /// Channels of the output.
    pub(crate) fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    /// The output's height and width for an input of these.
    pub(crate) fn output_sides(&self, sides: [usize; 2]) -> [usize; 2] {
        self.geometry.output_sides(sides)
    }

    /// The rows of an input of `height` rows that some rows of the output see.
    pub(crate) fn rows_seen(&self, output: &Range<usize>, height: usize) -> Range<usize> {
        self.geometry.rows_seen(output, height)
    }

    /// The same layer for the rows alone that some rows of the output [see](Self::rows_seen), of an input of `height` rows. The
    /// kernels give these rows of the output the bits that they have in the whole if they begin at a multiple of
    /// [`ROWS_TOGETHER`](kernels::ROWS_TOGETHER).
    #[must_use]
    pub(crate) fn for_rows(&self, seen: &Range<usize>, height: usize) -> Self {
        Self { geometry: self.geometry.for_rows(seen, height), ..self.clone() }
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
