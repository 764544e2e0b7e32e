//! Linear layers.

use super::weights::vector;
use super::{Weight, Weights};
use crate::Result;
use crate::kernels::MatmulPrecision;
use candle_core::{DType, Tensor};

/// `y = x W^T + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// From `weight` `[outputs, inputs]` and `bias` `[outputs]`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        Self::with_bias(weights, inputs, outputs, true)
    }

    /// The same with the bias optional.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn with_bias(weights: &Weights<'_>, inputs: usize, outputs: usize, bias: bool) -> Result<Self> {
        let weight = weights.weight(&[outputs, inputs])?;
        let bias = if bias { Some(vector(weights, "bias", outputs)?) } else { None };
        Ok(Self { weight, bias })
    }

    /// How its products are taken.
    pub fn products(&self) -> MatmulPrecision {
        self.weight.products()
    }

    /// # Shapes
    /// `x`: `[..., inputs]`; the result is `[..., outputs]`.
    ///
    /// # Errors
    /// If the last dimension is not the layer's input width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.linear(x, self.bias_as(x.dtype())?.as_ref())
    }

    /// The same plus a residual, which is as the result.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_plus_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.weight.linear_plus_residual(x, self.bias_as(x.dtype())?.as_ref(), residual)
    }

    /// GEGLU (Shazeer 2020) of what the layer gives: the first half of the outputs times GELU of the second.
    ///
    /// # Errors
    /// If the last dimension is not the layer's input width, or the outputs are an odd number.
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.linear_geglu(x, self.bias_as(x.dtype())?.as_ref())
    }

    fn bias_as(&self, dtype: DType) -> Result<Option<Tensor>> {
        Ok(self.bias.as_ref().map(|bias| bias.to_dtype(dtype)).transpose()?)
    }
}
