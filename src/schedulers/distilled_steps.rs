//! The levels of distilled models, which know only some timesteps.

use super::spacing::check_steps;
use super::{Clock, Discretization, Levels, NoiseSchedule, SigmaTable};
use crate::config::ConfigFields;
use crate::{Error, NoiseLevel, Result};

/// Some of the timesteps that a model was distilled on, then an end.
#[derive(Debug, Clone)]
pub struct DistilledSteps {
    schedule: NoiseSchedule,
    original_steps: usize,
    end: NoiseLevel,
}

impl DistilledSteps {
    /// From `original_inference_steps`, for runs that end at the level `end`.
    ///
    /// # Errors
    /// If the field is no whole number.
    pub fn from_config(config: &ConfigFields, schedule: &NoiseSchedule, end: NoiseLevel) -> Result<Self> {
        let original_steps = config.usize("original_inference_steps", 50)?;
        Ok(Self { schedule: schedule.clone(), original_steps, end })
    }
}

impl Discretization for DistilledSteps {
    fn levels(&self, steps: usize) -> Result<Levels> {
        let timesteps = distilled_timesteps(self.schedule.num_train_timesteps(), self.original_steps, steps)?;
        let mut levels = timesteps.iter().map(|&t| self.schedule.level(t)).collect::<Result<Vec<_>>>()?;
        levels.push(self.end);
        Ok(Levels::chain(&levels, 1.0).with_clock(Clock::Table(SigmaTable::new(&self.schedule))))
    }
}

/// The timesteps of a model distilled on `original_steps` even ones, of which it visits `steps` (Luo et al.
/// 2023, "Latent consistency models", section 4.3).
///
/// # Errors
/// If `steps` is 0 or more than `original_steps`, or those are more than `train`.
fn distilled_timesteps(train: usize, original_steps: usize, steps: usize) -> Result<Vec<usize>> {
    if original_steps == 0 || original_steps > train {
        return Err(Error::invalid("original_inference_steps", original_steps, format!("take between 1 and {train}")));
    }
    check_steps(original_steps, steps)?;
    let stride = train / original_steps;
    let skip = original_steps as f64 / steps as f64;
    Ok((0..steps).map(|i| (original_steps - (i as f64 * skip).floor() as usize) * stride - 1).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distilled_models_visit_a_subset() -> Result<()> {
        assert_eq!(distilled_timesteps(1000, 50, 4)?, [999, 759, 499, 259]);
        assert_eq!(distilled_timesteps(1000, 50, 50)?.last(), Some(&19));
        assert!(distilled_timesteps(1000, 50, 51).is_err() && distilled_timesteps(1000, 2000, 4).is_err());
        Ok(())
    }
}
