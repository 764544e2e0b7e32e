//! Residual connections.

use crate::{Result, kernels};
use candle_core::Tensor;

/// `x + update`, what a residual connection (He et al. 2016) carries on.
///
/// # Errors
/// If the shapes differ.
pub fn add_residual(x: &Tensor, update: &Tensor) -> Result<Tensor> {
    Ok(if kernels::compute_with(x) { kernels::add(x, update)? } else { (x + update)? })
}
