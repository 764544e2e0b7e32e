//! A text as part of the time embedding: diffusers' `addition_embed_type: "text"`, which DeepFloyd IF has (2023).

use crate::Result;
use crate::layers::{Backend, LayerNorm, Linear, Weights, scaled_dot_product_attention};
use candle_core::Tensor;

/// The epsilon of PyTorch's layer norms.
const EPSILON: f64 = 1e-5;

/// Norm, attention pooling, projection to the width of the time embedding, norm.
#[derive(Debug)]
pub(super) struct TextTimeEmbedding {
    norm1: LayerNorm,
    pool: AttentionPooling,
    proj: Linear,
    norm2: LayerNorm,
}

impl TextTimeEmbedding {
    pub fn new(weights: &Weights<'_>, text_width: usize, time_width: usize, heads: usize) -> Result<Self> {
        Ok(Self {
            norm1: LayerNorm::new(&weights.at("norm1"), text_width, EPSILON)?,
            pool: AttentionPooling::new(&weights.at("pool"), text_width, heads)?,
            proj: Linear::new(&weights.at("proj"), text_width, time_width)?,
            norm2: LayerNorm::new(&weights.at("norm2"), time_width, EPSILON)?,
        })
    }

    /// `text`: `[batch, tokens, text_width]`; the result is `[batch, time_width]`.
    pub fn forward(&self, text: &Tensor) -> Result<Tensor> {
        let pooled = self.pool.forward(&self.norm1.forward(text)?)?;
        self.norm2.forward(&self.proj.forward(&pooled)?)
    }
}

/// Attention of the mean token, with a learned embedding added, to itself and to all tokens (Radford et al. 2021, section
/// 2.4), without a projection of what comes out.
#[derive(Debug)]
struct AttentionPooling {
    positional_embedding: Tensor,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    heads: usize,
    backend: Backend,
}

impl AttentionPooling {
    fn new(weights: &Weights<'_>, width: usize, heads: usize) -> Result<Self> {
        let projection = |name| Linear::new(&weights.at(name), width, width);
        Ok(Self {
            positional_embedding: weights.tensor("positional_embedding", &[1, width])?,
            q_proj: projection("q_proj")?,
            k_proj: projection("k_proj")?,
            v_proj: projection("v_proj")?,
            heads,
            backend: weights.backend(),
        })
    }

    /// `x`: `[batch, tokens, width]`; the result is `[batch, width]`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mean = x.mean_keepdim(1)?.broadcast_add(&self.positional_embedding.to_dtype(x.dtype())?)?;
        let all = Tensor::cat(&[&mean, x], 1)?;
        let (k, v) = (self.k_proj.forward(&all)?, self.v_proj.forward(&all)?);
        let (q, products) = (self.q_proj.forward(&mean)?, self.q_proj.products());
        Ok(scaled_dot_product_attention(&q, &k, &v, self.heads, false, products, self.backend)?.squeeze(1)?)
    }
}
