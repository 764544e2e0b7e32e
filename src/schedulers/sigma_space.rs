//! The levels of solvers in sigma space, where `x = x0 + sigma * epsilon`.

use super::spacing::check_steps;
use super::{Clock, Discretization, FinalSigma, Levels, NoiseSchedule, Respacing, SigmaTable};
use super::{GivenLevels, StatedEnds, TimestepSpacing, falling};
use crate::config::ConfigFields;
use crate::{Error, NoiseLevel, Result};

/// How Euler, Heun, LMS and their kin choose levels: `steps` training timesteps, fractions allowed, their
/// sigmas or respaced ones between the same ends, then the end.
#[derive(Debug, Clone)]
pub struct SigmaSpace {
    pub(super) table: SigmaTable,
    pub(super) spacing: TimestepSpacing,
    pub(super) steps_offset: usize,
    /// Levels that the request lists itself.
    pub given: Option<GivenLevels>,
    /// A rule in the place of the timesteps' own sigmas.
    pub respacing: Option<Respacing>,
    /// Where respaced sigmas start and end, if not at the timesteps' own.
    pub stated: StatedEnds,
    /// The level after the last step.
    pub final_sigma: FinalSigma,
    /// Whether the timesteps of Karras's sigmas are rounded.
    pub rounds_karras: bool,
    /// Whether sigmas are even in their logarithm over the whole table, with no level after it.
    pub log_linear: bool,
    /// Whether the network is told `ln(sigma) / 4`.
    pub continuous: bool,
}

/// What to do about a list together with a rule.
pub(super) const GIVEN_AND_RESPACED: &str =
    "the scheduler's file or name respaces sigmas as well; use a scheduler without such an ending, or no list";

impl SigmaSpace {
    /// From `timestep_spacing`, `steps_offset` and the lists of [`GivenLevels`]; everything else as most classes
    /// have it.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config(config: &ConfigFields, schedule: &NoiseSchedule) -> Result<Self> {
        Ok(Self {
            table: SigmaTable::new(schedule),
            spacing: TimestepSpacing::from_config(config, TimestepSpacing::Linspace)?,
            steps_offset: config.usize("steps_offset", 0)?,
            given: GivenLevels::from_config(config)?,
            respacing: None,
            stated: StatedEnds::default(),
            final_sigma: FinalSigma::Zero,
            rounds_karras: false,
            log_linear: false,
            continuous: false,
        })
    }

    /// The same, respaced if the file says so, between the ends that it states.
    ///
    /// # Errors
    /// If the file asks for two rules, or an end is no number above 0.
    pub fn respaced(self, config: &ConfigFields) -> Result<Self> {
        let respacing = Respacing::from_config(config, false)?;
        Ok(Self { respacing, stated: StatedEnds::from_config(config)?, ..self })
    }

    /// The same for a class whose Karras sigmas run between the timesteps' own whatever the file states: LMS and DPM++ SDE.
    #[must_use]
    pub fn with_own_ends_of_karras(self) -> Self {
        let karras = self.respacing == Some(Respacing::Karras);
        Self { stated: if karras { StatedEnds::default() } else { self.stated }, ..self }
    }

    /// Timesteps and sigmas where steps start, and the end if it is not the scheduler's.
    fn chosen(&self, steps: usize) -> Result<(Vec<f64>, Vec<f64>, Option<f64>)> {
        let train = self.table.num_train_timesteps();
        check_steps(train, steps)?;
        let timesteps = self.spacing.fractional_timesteps(train, steps, self.steps_offset)?;
        let sigmas: Vec<f64> = timesteps.iter().map(|&t| self.table.sigma(t)).collect();
        let Some(respacing) = self.respacing else {
            if !self.log_linear {
                return Ok((timesteps, sigmas, None));
            }
            let mut sigmas = Respacing::Exponential.sigmas(self.table.sigma_max(), self.table.sigma_min(), steps + 1);
            let end = sigmas.pop();
            return Ok((timesteps, sigmas, end));
        };
        let (largest, smallest) = self.stated.or(sigmas[0], sigmas[steps - 1]);
        let sigmas = respacing.sigmas(largest, smallest, steps);
        let rounds = self.rounds_karras && respacing == Respacing::Karras;
        let timestep = |&sigma: &f64| {
            let timestep = self.table.timestep(sigma);
            if rounds { timestep.round_ties_even() } else { timestep }
        };
        Ok((sigmas.iter().map(timestep).collect(), sigmas, None))
    }

    fn clock(&self) -> Clock {
        if self.continuous { Clock::LogSigma { scale: 0.25 } } else { Clock::Table(self.table.clone()) }
    }
}

impl Discretization for SigmaSpace {
    fn levels(&self, steps: usize) -> Result<Levels> {
        let (timesteps, sigmas, end) = match &self.given {
            Some(given) if self.respacing.is_none() => given.starts(&self.table, steps)?,
            Some(_) => return Err(Error::invalid("timesteps or sigmas", "a list", GIVEN_AND_RESPACED)),
            None => self.chosen(steps)?,
        };
        let timesteps = match self.continuous {
            true => sigmas.iter().map(|&sigma| self.clock().timestep(sigma)).collect(),
            false => timesteps,
        };
        let end = end.unwrap_or(match self.final_sigma {
            FinalSigma::Zero => 0.0,
            FinalSigma::SigmaMin => self.table.sigma_min(),
        });
        let at = |(&timestep, &sigma): (&f64, &f64)| NoiseLevel { timestep, alpha: 1.0, sigma };
        let mut levels: Vec<NoiseLevel> = timesteps.iter().zip(&sigmas).map(at).collect();
        levels.push(NoiseLevel { timestep: 0.0, alpha: 1.0, sigma: end });
        let largest = sigmas[0];
        let init_noise_sigma = match self.spacing {
            TimestepSpacing::Leading => largest.hypot(1.0),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => largest,
        };
        falling(&levels)?;
        Ok(Levels::chain(&levels, init_noise_sigma).with_clock(self.clock()))
    }

    fn training_timestep(&self, level: &NoiseLevel) -> f64 {
        if self.continuous { self.table.timestep(level.sigma / level.alpha) } else { level.timestep }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::BetaSchedule;

    fn space(fields: &[(&str, &str)]) -> Result<SigmaSpace> {
        let schedule = NoiseSchedule::from_betas(&BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000))?;
        let empty = ConfigFields::from_fields("scheduler", serde_json::Map::new());
        let config = fields.iter().fold(empty, |config, &(name, value)| config.with(name, value));
        SigmaSpace::from_config(&config, &schedule)
    }

    /// Leading timesteps do not reach the noisiest one, so there the start has the data's variance too.
    #[test]
    fn the_start_has_the_noise_of_the_first_level() -> Result<()> {
        for (spacing, data_variance) in [("linspace", 0.0), ("trailing", 0.0), ("leading", 1.0)] {
            let levels = space(&[("timestep_spacing", spacing)])?.levels(10)?;
            let variance = levels.from(0).sigma.powi(2) + data_variance;
            assert!((levels.init_noise_sigma().powi(2) - variance).abs() < 1e-9, "{spacing}");
            assert_eq!(levels.to(9).sigma, 0.0);
        }
        Ok(())
    }

    /// Whether the network is told timesteps or logarithms of sigma.
    #[test]
    fn training_timesteps_are_those_of_the_noise() -> Result<()> {
        let (told, continuous) = (space(&[])?, SigmaSpace { continuous: true, ..space(&[])? });
        let (told_levels, levels) = (told.levels(7)?, continuous.levels(7)?);
        for i in 0..7 {
            let (expected, level) = (told_levels.from(i), levels.from(i));
            assert_eq!(told.training_timestep(&expected), expected.timestep);
            let got = continuous.training_timestep(&level.scaled(level.input_scale()));
            assert!((got - expected.timestep).abs() < 0.3, "{i}: {got} for {}", expected.timestep);
        }
        Ok(())
    }

    #[test]
    fn log_linear_sigmas_end_at_the_tables_first() -> Result<()> {
        let levels = SigmaSpace { log_linear: true, ..space(&[])? }.levels(5)?;
        let ratio = |i: usize| levels.to(i).sigma / levels.from(i).sigma;
        assert!((0..5).all(|i| (ratio(i) - ratio(0)).abs() < 1e-12));
        assert!((levels.to(4).sigma - space(&[])?.table.sigma_min()).abs() < 1e-12);
        Ok(())
    }

    /// Respaced levels tell the network the timestep at which training had that noise.
    #[test]
    fn timesteps_follow_the_sigmas() -> Result<()> {
        let space = SigmaSpace { respacing: Some(Respacing::Karras), ..space(&[])? };
        let levels = space.levels(9)?;
        for i in 0..9 {
            let level = levels.from(i);
            let t = level.timestep;
            assert!(space.table.sigma(t.floor()) <= level.sigma + 1e-9, "{i}");
            assert!(space.table.sigma(t.ceil()) >= level.sigma - 1e-9, "{i}");
            assert!((levels.between(1.0, level.sigma)?.timestep - t).abs() < 1e-12);
        }
        Ok(())
    }
}
