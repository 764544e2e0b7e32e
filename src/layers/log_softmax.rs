//! The logarithms of probabilities, from logits.

use crate::Result;
use candle_core::{D, Tensor};

/// The logarithm of the softmax over the last dimension: `l_i - ln sum_j exp(l_j)`.
///
/// # Shapes
/// `logits`: `[..., classes]`, any real numbers; the result is of the same shape, at most 0.
///
/// # Errors
/// If `logits` has no dimension.
pub fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    // Any constant may be taken off; the largest keeps the exponentials finite and needs no gradient.
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    Ok(shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}
