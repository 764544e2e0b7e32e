//! Which of the training timesteps are visited (Lin et al. 2024, table 2).
//!
//! The integers are those that diffusers computes with numpy, rounding half to even included.

use crate::config::ConfigFields;
use crate::{Error, Result};

/// How `steps` timesteps are chosen from `0..train`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestepSpacing {
    /// Multiples of `train / steps`, from 0, plus `steps_offset`: never visits the noisiest timestep.
    Leading,
    /// Back from the noisiest timestep in strides of `train / steps`.
    ///
    /// Of some numbers of steps (61, 103 and 121 of 1000 are the first) numpy's `arange` makes one more, by rounding, whose timestep is -1:
    /// that one is left out here.
    Trailing,
    /// Evenly from the first to the last, both included.
    Linspace,
}

pub(super) const SPACINGS: [(&str, TimestepSpacing); 3] = [
    ("leading", TimestepSpacing::Leading),
    ("trailing", TimestepSpacing::Trailing),
    ("linspace", TimestepSpacing::Linspace),
];

impl TimestepSpacing {
    /// The spacing named in a scheduler's file.
    ///
    /// # Errors
    /// If the file names one that does not exist.
    pub fn from_config(config: &ConfigFields, default: Self) -> Result<Self> {
        config.choice("timestep_spacing", &SPACINGS, default)
    }

    /// The spacing with this name: "leading", "trailing" or "linspace".
    pub fn by_name(name: &str) -> Option<Self> {
        SPACINGS.iter().find(|(n, _)| *n == name).map(|&(_, spacing)| spacing)
    }

    /// The `steps` timesteps to visit out of `train`, noisiest first.
    ///
    /// # Errors
    /// If `steps` is 0 or more than `train`, or the offset leads past the last timestep.
    pub fn timesteps(self, train: usize, steps: usize, offset: usize) -> Result<Vec<usize>> {
        check_steps(train, steps)?;
        let rounded = |v: f64| v.round_ties_even() as usize;
        let timesteps: Vec<usize> = match self {
            Self::Leading => (0..steps).rev().map(|i| i * (train / steps) + offset).collect(),
            Self::Trailing => {
                // numpy's arange steps by the difference of its first two values, not by the step it was given.
                let start = train as f64;
                let stride = (start - start / steps as f64) - start;
                (0..steps).map(|i| rounded(start + i as f64 * stride) - 1).collect()
            }
            Self::Linspace => {
                let stride = (train - 1) as f64 / (steps - 1).max(1) as f64;
                (0..steps).rev().map(|i| rounded(i as f64 * stride)).collect()
            }
        };
        check_offset(train, steps, offset, timesteps[0])?;
        Ok(timesteps)
    }

    /// The same without rounding an even spacing to whole timesteps, for solvers that interpolate sigmas.
    ///
    /// # Errors
    /// As [`Self::timesteps`].
    pub fn fractional_timesteps(self, train: usize, steps: usize, offset: usize) -> Result<Vec<f64>> {
        check_steps(train, steps)?;
        if self == Self::Linspace {
            let stride = (train - 1) as f64 / (steps - 1).max(1) as f64;
            return Ok((0..steps).rev().map(|i| i as f64 * stride).collect());
        }
        Ok(self.timesteps(train, steps, offset)?.into_iter().map(|t| t as f64).collect())
    }

    /// The noisier ends of `steps` intervals of whole timesteps, of which only those below `last` are used:
    /// where the spacing leaves it, timestep 0 is the end of the last interval and is not visited.
    ///
    /// # Errors
    /// As [`Self::timesteps`].
    pub fn interval_timesteps(self, train: usize, last: usize, steps: usize, offset: usize) -> Result<Vec<f64>> {
        check_steps(train, steps)?;
        let timesteps: Vec<f64> = match self {
            Self::Leading => {
                let stride = last / (steps + 1);
                (1..=steps).rev().map(|i| (i * stride + offset) as f64).collect()
            }
            Self::Trailing => {
                let (start, step) = (last as f64, train as f64 / steps as f64);
                let stride = (start - step) - start;
                let count = (start / step).ceil() as usize;
                (0..count).map(|i| (start + i as f64 * stride).round_ties_even() - 1.0).collect()
            }
            Self::Linspace => {
                let stride = (last - 1) as f64 / steps as f64;
                (1..=steps).rev().map(|i| (i as f64 * stride).round_ties_even()).collect()
            }
        };
        check_offset(train, steps, offset, timesteps[0] as usize)?;
        Ok(timesteps)
    }
}

fn check_offset(train: usize, steps: usize, offset: usize, first: usize) -> Result<()> {
    if first < train {
        return Ok(());
    }
    let fix =
        format!("with {steps} steps it leads to timestep {first}, and the last is {}; take fewer steps", train - 1);
    Err(Error::invalid("steps_offset", offset, fix))
}

/// Checks a request's number of steps.
///
/// # Errors
/// If it is 0, or more than the number of training timesteps.
pub(super) fn check_steps(train: usize, steps: usize) -> Result<()> {
    if steps == 0 || steps > train {
        return Err(Error::invalid("the number of steps", steps, format!("take between 1 and {train}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every spacing visits exactly `steps` falling timesteps, whatever the division leaves over.
    #[test]
    fn as_many_as_asked_for_and_falling() -> Result<()> {
        for (name, spacing) in SPACINGS {
            for steps in 1..=1000 {
                let timesteps = spacing.timesteps(1000, steps, 0)?;
                assert_eq!(timesteps.len(), steps, "{name}");
                assert!(timesteps.windows(2).all(|w| w[0] > w[1]), "{name} {steps}: {timesteps:?}");
                assert!(timesteps[0] < 1000);
            }
        }
        Ok(())
    }

    #[test]
    fn ends_of_each_spacing() -> Result<()> {
        assert_eq!(TimestepSpacing::Leading.timesteps(1000, 4, 1)?, [751, 501, 251, 1]);
        assert_eq!(TimestepSpacing::Trailing.timesteps(1000, 4, 1)?, [999, 749, 499, 249]);
        assert_eq!(TimestepSpacing::Linspace.timesteps(1000, 4, 1)?, [999, 666, 333, 0]);
        Ok(())
    }

    #[test]
    fn intervals_leave_out_the_end() -> Result<()> {
        assert_eq!(TimestepSpacing::Leading.interval_timesteps(1000, 1000, 4, 1)?, [801.0, 601.0, 401.0, 201.0]);
        assert_eq!(TimestepSpacing::Trailing.interval_timesteps(1000, 1000, 4, 1)?, [999.0, 749.0, 499.0, 249.0]);
        assert_eq!(TimestepSpacing::Linspace.interval_timesteps(1000, 1000, 4, 1)?, [999.0, 749.0, 500.0, 250.0]);
        Ok(())
    }

    #[test]
    fn impossible_requests_are_refused() {
        let refused = |steps, offset| TimestepSpacing::Leading.timesteps(1000, steps, offset).is_err();
        assert!(refused(0, 0) && refused(1001, 0) && refused(1000, 1) && !refused(1000, 0));
    }
}
