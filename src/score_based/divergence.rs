//! The divergence of a vector field from vector-Jacobian products.

use super::normal_like;
use crate::noise::NoiseSource;
use crate::{Error, Result};
use candle_core::{Tensor, Var};

/// The vectors `v` of Hutchinson's estimator: with `E[v v^T] = I`, the mean of `v^T J v` is the trace of `J`
/// (Hutchinson 1990).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probes {
    /// So many vectors of independent signs, whose variance is least.
    Rademacher(usize),
    /// So many standard normal vectors.
    Gaussian(usize),
    /// Every axis once, of length `sqrt(d)`: the trace exactly, at the price of `d` products.
    Axes,
}

impl Probes {
    /// The vectors for a batch, image by image from its own noise.
    ///
    /// # Shapes
    /// `x`: `[batch, ...]`; each of the result is like it.
    ///
    /// # Errors
    /// If there are to be none, or the noise fails.
    pub fn draw(self, x: &Tensor, noise: &mut dyn NoiseSource) -> Result<Vec<Tensor>> {
        match self {
            Self::Rademacher(0) | Self::Gaussian(0) => {
                Err(Error::invalid("the number of Hutchinson's probes", 0, "take at least one"))
            }
            Self::Rademacher(count) => (0..count)
                .map(|_| Ok(normal_like(noise, x)?.ge(0.0)?.to_dtype(x.dtype())?.affine(2.0, -1.0)?))
                .collect(),
            Self::Gaussian(count) => (0..count).map(|_| normal_like(noise, x)).collect(),
            Self::Axes => {
                let (batch, axes) = x.flatten_from(1)?.dims2()?;
                let identity = (Tensor::eye(axes, x.dtype(), x.device())? * (axes as f64).sqrt())?;
                let axis = |i| Ok(identity.narrow(0, i, 1)?.repeat((batch, 1))?.reshape(x.shape())?);
                (0..axes).map(axis).collect()
            }
        }
    }

    /// Whether the mean over the probes is the trace itself.
    pub fn is_exact(self) -> bool {
        self == Self::Axes
    }
}

/// The value of a vector field and `v^T J v` for each probe `v`, `J` its Jacobian; their mean over the probes
/// estimates the divergence (Song et al. 2021, equation 40; Grathwohl et al. 2019).
///
/// One evaluation serves all probes, each of which takes one pass backwards. Nothing returned is part of the
/// graph.
///
/// # Shapes
/// `x` and each of `probes`: `[batch, ...]`; the field's row `i` depends on row `i` of `x` alone. The value is
/// like `x`, the estimates are `[batch, probes]`.
///
/// # Errors
/// If the field fails, or candle has no derivative of it.
pub fn divergence(
    field: impl FnOnce(&Tensor) -> Result<Tensor>,
    x: &Tensor,
    probes: &[Tensor],
) -> Result<(Tensor, Tensor)> {
    let x = Var::from_tensor(&x.detach())?;
    let value = field(x.as_tensor())?;
    let estimates = probes.iter().map(|probe| {
        let gradients = (&value * probe)?.sum_all()?.backward()?;
        let product = gradients.get(x.as_tensor()).ok_or_else(|| {
            let fix = "make it of operations that candle differentiates, without detach";
            Error::invalid("the derivative of the vector field", "missing", fix)
        })?;
        Ok((product * probe)?.flatten_from(1)?.sum_keepdim(1)?.detach())
    });
    let estimates = estimates.collect::<Result<Vec<_>>>()?;
    Ok((value.detach(), Tensor::cat(&estimates, 1)?))
}
