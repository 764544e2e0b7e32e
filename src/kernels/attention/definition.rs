//! Attention in candle's own operations.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};

/// The most scores that the definition materialises at once.
const DEFINITION_SCORES: usize = 1 << 24;

/// What [`attention`](super::attention) computes, in candle's own operations; the softmax is in f32 at least.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention_definition(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let m = k.dim(1)?;
    let split = |x: &Tensor, image: usize| -> Result<Tensor> {
        x.get(image)?.reshape(((), heads, width / heads))?.transpose(0, 1)?.contiguous()
    };
    let rows = (DEFINITION_SCORES / (heads * m).max(1)).clamp(1, n.max(1));
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let mut images = Vec::with_capacity(batch);
    for image in 0..batch {
        let (q, k, v) = (split(q, image)?, split(k, image)?, split(v, image)?);
        let keys = k.t()?;
        let mut slices = Vec::new();
        for first in (0..n).step_by(rows) {
            // Scaled before the product, which may be too large for f16 without.
            let q = (q.narrow(1, first, rows.min(n - first))? * scale)?;
            let mut scores = q.matmul(&keys)?;
            if matches!(scores.dtype(), DType::F16 | DType::BF16) {
                scores = scores.to_dtype(DType::F32)?;
            }
            if causal {
                scores = scores.broadcast_add(&causal_mask(first, q.dim(1)?, m, &scores)?)?;
            }
            // The fused one has no gradient.
            let fused = !scores.track_op();
            let weights = if fused { softmax_last_dim(&scores)? } else { softmax(&scores, D::Minus1)? };
            slices.push(weights.to_dtype(v.dtype())?.matmul(&v)?);
        }
        images.push(Tensor::cat(&slices, 1)?.transpose(0, 1)?.contiguous()?.reshape((n, width))?);
    }
    Tensor::stack(&images, 0)
}

fn causal_mask(first: usize, rows: usize, m: usize, like: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = (0..rows)
        .flat_map(|row| (0..m).map(move |key| if key > first + row { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(values, (rows, m), like.device())?.to_dtype(like.dtype())
}
