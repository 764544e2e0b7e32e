//! DDPM: ancestral sampling from the posterior (Ho, Jain and Abbeel 2020).

use super::{Levels, NoiseSchedule, Run, Scheduler, SchedulerEntry, Solver};
use super::{Stochastic, TimestepSpacing, spacing};
use crate::config::ConfigFields;
use crate::denoising::Parameterization;
use crate::{Error, ErrorKind, NoiseLevel, Result};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "ddpm",
    label: "DDPM",
    class_name: "DDPMScheduler",
    order: 1,
    evaluations: 1,
    stochastic: Stochastic::Yes,
    reference: "Ho, Jain and Abbeel 2020, arXiv:2006.11239",
    suffixes: &[],
    request_fields: &[],
    preset: &[],
    build: |config| Ok(Box::new(Ddpm::from_config(config)?)),
};

/// Which variance the reverse step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VarianceType {
    /// The posterior's, `beta~_t` (equation 7).
    FixedSmall,
    /// The forward step's, `beta_t`.
    FixedLarge,
    /// The network's further channels are the logarithm of the variance.
    Learned,
    /// The network's further channels interpolate between the logarithms of `beta~_t` and `beta_t`
    /// (Nichol and Dhariwal 2021, equation 15).
    LearnedRange,
}

/// The `_log` names mean the same variance, computed through its logarithm.
const VARIANCE_TYPES: [(&str, VarianceType); 6] = [
    ("fixed_small", VarianceType::FixedSmall),
    ("fixed_small_log", VarianceType::FixedSmall),
    ("fixed_large", VarianceType::FixedLarge),
    ("fixed_large_log", VarianceType::FixedLarge),
    ("learned", VarianceType::Learned),
    ("learned_range", VarianceType::LearnedRange),
];

/// Whether a scheduler's file says that the network predicts a variance beside its output.
///
/// # Errors
/// If the file names a variance type that does not exist.
pub(super) fn learns_variance(config: &ConfigFields) -> Result<bool> {
    let variance_type = config.choice("variance_type", &VARIANCE_TYPES, VarianceType::FixedSmall)?;
    Ok(matches!(variance_type, VarianceType::Learned | VarianceType::LearnedRange))
}

/// A variance is never taken below this, so that it has a logarithm.
const SMALLEST_VARIANCE: f64 = 1e-20;

/// DDPM as diffusers' `DDPMScheduler` has it.
#[derive(Debug, Clone)]
pub struct Ddpm {
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    spacing: TimestepSpacing,
    steps_offset: usize,
    variance_type: VarianceType,
}

impl Ddpm {
    /// From the fields of a scheduler's file.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config(config: &ConfigFields) -> Result<Self> {
        let variance_type = config.choice("variance_type", &VARIANCE_TYPES, VarianceType::FixedSmall)?;
        let learned = learns_variance(config)?;
        Ok(Self {
            schedule: NoiseSchedule::from_config(config)?,
            parameterization: Parameterization::from_config(config, true)?.with_learned_variance(learned),
            spacing: TimestepSpacing::from_config(config, TimestepSpacing::Leading)?,
            steps_offset: config.usize("steps_offset", 0)?,
            variance_type,
        })
    }

    /// The variance of the reverse step.
    pub fn variance_type(&self) -> VarianceType {
        self.variance_type
    }
}

impl Scheduler for Ddpm {
    fn schedule(&self) -> Option<&NoiseSchedule> {
        Some(&self.schedule)
    }

    fn parameterization(&self) -> &Parameterization {
        &self.parameterization
    }

    fn levels(&self, steps: usize) -> Result<Levels> {
        let train = self.schedule.num_train_timesteps();
        spacing::check_steps(train, steps)?;
        let timesteps = self.spacing.timesteps(train, steps, self.steps_offset)?;
        let mut levels = timesteps.iter().map(|&t| self.schedule.level(t)).collect::<Result<Vec<_>>>()?;
        levels.push(NoiseLevel { timestep: 0.0, alpha: 1.0, sigma: 0.0 });
        Ok(Levels::chain(&levels, 1.0))
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(DdpmSolver { variance_type: self.variance_type })
    }
}

/// A draw from `q(x_s | x_t, x0)`, equations 6 and 7.
#[derive(Debug, Clone)]
pub struct DdpmSolver {
    /// The variance of the draw.
    pub variance_type: VarianceType,
}

impl Solver for DdpmSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let prediction = run.predict(x, &from)?;

        // The mean of q(x_s | x_t, x0), equation 7, for s any level below t.
        let alpha_step = (from.alpha / to.alpha).powi(2);
        let beta_step = 1.0 - alpha_step;
        let (from_variance, to_variance) = (from.sigma * from.sigma, to.sigma * to.sigma);
        let of_x0 = to.alpha * beta_step / from_variance;
        let of_x = alpha_step.sqrt() * to_variance / from_variance;
        let mean = ((prediction.x0 * of_x0)? + (x * of_x)?)?;
        if from.timestep == 0.0 {
            return Ok(mean);
        }

        let noise = run.noise_like(x)?;
        let small = (to_variance / from_variance * beta_step).max(SMALLEST_VARIANCE);
        let scaled = match (self.variance_type, prediction.variance) {
            (VarianceType::FixedSmall, _) => (noise * small.sqrt())?,
            (VarianceType::FixedLarge, _) => (noise * beta_step.sqrt())?,
            (VarianceType::Learned, Some(log_variance)) => (noise * (log_variance * 0.5)?.exp()?)?,
            (VarianceType::LearnedRange, Some(share)) => {
                let (low, high) = (small.ln(), beta_step.ln());
                let log_variance = share.affine((high - low) / 2.0, f64::midpoint(high, low))?;
                (noise * (log_variance * 0.5)?.exp()?)?
            }
            (VarianceType::Learned | VarianceType::LearnedRange, None) => {
                return Err(Error::unusable(
                    ErrorKind::Model,
                    "variance_type",
                    "learned",
                    "the network gives no variance channels; use fixed_small or fixed_large",
                ));
            }
        };
        Ok((mean + scaled)?)
    }
}
