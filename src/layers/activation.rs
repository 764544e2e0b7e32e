//! Elementwise activations.

use crate::{Result, kernels};
use candle_core::{DType, Tensor};

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

impl Activation {
    /// # Errors
    /// If the element type has no such operation.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        let on_cpu = x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64);
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
