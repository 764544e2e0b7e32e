//! The levels of solvers in half log-SNR, `lambda = ln(alpha / sigma)`: the DPM-Solver family.

use super::sigma_space::GIVEN_AND_RESPACED;
use super::spacing::check_steps;
use super::{Clock, Discretization, FinalSigma, Levels, NoiseSchedule, Respacing, SigmaTable};
use super::{GivenLevels, StatedEnds, TimestepSpacing, falling};
use crate::config::ConfigFields;
use crate::{Error, NoiseLevel, Result};

/// How DPM-Solver, UniPC and DEIS choose levels: the ends of `steps` intervals of whole timesteps, or respaced
/// sigmas between the ends of the whole table, as variance-preserving levels.
#[derive(Debug, Clone)]
pub struct LogSnrSpace {
    pub(super) table: SigmaTable,
    pub(super) spacing: TimestepSpacing,
    pub(super) steps_offset: usize,
    /// Levels that the request lists itself.
    pub given: Option<GivenLevels>,
    /// One past the noisiest timestep in use.
    pub(super) last_timestep: usize,
    pub(super) respacing: Option<Respacing>,
    /// Where respaced sigmas start and end, if not at the table's ends; Lu's rule keeps to those.
    pub stated: StatedEnds,
    /// The level after the last step.
    pub final_sigma: FinalSigma,
    /// Whether a last level above no noise is that of the last step where sigmas are respaced, and not the table's first.
    pub holds_last: bool,
    /// Whether the timesteps of Karras's and Lu's rules are rounded; all others, and these otherwise, lose
    /// their fraction.
    pub rounds: bool,
}

impl LogSnrSpace {
    /// From `timestep_spacing`, `steps_offset`, `final_sigmas_type`, the flags of [`Respacing`], the ends that are stated for
    /// them and the lists of [`GivenLevels`].
    ///
    /// # Errors
    /// If a field has an unusable value, or the file describes a flow model.
    pub fn from_config(config: &ConfigFields, schedule: &NoiseSchedule, has_lu_lambdas: bool) -> Result<Self> {
        config.only("use_flow_sigmas", &[false.into()])?;
        Ok(Self {
            table: SigmaTable::new(schedule),
            spacing: TimestepSpacing::from_config(config, TimestepSpacing::Linspace)?,
            steps_offset: config.usize("steps_offset", 0)?,
            given: GivenLevels::from_config(config)?,
            last_timestep: schedule.num_train_timesteps(),
            respacing: Respacing::from_config(config, has_lu_lambdas)?,
            stated: StatedEnds::from_config(config)?,
            final_sigma: FinalSigma::from_config(config)?,
            holds_last: false,
            rounds: true,
        })
    }

    /// The same without the timesteps whose half log-SNR is below the file's `lambda_min_clipped`.
    ///
    /// # Errors
    /// If the field is no number, or nothing is left.
    pub fn clipped(self, config: &ConfigFields) -> Result<Self> {
        let bound = config.f64("lambda_min_clipped", f64::NEG_INFINITY)?;
        let last_timestep = self.table.num_train_timesteps() - self.table.count_below(bound);
        if last_timestep == 0 {
            return Err(config.wrong("lambda_min_clipped", "every timestep lies below it; -inf uses all of them"));
        }
        Ok(Self { last_timestep, ..self })
    }

    /// The same with evenly spaced timesteps, for a class that knows no other spacing.
    #[must_use]
    pub fn linspace(self) -> Self {
        Self { spacing: TimestepSpacing::Linspace, steps_offset: 0, ..self }
    }

    fn respaced(&self, respacing: Respacing, steps: usize) -> (Vec<f64>, Vec<f64>, Option<f64>) {
        let stated = if respacing == Respacing::Lu { StatedEnds::default() } else { self.stated };
        let (largest, smallest) = stated.or(self.table.sigma_max(), self.table.sigma_min());
        let sigmas = respacing.sigmas(largest, smallest, steps);
        let rounds = self.rounds && matches!(respacing, Respacing::Karras | Respacing::Lu);
        let timestep = |&sigma: &f64| {
            if rounds { self.table.timestep(sigma).round_ties_even() } else { self.table.timestep_cut(sigma) }
        };
        (sigmas.iter().map(timestep).collect(), sigmas, None)
    }
}

impl Discretization for LogSnrSpace {
    fn levels(&self, steps: usize) -> Result<Levels> {
        let train = self.table.num_train_timesteps();
        let (timesteps, sigmas, given_end) = match (&self.given, self.respacing) {
            (Some(_), Some(_)) => return Err(Error::invalid("timesteps or sigmas", "a list", GIVEN_AND_RESPACED)),
            (Some(given), None) => given.starts(&self.table, steps)?,
            (None, Some(respacing)) => {
                check_steps(train, steps)?;
                self.respaced(respacing, steps)
            }
            (None, None) => {
                let timesteps = self.spacing.interval_timesteps(train, self.last_timestep, steps, self.steps_offset)?;
                let sigmas = timesteps.iter().map(|&t| self.table.sigma(t)).collect();
                (timesteps, sigmas, None)
            }
        };
        let levels = timesteps.iter().zip(&sigmas).map(|(&t, &sigma)| NoiseLevel::from_sigma(t, sigma));
        let mut levels: Vec<NoiseLevel> = levels.collect();
        if given_end == Some(0.0) && self.final_sigma == FinalSigma::SigmaMin {
            let fix = "this scheduler is configured to end above no noise; end the list at its last sigma instead";
            return Err(Error::invalid("the last of sigmas", 0, fix));
        }
        let end = given_end.unwrap_or(match self.final_sigma {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin if self.holds_last && self.respacing.is_some() => sigmas[sigmas.len() - 1],
            FinalSigma::SigmaMin => self.table.sigma_min(),
        });
        levels.push(NoiseLevel::from_sigma(0.0, end));
        falling(&levels)?;
        Ok(Levels::chain(&levels, 1.0).with_clock(Clock::Table(self.table.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::BetaSchedule;

    fn space(spacing: &str, more: &[(&str, f64)]) -> Result<LogSnrSpace> {
        let schedule = NoiseSchedule::from_betas(&BetaSchedule::SquaredCosine.betas(0.0, 0.0, 1000))?;
        let mut config =
            ConfigFields::from_fields("scheduler", serde_json::Map::new()).with("timestep_spacing", spacing);
        for &(name, value) in more {
            config = config.with(name, value);
        }
        LogSnrSpace::from_config(&config, &schedule, false)?.clipped(&config)
    }

    #[test]
    fn clipping_drops_the_noisiest_timesteps_only() -> Result<()> {
        let whole = space("linspace", &[])?.levels(10)?;
        let clipped = space("linspace", &[("lambda_min_clipped", -5.1)])?.levels(10)?;
        assert_eq!(whole.timesteps()[0], 999.0);
        assert!(clipped.timesteps()[0] < 999.0);
        assert!(clipped.from(0).half_log_snr() >= -5.1);
        Ok(())
    }

    #[test]
    fn every_level_is_variance_preserving_and_less_noisy_than_the_one_before() -> Result<()> {
        for spacing in ["linspace", "leading", "trailing"] {
            let levels = space(spacing, &[])?.levels(25)?;
            assert_eq!(levels.len(), 25);
            for i in 0..25 {
                let (from, to) = (levels.from(i), levels.to(i));
                assert!((from.alpha.hypot(from.sigma) - 1.0).abs() < 1e-12);
                assert!(from.half_log_snr() < to.half_log_snr(), "{spacing} {i}");
            }
            assert_eq!(levels.to(24).sigma, 0.0);
        }
        Ok(())
    }

    /// More levels than whole timesteps would repeat some.
    #[test]
    fn repeated_levels_are_refused() -> Result<()> {
        assert!(space("linspace", &[])?.levels(1000).is_err());
        assert!(space("linspace", &[])?.levels(999).is_ok());
        assert!(space("linspace", &[("lambda_min_clipped", 0.0)])?.levels(900).is_err());
        assert!(space("leading", &[])?.levels(0).is_err());
        Ok(())
    }
}
