//! Attention layers.

use super::{Backend, Linear, Weights};
use crate::{Result, kernels};
use candle_core::Tensor;

/// Multi-head attention of queries to keys and values, without projections.
///
/// # Shapes
/// `q`: `[batch, n, heads * d]`; `k`, `v`: `[batch, m, heads * d]`; the result is as `q`.
///
/// # Errors
/// If the shapes do not fit.
pub fn scaled_dot_product_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    causal: bool,
    backend: Backend,
) -> Result<Tensor> {
    Ok(match backend {
        Backend::Kernels => kernels::attention(q, k, v, heads, causal)?,
        Backend::Candle => kernels::attention_definition(q, k, v, heads, causal)?,
    })
}

/// The sizes of an [`Attention`] layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Width of the queries' input and of the output.
    pub width: usize,
    /// Width of the keys' and values' input.
    pub context_width: usize,
    /// Number of heads.
    pub heads: usize,
    /// Whether the projections to queries, keys and values have a bias; the output's has one always.
    pub bias: bool,
}

/// Attention with its four projections, under diffusers' names `to_q`, `to_k`, `to_v`, `to_out.0`.
#[derive(Debug, Clone)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    backend: Backend,
}

impl Attention {
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: AttentionConfig) -> Result<Self> {
        let AttentionConfig { width, context_width, heads, bias } = config;
        Ok(Self {
            to_q: Linear::with_bias(&weights.at("to_q"), width, width, bias)?,
            to_k: Linear::with_bias(&weights.at("to_k"), context_width, width, bias)?,
            to_v: Linear::with_bias(&weights.at("to_v"), context_width, width, bias)?,
            to_out: Linear::new(&weights.at("to_out.0"), width, width)?,
            heads,
            backend: weights.backend(),
        })
    }

    /// # Shapes
    /// `x`: `[batch, n, width]`; `context`: `[batch, m, context_width]`, `x` itself for self-attention; the
    /// result is as `x`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(x)?, self.to_k.forward(context)?, self.to_v.forward(context)?);
        let mixed = scaled_dot_product_attention(&q, &k, &v, self.heads, false, self.backend)?;
        self.to_out.forward(&mixed)
    }
}
