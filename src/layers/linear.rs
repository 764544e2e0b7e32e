//! Linear layers.

use super::weights::vector;
use super::{Backend, Weight, Weights, add_residual, geglu};
use crate::Result;
use crate::kernels::{self, Products};
use candle_core::{DType, Tensor};

/// `y = x W^T + b`.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
    /// Stands in for the bias where a kernel takes one always.
    zeros: Tensor,
    backend: Backend,
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
        let weight = Weight::new(weights, &[outputs, inputs])?;
        let bias = if bias { Some(vector(weights, "bias", outputs)?) } else { None };
        let zeros = weight.no_bias()?;
        Ok(Self { weight, bias, zeros, backend: weights.backend() })
    }

    /// How its products are taken.
    pub fn products(&self) -> Products {
        self.weight.products()
    }

    /// # Shapes
    /// `x`: `[..., inputs]`; the result is `[..., outputs]`.
    ///
    /// # Errors
    /// If the last dimension is not the layer's input width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match (&self.weight, self.backend) {
            (Weight::Packed(matrix), _) => Ok(kernels::linear_packed(x, matrix, &self.bias_as(x.dtype())?)?),
            (&Weight::Plain(ref matrix, products), Backend::Kernels) => {
                Ok(kernels::linear_with(x, &matrix.to_dtype(x.dtype())?, &self.bias_as(x.dtype())?, products)?)
            }
            (Weight::Plain(matrix, _), Backend::Candle) => {
                let y = x.contiguous()?.broadcast_matmul(&matrix.to_dtype(x.dtype())?.t()?)?;
                match &self.bias {
                    Some(bias) => Ok(y.broadcast_add(&bias.to_dtype(y.dtype())?)?),
                    None => Ok(y),
                }
            }
        }
    }

    /// The same plus a residual, which is as the result.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_plus_residual(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(matrix) => Ok(kernels::linear_packed_plus(x, matrix, &self.bias_as(x.dtype())?, residual)?),
            Weight::Plain(..) => add_residual(residual, &self.forward(x)?),
        }
    }

    /// GEGLU (Shazeer 2020) of what the layer gives: the first half of the outputs times GELU of the second.
    ///
    /// # Errors
    /// If the last dimension is not the layer's input width, or the outputs are an odd number.
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Packed(matrix) => Ok(kernels::linear_geglu_packed(x, matrix, &self.bias_as(x.dtype())?)?),
            Weight::Plain(..) => geglu(&self.forward(x)?),
        }
    }

    fn bias_as(&self, dtype: DType) -> Result<Tensor> {
        Ok(self.bias.as_ref().unwrap_or(&self.zeros).to_dtype(dtype)?)
    }
}
