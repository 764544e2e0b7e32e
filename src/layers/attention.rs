//! Attention layers.

use super::{Backend, Linear, Weights};
use crate::Result;
use crate::kernels::{self, Products};
use candle_core::Tensor;

/// Multi-head attention of queries to keys and values, without projections. `products` is how the kernels take them.
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
    products: Products,
    backend: Backend,
) -> Result<Tensor> {
    match backend {
        Backend::Kernels => Ok(kernels::attention_with(q, k, v, heads, causal, products)?),
        #[cfg(feature = "flash-attn")]
        Backend::Candle if flash::serves(q, k, v, heads) => flash::attention(q, k, v, heads, causal),
        Backend::Candle => Ok(kernels::attention_definition(q, k, v, heads, causal)?),
    }
}

/// FlashAttention-2 (Dao 2023), which CUDA has for half precision, without a gradient.
#[cfg(feature = "flash-attn")]
mod flash {
    use crate::Result;
    use candle_core::{DType, Tensor};

    /// The largest head that its kernels are compiled for.
    const LARGEST_HEAD: usize = 256;

    pub fn serves(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> bool {
        let head = q.dims().last().copied().unwrap_or(0) / heads;
        q.device().is_cuda()
            && matches!(q.dtype(), DType::F16 | DType::BF16)
            && head <= LARGEST_HEAD
            && head.is_multiple_of(8)
            && ![q, k, v].into_iter().any(Tensor::track_op)
    }

    pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
        let (batch, n, width) = q.dims3()?;
        let split = |x: &Tensor| x.contiguous()?.reshape((batch, x.dim(1)?, heads, width / heads));
        let scale = 1.0 / ((width / heads) as f32).sqrt();
        let mixed = candle_flash_attn::flash_attn(&split(q)?, &split(k)?, &split(v)?, scale, causal)?;
        Ok(mixed.reshape((batch, n, width))?)
    }
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
        let mixed = scaled_dot_product_attention(&q, &k, &v, self.heads, false, self.to_q.products(), self.backend)?;
        self.to_out.forward(&mixed)
    }

    /// Self-attention in which every token of the first `perturbed` rows of the batch looks at itself alone, for
    /// perturbed-attention guidance.
    ///
    /// # Shapes
    /// As [`Self::forward`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_perturbed(&self, x: &Tensor, perturbed: usize) -> Result<Tensor> {
        let rest = x.dim(0)? - perturbed;
        let alone = self.to_out.forward(&self.to_v.forward(&x.narrow(0, 0, perturbed)?)?)?;
        if rest == 0 {
            return Ok(alone);
        }
        let others = x.narrow(0, perturbed, rest)?;
        Ok(Tensor::cat(&[alone, self.forward(&others, &others)?], 0)?)
    }
}
