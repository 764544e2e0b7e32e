//! Noise levels that a user lists instead of leaving them to a rule.

use super::final_sigma::falling;
use super::{Clock, Levels, NoiseLevel, Scheduler, SchedulerChoice, SigmaTable};
use crate::{Error, Result};

/// The levels at which steps start, noisiest first; the end after the last is the scheduler's own.
#[derive(Debug, Clone, PartialEq)]
pub enum LevelList {
    /// Training timesteps, fractions allowed.
    Timesteps(Vec<f64>),
    /// Noise over signal, `sigma / alpha`; a zero at the end stands for the end and makes no step.
    Sigmas(Vec<f64>),
}

impl LevelList {
    /// The number of steps that it makes.
    pub fn steps(&self) -> usize {
        self.starts().len()
    }

    fn starts(&self) -> &[f64] {
        match self {
            Self::Sigmas(list) if list.last() == Some(&0.0) => &list[..list.len() - 1],
            Self::Sigmas(list) | Self::Timesteps(list) => list,
        }
    }

    /// The levels of a run through the list, in the space that the scheduler's own levels have.
    ///
    /// # Errors
    /// If the list is empty, does not fall, or leads out of the model's range; or if the scheduler has steps
    /// of its own that a list cannot take the place of.
    pub fn levels(&self, choice: &SchedulerChoice, scheduler: &dyn Scheduler) -> Result<Levels> {
        let (what, starts) = match self {
            Self::Timesteps(_) => ("timesteps", self.starts()),
            Self::Sigmas(_) => ("sigmas", self.starts()),
        };
        let takes_lists = !choice.entry.suffixes.is_empty() || matches!(choice.entry.name, "ddim" | "ddpm");
        let Some(schedule) = scheduler.schedule().filter(|_| takes_lists) else {
            let fix = format!("{} chooses its own steps; leave the list of {what} away", choice.name());
            return Err(Error::invalid("the scheduler", choice.name(), fix));
        };
        let table = SigmaTable::new(schedule);
        self.check(what, starts, &table)?;

        // One step of the scheduler's own shows its space, its end and the scale of its start.
        let own = scheduler.levels(1)?;
        let sigma_space = own.from(0).alpha == 1.0;
        let level = |&start: &f64| {
            let (timestep, sigma) = match self {
                // A whole timestep is exactly the table's, pure noise included.
                Self::Timesteps(_) if !sigma_space && start.fract() == 0.0 => return table.level(start),
                Self::Timesteps(_) => (start, table.sigma(start)),
                Self::Sigmas(_) => (table.timestep(start), start),
            };
            let variance_preserving = NoiseLevel::from_sigma(timestep, sigma);
            Ok(if sigma_space { NoiseLevel { timestep, alpha: 1.0, sigma } } else { variance_preserving })
        };
        let mut levels = starts.iter().map(level).collect::<Result<Vec<NoiseLevel>>>()?;
        levels.push(own.to(0));
        falling(&levels)?;
        let init_noise_sigma = if sigma_space { levels[0].sigma } else { own.init_noise_sigma() };
        Ok(Levels::chain(&levels, init_noise_sigma).with_clock(Clock::Table(table)))
    }

    fn check(&self, what: &str, starts: &[f64], table: &SigmaTable) -> Result<()> {
        let show = || starts.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        if starts.is_empty() || !starts.windows(2).all(|pair| pair[0] > pair[1]) {
            return Err(Error::invalid(what, show(), "list them from the noisiest down, each once"));
        }
        let last = (table.num_train_timesteps() - 1) as f64;
        let (low, high) = match self {
            Self::Timesteps(_) => (0.0, last),
            Self::Sigmas(_) => (0.0, f64::MAX),
        };
        let outside =
            |value: &&f64| !(low..=high).contains(*value) || (matches!(self, Self::Sigmas(_)) && **value == 0.0);
        match starts.iter().find(outside) {
            Some(value) if matches!(self, Self::Timesteps(_)) => {
                Err(Error::invalid("a timestep", value, format!("the model was trained on timesteps 0 to {last}")))
            }
            Some(value) => Err(Error::invalid("a sigma", value, "sigmas are above 0, but for a 0 at the end")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::by_name;
    use super::*;
    use crate::config::ConfigFields;

    fn file() -> ConfigFields {
        ConfigFields::from_fields("scheduler", serde_json::Map::new()).with("beta_schedule", "scaled_linear")
    }

    fn levels(name: &str, list: &LevelList) -> Result<Levels> {
        let choice = by_name(name)?;
        list.levels(&choice, choice.build(&file())?.as_ref())
    }

    /// The levels that a rule chose, listed, are the same run.
    #[test]
    fn a_rule_written_out_is_the_rule() -> Result<()> {
        for name in ["euler", "euler-karras", "heun", "dpm++2m", "unipc"] {
            let own = by_name(name)?.build(&file())?.levels(7)?;
            let sigmas = (0..7).map(|i| own.from(i).sigma / own.from(i).alpha).chain([0.0]).collect();
            let listed = levels(name, &LevelList::Sigmas(sigmas))?;
            assert_eq!(listed.len(), 7);
            assert!((listed.init_noise_sigma() - own.init_noise_sigma()).abs() < 1e-9);
            for i in 0..7 {
                let (a, b) = (own.from(i), listed.from(i));
                assert!((a.sigma - b.sigma).abs() < 1e-9 && (a.alpha - b.alpha).abs() < 1e-9, "{name} {i}");
            }
            assert_eq!(own.to(6).sigma, listed.to(6).sigma);
        }
        let timesteps = by_name("ddim")?.build(&file())?.levels(5)?.timesteps();
        let listed = levels("ddim", &LevelList::Timesteps(timesteps.clone()))?;
        assert_eq!(listed.timesteps(), timesteps);
        Ok(())
    }

    #[test]
    fn impossible_lists_are_refused() {
        let refused = |name: &str, list: LevelList| levels(name, &list).is_err();
        assert!(refused("euler", LevelList::Sigmas(vec![])));
        assert!(refused("euler", LevelList::Sigmas(vec![0.0])));
        assert!(refused("euler", LevelList::Sigmas(vec![1.0, 2.0])));
        assert!(refused("euler", LevelList::Sigmas(vec![f64::NAN])));
        assert!(refused("ddim", LevelList::Timesteps(vec![1000.0, 1.0])));
        assert!(refused("pndm", LevelList::Timesteps(vec![900.0, 1.0])));
        assert!(refused("edm-euler", LevelList::Sigmas(vec![2.0])));
    }
}
