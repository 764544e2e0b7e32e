//! Elementwise activations.

use crate::{Result, kernels};
use candle_core::{D, Tensor};

/// An activation function, by its exact definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)` with the error function (Hendrycks and Gimpel 2016), not the tanh approximation.
    Gelu,
    /// `max(x, 0)`.
    Relu,
    /// `x * sigmoid(1.702 x)`, which CLIP was trained with.
    QuickGelu,
}

/// GEGLU (Shazeer 2020): the first half of the channels times GELU of the second.
///
/// # Shapes
/// `x`: `[..., 2 n]`; the result is `[..., n]`.
///
/// # Errors
/// If the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    if kernels::compute_with(x) {
        return Ok(kernels::geglu(x)?);
    }
    let halves = x.chunk(2, D::Minus1)?;
    Ok((&halves[0] * halves[1].contiguous()?.gelu_erf()?)?)
}

impl Activation {
    /// # Errors
    /// If the element type has no such operation.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        let on_cpu = kernels::compute_with(x);
        Ok(match self {
            Self::Silu if on_cpu => kernels::silu(x)?,
            Self::Gelu if on_cpu => kernels::gelu(x)?,
            Self::QuickGelu if on_cpu => kernels::quick_gelu(x)?,
            Self::Silu => x.silu()?,
            Self::Gelu => x.gelu_erf()?,
            Self::Relu => x.relu()?,
            Self::QuickGelu => ((x * 1.702)?.silu()? / 1.702)?,
        })
    }
}
