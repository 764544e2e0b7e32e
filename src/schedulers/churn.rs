//! Noise that a step adds before it removes more (Karras et al. 2022, section 4).

use super::Run;
use crate::config::ConfigFields;
use crate::{NoiseLevel, Result};
use candle_core::Tensor;

/// The parameters of the stochastic sampler of Karras et al. (2022), algorithm 2; without churn it is
/// deterministic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Churn {
    /// How much noise is added over a whole run, `S_churn`.
    pub churn: f64,
    /// Only from this sigma on, `S_tmin`.
    pub min: f64,
    /// Only up to this sigma, `S_tmax`.
    pub max: f64,
    /// The standard deviation of the added noise, `S_noise`.
    pub noise: f64,
}

/// The fields of a request that [`Churn::from_config`] reads.
pub(super) const CHURN_FIELDS: &[&str] = &["s_churn", "s_tmin", "s_tmax", "s_noise"];
/// The same with those of [`super::GivenLevels`].
pub(super) const CHURN_AND_GIVEN_FIELDS: &[&str] = &["s_churn", "s_tmin", "s_tmax", "s_noise", "timesteps", "sigmas"];

impl Default for Churn {
    fn default() -> Self {
        Self { churn: 0.0, min: 0.0, max: f64::INFINITY, noise: 1.0 }
    }
}

impl Churn {
    /// From the fields `s_churn`, `s_tmin`, `s_tmax` and `s_noise` of a request.
    ///
    /// # Errors
    /// If one is no number, or negative.
    pub fn from_config(config: &ConfigFields) -> Result<Self> {
        let number = |field: &str, default: f64| {
            let value = config.f64(field, default)?;
            if value >= 0.0 { Ok(value) } else { Err(config.wrong(field, "it must be 0 or more")) }
        };
        let none = Self::default();
        Ok(Self {
            churn: number("s_churn", none.churn)?,
            min: number("s_tmin", none.min)?,
            max: number("s_tmax", none.max)?,
            noise: number("s_noise", none.noise)?,
        })
    }

    /// Raises the state `x` to the level from which the step then goes down (lines 4 to 6).
    ///
    /// The network sees the raised state. diffusers' `step` gets the output for the state before, so with
    /// churn its noise is never removed; without churn both are the same.
    ///
    /// # Shapes
    /// `x` and the result: `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// If the noise source or the constraint fails.
    pub(super) fn raise(&self, x: &Tensor, level: &NoiseLevel, run: &mut Run<'_>) -> Result<(Tensor, NoiseLevel)> {
        let steps = run.levels().len().max(1) as f64;
        let gamma = (self.churn / steps).min(2f64.sqrt() - 1.0);
        if gamma == 0.0 || level.sigma < self.min || level.sigma > self.max {
            return Ok((x.clone(), *level));
        }
        let sigma = level.sigma * (1.0 + gamma);
        let added = self.noise * (sigma * sigma - level.sigma * level.sigma).sqrt();
        let raised = run.levels().between(level.alpha, sigma)?;
        let mut x = (x + (run.noise_like(x)? * added)?)?;
        run.constrain(&mut x, &raised)?;
        Ok((x, raised))
    }
}
