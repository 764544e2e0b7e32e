//! The forward process: the only place that makes betas.
//!
//! `q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)` with `abar_t = prod_{s <= t} (1 - beta_s)`
//! (Ho et al. 2020, equation 4).

use crate::config::ConfigFields;
use crate::{Error, NoiseLevel, Result};

/// How `beta_t` grows with `t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Evenly spaced (Ho et al. 2020).
    Linear,
    /// Evenly spaced square roots, squared (latent diffusion).
    ScaledLinear,
    /// `abar(t) = cos^2((t + 0.008) / 1.008 * pi / 2)`, betas at most 0.999 (Nichol and Dhariwal 2021,
    /// equation 17).
    SquaredCosine,
    /// A logistic curve from -6 to 6 (GeoDiff).
    Sigmoid,
    /// `abar(t) = exp(-12 t)`, betas at most 0.999.
    Exponential,
}

const BETA_SCHEDULES: [(&str, BetaSchedule); 5] = [
    ("linear", BetaSchedule::Linear),
    ("scaled_linear", BetaSchedule::ScaledLinear),
    ("squaredcos_cap_v2", BetaSchedule::SquaredCosine),
    ("sigmoid", BetaSchedule::Sigmoid),
    ("exp", BetaSchedule::Exponential),
];

impl BetaSchedule {
    /// The betas of `steps` training steps between `start` and `end` (which the cosine does not use).
    pub fn betas(self, start: f64, end: f64, steps: usize) -> Vec<f64> {
        let line = |from: f64, to: f64| {
            let last = steps.saturating_sub(1).max(1) as f64;
            (0..steps).map(move |i| from + (to - from) * i as f64 / last)
        };
        let following = |alpha_bar: fn(f64) -> f64| {
            let at = move |i: usize| alpha_bar(i as f64 / steps as f64);
            (0..steps).map(move |i| (1.0 - at(i + 1) / at(i)).min(0.999)).collect()
        };
        match self {
            Self::Linear => line(start, end).collect(),
            Self::ScaledLinear => line(start.sqrt(), end.sqrt()).map(|root| root * root).collect(),
            Self::SquaredCosine => following(|t| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2)),
            Self::Exponential => following(|t| (-12.0 * t).exp()),
            Self::Sigmoid => line(-6.0, 6.0).map(|z| start + (end - start) / (1.0 + (-z).exp())).collect(),
        }
    }
}

/// What a class takes for the fields of the forward process that a file does not state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScheduleDefaults {
    /// `beta_schedule`.
    pub beta_schedule: BetaSchedule,
    /// `beta_start`.
    pub beta_start: f64,
    /// `beta_end`.
    pub beta_end: f64,
    /// Whether the class has the field `rescale_betas_zero_snr`, which is false by default.
    pub zero_terminal_snr: bool,
}

impl ScheduleDefaults {
    /// The betas of Ho et al. (2020), as most classes have them.
    pub const LINEAR: Self =
        Self { beta_schedule: BetaSchedule::Linear, beta_start: 0.0001, beta_end: 0.02, zero_terminal_snr: false };

    /// Evenly spaced betas between the ends of latent diffusion.
    pub const LATENT_LINEAR: Self = Self { beta_start: 0.00085, beta_end: 0.012, ..Self::LINEAR };

    /// The betas of latent diffusion.
    pub const LATENT: Self = Self { beta_schedule: BetaSchedule::ScaledLinear, ..Self::LATENT_LINEAR };

    /// The same for a class that has `rescale_betas_zero_snr`.
    #[must_use]
    pub const fn with_zero_terminal_snr(mut self) -> Self {
        self.zero_terminal_snr = true;
        self
    }
}

/// `abar_t` for every training timestep, in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    alphas_cumprod: Vec<f64>,
}

impl NoiseSchedule {
    /// From betas, which must lie in `[0, 1]`; a beta of 1 ends in pure noise (zero terminal SNR).
    ///
    /// # Errors
    /// If there are none, or one is out of range.
    pub fn from_betas(betas: &[f64]) -> Result<Self> {
        if let Some(beta) = betas.iter().find(|b| !(**b >= 0.0 && **b <= 1.0)) {
            return Err(Error::invalid("a beta of the noise schedule", beta, "betas lie between 0 and 1"));
        }
        if betas.is_empty() {
            return Err(Error::invalid("num_train_timesteps", 0, "a schedule needs at least one step"));
        }
        let alphas_cumprod = betas.iter().scan(1.0, |product, beta| {
            *product *= 1.0 - beta;
            Some(*product)
        });
        Ok(Self { alphas_cumprod: alphas_cumprod.collect() })
    }

    /// From a scheduler's file: `trained_betas`, or `beta_schedule`, `beta_start`, `beta_end` and
    /// `num_train_timesteps`; then `rescale_betas_zero_snr`. The defaults are those of DDPM and DDIM.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config(config: &ConfigFields) -> Result<Self> {
        Self::from_config_or(config, ScheduleDefaults::LINEAR.with_zero_terminal_snr())
    }

    /// The same with the defaults of a class.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config_or(config: &ConfigFields, defaults: ScheduleDefaults) -> Result<Self> {
        let kind = config.choice("beta_schedule", &BETA_SCHEDULES, defaults.beta_schedule)?;
        let betas = match config.list("trained_betas")? {
            Some(betas) if config.usize("num_train_timesteps", betas.len())? != betas.len() => {
                return Err(config.wrong("num_train_timesteps", format!("trained_betas has {} values", betas.len())));
            }
            Some(betas) => betas,
            None => kind.betas(
                config.f64("beta_start", defaults.beta_start)?,
                config.f64("beta_end", defaults.beta_end)?,
                config.usize("num_train_timesteps", 1000)?,
            ),
        };
        let schedule = Self::from_betas(&betas)?;
        let rescaled = defaults.zero_terminal_snr && config.bool("rescale_betas_zero_snr", false)?;
        Ok(if rescaled { schedule.with_zero_terminal_snr() } else { schedule })
    }

    /// Shifts and scales `sqrt(abar)` so that the last timestep is pure noise and the first is unchanged
    /// (Lin et al. 2024, algorithm 1).
    #[must_use]
    pub fn with_zero_terminal_snr(mut self) -> Self {
        let first = self.alphas_cumprod[0].sqrt();
        let last = self.alphas_cumprod[self.alphas_cumprod.len() - 1].sqrt();
        if first > last {
            for abar in &mut self.alphas_cumprod {
                *abar = ((abar.sqrt() - last) * first / (first - last)).powi(2);
            }
        }
        self
    }

    /// The number of training timesteps.
    pub fn num_train_timesteps(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// `abar_t` by timestep, falling.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// `beta_t = 1 - abar_t / abar_{t-1}` by timestep.
    pub fn betas(&self) -> Vec<f64> {
        let previous = std::iter::once(&1.0).chain(&self.alphas_cumprod);
        self.alphas_cumprod.iter().zip(previous).map(|(abar, before)| 1.0 - abar / before).collect()
    }

    /// How far a timestep is from the first to the last, 0 to 1.
    pub(super) fn noise_share(&self, timestep: f64) -> f64 {
        timestep / (self.num_train_timesteps() - 1).max(1) as f64
    }

    /// The variance-preserving level at a training timestep.
    ///
    /// # Errors
    /// If the timestep is not below `num_train_timesteps`.
    pub fn level(&self, timestep: usize) -> Result<NoiseLevel> {
        let abar = self.alphas_cumprod.get(timestep).ok_or_else(|| {
            Error::invalid(
                "a timestep",
                timestep,
                format!(
                    "the model was trained on timesteps 0 to {}; take fewer steps or a smaller steps_offset",
                    self.num_train_timesteps() - 1
                ),
            )
        })?;
        Ok(NoiseLevel::variance_preserving(timestep as f64, *abar))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_betas_follow_their_alpha_bar_until_the_cap() -> Result<()> {
        let schedule = NoiseSchedule::from_betas(&BetaSchedule::SquaredCosine.betas(0.0, 0.0, 1000))?;
        let closed = |t: f64| ((t / 1000.0 + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
        for t in [0, 1, 250, 500, 998] {
            let expected = closed(t as f64 + 1.0) / closed(0.0);
            assert!((schedule.alphas_cumprod()[t] - expected).abs() < 1e-12, "{t}");
        }
        assert!((schedule.betas()[999] - 0.999).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn zero_terminal_snr_keeps_the_first_step_and_ends_in_pure_noise() -> Result<()> {
        let plain = NoiseSchedule::from_betas(&BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000))?;
        let zero = plain.clone().with_zero_terminal_snr();
        assert_eq!(zero.alphas_cumprod()[999], 0.0);
        assert!((zero.alphas_cumprod()[0] - plain.alphas_cumprod()[0]).abs() < 1e-15);
        assert!(zero.alphas_cumprod().windows(2).all(|w| w[1] < w[0]));
        Ok(())
    }

    #[test]
    fn betas_survive_the_way_through_alphas_cumprod() -> Result<()> {
        for kind in [BetaSchedule::Linear, BetaSchedule::ScaledLinear, BetaSchedule::Sigmoid] {
            let betas = kind.betas(0.0001, 0.02, 1000);
            let again = NoiseSchedule::from_betas(&betas)?.betas();
            assert!(betas.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-12), "{kind:?}");
            assert!((betas[0] - 0.0001).abs() < 1e-4 && (betas[999] - 0.02).abs() < 1e-4, "{kind:?}");
        }
        Ok(())
    }

    #[test]
    fn a_beta_out_of_range_is_refused() {
        assert!(NoiseSchedule::from_betas(&[0.1, 1.5]).is_err());
        assert!(NoiseSchedule::from_betas(&[f64::NAN]).is_err());
        assert!(NoiseSchedule::from_betas(&[]).is_err());
    }
}
