//! The SDE that runs from noise to data, and its Euler method.

use super::{Score, VpSde, finite, normal_like};
use crate::noise::NoiseSource;
use crate::{Error, Result};
use candle_core::Tensor;

/// `dx = [f(x, t) - g(t)^2 score(x, t)] dt + g(t) dw`, time running backwards (Song et al. 2021, equation 6;
/// Anderson 1982).
#[derive(Clone, Copy)]
pub struct ReverseSde<'a> {
    sde: VpSde,
    score: &'a dyn Score,
}

impl<'a> ReverseSde<'a> {
    /// The reverse of `sde`, whose densities have `score`.
    pub fn new(sde: VpSde, score: &'a dyn Score) -> Self {
        Self { sde, score }
    }

    /// The SDE that is reversed.
    pub fn sde(&self) -> VpSde {
        self.sde
    }

    /// The score of its densities.
    pub fn score(&self) -> &'a dyn Score {
        self.score
    }

    /// The drift `f(x, t) - g(t)^2 score(x, t)`.
    ///
    /// # Shapes
    /// `x` and the result: `[batch, ...]`.
    ///
    /// # Errors
    /// If the score fails.
    pub fn drift(&self, x: &Tensor, t: f64) -> Result<Tensor> {
        Ok((self.sde.drift(x, t)? - (self.score.score(x, t)? * self.sde.beta(t))?)?)
    }

    /// The Euler-Maruyama method: a step from `t` to `t - h` is `x - h drift(x, t) + sqrt(h) g(t) z`.
    ///
    /// Its samples are those of the last time, noise and all; [`VpSde::denoised`] takes that out.
    ///
    /// # Shapes
    /// `x`, at `times[0]`, and the result, at the last of them: `[batch, ...]`. `times` falls within `(0, 1]`.
    ///
    /// # Errors
    /// If the times do not fall, the score or the noise fails, or a state stops being finite.
    pub fn euler_maruyama(&self, mut x: Tensor, times: &[f64], noise: &mut dyn NoiseSource) -> Result<Tensor> {
        check_times(times)?;
        for pair in times.windows(2) {
            let (t, h) = (pair[0], pair[0] - pair[1]);
            let mean = (&x - (self.drift(&x, t)? * h)?)?;
            x = (mean + (normal_like(noise, &x)? * (h.sqrt() * self.sde.diffusion(t)))?)?;
            x = finite(x, || format!("the Euler-Maruyama step from t = {t}"))?;
        }
        Ok(x)
    }
}

/// Times at which a reverse process may be evaluated, one after the other.
pub(super) fn check_times(times: &[f64]) -> Result<()> {
    let fix = "times must fall, above 0 and at most at 1, as VpSde::reverse_times makes them";
    if let Some(t) = times.iter().find(|t| !(**t > 0.0 && **t <= 1.0)) {
        return Err(Error::invalid("a time of the reverse SDE", t, fix));
    }
    if let Some(pair) = times.windows(2).find(|pair| pair[1] >= pair[0]) {
        return Err(Error::invalid(format!("the time after {} of the reverse SDE", pair[0]), pair[1], fix));
    }
    Ok(())
}
