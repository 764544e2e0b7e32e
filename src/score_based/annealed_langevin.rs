//! Langevin dynamics from high noise to low, without any notion of time.

use super::{NoiseConditionalScore, finite, normal_like};
use crate::noise::NoiseSource;
use crate::{Error, Result};
use candle_core::Tensor;

/// Annealed Langevin dynamics (Song and Ermon 2019, algorithm 1): at each of the noise levels `sigma_i`, from
/// the highest to the lowest `sigma_L`, `T` steps
///
/// ```text
/// x <- x + alpha_i / 2 score(x, sigma_i) + sqrt(alpha_i) z,    alpha_i = epsilon sigma_i^2 / sigma_L^2.
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct AnnealedLangevin {
    sigmas: Vec<f64>,
    step_size: f64,
    steps_per_level: usize,
}

impl AnnealedLangevin {
    /// Over `sigmas`, with `epsilon = step_size` and `T = steps_per_level`.
    ///
    /// On a Gaussian of variance `v` the stationary variance is `v / (1 - epsilon / (4 v))`, so `epsilon` is to
    /// be small beside the variance of the data's finest detail; the paper has 2e-5 and `T = 100`.
    ///
    /// # Errors
    /// If there are no sigmas, they are not positive or do not fall, or `step_size` is not positive.
    pub fn new(sigmas: Vec<f64>, step_size: f64, steps_per_level: usize) -> Result<Self> {
        let positive = sigmas.iter().all(|sigma| *sigma > 0.0 && sigma.is_finite());
        if sigmas.is_empty() || !positive || sigmas.windows(2).any(|pair| pair[1] >= pair[0]) {
            let fix = "they must be positive and fall";
            return Err(Error::invalid("the sigmas of annealed Langevin dynamics", format!("{sigmas:?}"), fix));
        }
        if !(step_size > 0.0 && step_size.is_finite()) {
            return Err(Error::invalid("the step size of Langevin dynamics", step_size, "it must be positive"));
        }
        Ok(Self { sigmas, step_size, steps_per_level })
    }

    /// Over `levels` sigmas that fall geometrically from `sigma_max` to `sigma_min`, as in the paper.
    ///
    /// # Errors
    /// As [`AnnealedLangevin::new`].
    pub fn geometric(
        sigma_max: f64,
        sigma_min: f64,
        levels: usize,
        step_size: f64,
        steps_per_level: usize,
    ) -> Result<Self> {
        let last = levels.saturating_sub(1).max(1) as f64;
        let sigma = |i: usize| sigma_max * (sigma_min / sigma_max).powf(i as f64 / last);
        Self::new((0..levels).map(sigma).collect(), step_size, steps_per_level)
    }

    /// The noise levels, falling.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// Runs it.
    ///
    /// # Shapes
    /// `x`, spread about as wide as data at the highest level, and the result, at the lowest: `[batch, ...]`.
    ///
    /// # Errors
    /// If the score or the noise fails, or a state stops being finite.
    pub fn sample(
        &self,
        score: &dyn NoiseConditionalScore,
        mut x: Tensor,
        noise: &mut dyn NoiseSource,
    ) -> Result<Tensor> {
        let sigma_min = self.sigmas[self.sigmas.len() - 1];
        for &sigma in &self.sigmas {
            let alpha = self.step_size * (sigma / sigma_min).powi(2);
            for _ in 0..self.steps_per_level {
                let drift = (score.noise_conditional_score(&x, sigma)? * (0.5 * alpha))?;
                let diffusion = (normal_like(noise, &x)? * alpha.sqrt())?;
                x = ((x + drift)? + diffusion)?;
            }
            x = finite(x, || format!("Langevin dynamics at sigma = {sigma}"))?;
        }
        Ok(x)
    }
}
