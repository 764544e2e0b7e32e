//! The levels of solvers in sigma space, where `x = x0 + sigma * epsilon`.

use super::spacing::check_steps;
use super::{Clock, Discretization, FinalSigma, Levels, NoiseLevel, NoiseSchedule, Respacing, SigmaTable};
use super::{TimestepSpacing, falling};
use crate::Result;
use crate::config::ConfigFields;

/// How Euler, Heun, LMS and their kin choose levels: `steps` training timesteps, fractions allowed, their
/// sigmas or respaced ones between the same ends, then the end.
#[derive(Debug, Clone)]
pub struct SigmaSpace {
    pub(super) table: SigmaTable,
    pub(super) spacing: TimestepSpacing,
    pub(super) steps_offset: usize,
    /// A rule in the place of the timesteps' own sigmas.
    pub respacing: Option<Respacing>,
    /// Respaced sigmas start here, if set.
    pub sigma_max: Option<f64>,
    /// Respaced sigmas end here, if set.
    pub sigma_min: Option<f64>,
    /// The level after the last step.
    pub final_sigma: FinalSigma,
    /// Whether the timesteps of Karras's sigmas are rounded.
    pub rounds_karras: bool,
    /// Whether sigmas are even in their logarithm over the whole table, with no level after it.
    pub log_linear: bool,
    /// Whether the network is told `ln(sigma) / 4`.
    pub continuous: bool,
}

impl SigmaSpace {
    /// From `timestep_spacing` and `steps_offset`; everything else as most classes have it.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config(config: &ConfigFields, schedule: &NoiseSchedule) -> Result<Self> {
        Ok(Self {
            table: SigmaTable::new(schedule),
            spacing: TimestepSpacing::from_config(config, TimestepSpacing::Linspace)?,
            steps_offset: config.usize("steps_offset", 0)?,
            respacing: None,
            sigma_max: None,
            sigma_min: None,
            final_sigma: FinalSigma::Zero,
            rounds_karras: false,
            log_linear: false,
            continuous: false,
        })
    }

    /// The same, respaced if the file says so.
    ///
    /// # Errors
    /// If the file asks for two rules.
    pub fn respaced(self, config: &ConfigFields) -> Result<Self> {
        Ok(Self { respacing: Respacing::from_config(config, false)?, ..self })
    }

    fn clock(&self) -> Clock {
        if self.continuous { Clock::LogSigma { scale: 0.25 } } else { Clock::Table(self.table.clone()) }
    }
}

impl Discretization for SigmaSpace {
    fn levels(&self, steps: usize) -> Result<Levels> {
        let train = self.table.num_train_timesteps();
        check_steps(train, steps)?;
        let mut timesteps = self.spacing.fractional_timesteps(train, steps, self.steps_offset)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| self.table.sigma(t)).collect();
        if let Some(respacing) = self.respacing {
            let (largest, smallest) = (sigmas[0], sigmas[steps - 1]);
            sigmas = respacing.sigmas(self.sigma_max.unwrap_or(largest), self.sigma_min.unwrap_or(smallest), steps);
            timesteps = sigmas.iter().map(|&sigma| self.table.timestep(sigma)).collect();
            if self.rounds_karras && respacing == Respacing::Karras {
                timesteps = timesteps.into_iter().map(f64::round_ties_even).collect();
            }
        } else if self.log_linear {
            sigmas = Respacing::Exponential.sigmas(self.table.sigma_max(), self.table.sigma_min(), steps + 1);
        }
        if self.continuous {
            timesteps = sigmas.iter().map(|&sigma| self.clock().timestep(sigma)).collect();
        }
        let end = match (self.log_linear && self.respacing.is_none(), self.final_sigma) {
            (true, _) => sigmas[steps],
            (false, FinalSigma::Zero) => 0.0,
            (false, FinalSigma::SigmaMin) => self.table.sigma_min(),
        };
        let at = |(&timestep, &sigma): (&f64, &f64)| NoiseLevel { timestep, alpha: 1.0, sigma };
        let mut levels: Vec<NoiseLevel> = timesteps.iter().zip(&sigmas).take(steps).map(at).collect();
        levels.push(NoiseLevel { timestep: 0.0, alpha: 1.0, sigma: end });
        let largest = sigmas[0];
        let init_noise_sigma = match self.spacing {
            TimestepSpacing::Leading => largest.hypot(1.0),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => largest,
        };
        falling(&levels)?;
        Ok(Levels::chain(&levels, init_noise_sigma).with_clock(self.clock()))
    }
}
