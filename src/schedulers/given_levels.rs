//! Noise levels that a request lists itself.

use super::SigmaTable;
use crate::config::ConfigFields;
use crate::{Error, Result};

/// The fields of a request that [`GivenLevels::from_config`] reads.
pub(super) const GIVEN_FIELDS: &[&str] = &["timesteps", "sigmas"];

/// The levels of a run, one by one, in the place of a spacing.
#[derive(Debug, Clone, PartialEq)]
pub enum GivenLevels {
    /// Where steps start, in training timesteps; the end is the scheduler's.
    Timesteps(Vec<f64>),
    /// Noise over signal where steps start, and at the end.
    Sigmas(Vec<f64>),
}

impl GivenLevels {
    /// From the field `timesteps` or `sigmas` of a request.
    ///
    /// # Errors
    /// If both are there, or one is no falling list of usable numbers.
    pub fn from_config(config: &ConfigFields) -> Result<Option<Self>> {
        let falling = |values: &[f64]| !values.is_empty() && values.windows(2).all(|w| w[0] > w[1]);
        match (config.list("timesteps")?, config.list("sigmas")?) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => Err(config.wrong("timesteps", "`sigmas` are given as well; give one of them")),
            (Some(list), None) if falling(&list) && list.iter().all(|&t| t >= 0.0) => Ok(Some(Self::Timesteps(list))),
            (None, Some(list)) if falling(&list) && list.len() > 1 && list.iter().all(|&s| s >= 0.0) => {
                Ok(Some(Self::Sigmas(list)))
            }
            (Some(_), None) => Err(config.wrong("timesteps", "they must fall, and none may be below 0")),
            (None, Some(_)) => {
                Err(config.wrong("sigmas", "they must fall to 0 or above; the last is where the run ends"))
            }
        }
    }

    /// How many steps they make.
    pub fn steps(&self) -> usize {
        match self {
            Self::Timesteps(list) => list.len(),
            Self::Sigmas(list) => list.len() - 1,
        }
    }

    /// Timesteps and sigmas where steps start, and the sigma of the end if it is given.
    ///
    /// # Errors
    /// If `steps` is another number, or a timestep is past the last.
    pub(super) fn starts(&self, table: &SigmaTable, steps: usize) -> Result<(Vec<f64>, Vec<f64>, Option<f64>)> {
        if steps != self.steps() {
            let fix = format!("the list of levels makes {}; leave the number of steps away", self.steps());
            return Err(Error::invalid("the number of steps", steps, fix));
        }
        match self {
            Self::Timesteps(list) => {
                let last = table.num_train_timesteps() - 1;
                if list[0] > last as f64 {
                    return Err(Error::invalid("timesteps", list[0], format!("the model's last timestep is {last}")));
                }
                Ok((list.clone(), list.iter().map(|&t| table.sigma(t)).collect(), None))
            }
            Self::Sigmas(list) => {
                let (starts, end) = (list[..steps].to_vec(), list[steps]);
                Ok((starts.iter().map(|&sigma| table.timestep(sigma)).collect(), starts, Some(end)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_must_fall() {
        let read = |name: &str, list: &[f64]| {
            let config = ConfigFields::from_fields("scheduler", serde_json::Map::new()).with(name, list.to_vec());
            GivenLevels::from_config(&config)
        };
        assert!(read("timesteps", &[999.0, 500.0]).is_ok_and(|given| given.is_some_and(|g| g.steps() == 2)));
        assert!(read("sigmas", &[14.0, 1.0, 0.0]).is_ok_and(|given| given.is_some_and(|g| g.steps() == 2)));
        for list in [&[1.0, 2.0][..], &[2.0, 2.0], &[], &[1.0, -1.0]] {
            assert!(read("timesteps", list).is_err() && read("sigmas", list).is_err(), "{list:?}");
        }
        assert!(read("sigmas", &[1.0]).is_err());
    }
}
