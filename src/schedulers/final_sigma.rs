//! The level after the last step.

use crate::config::ConfigFields;
use crate::{Error, NoiseLevel, Result};

/// How much noise is left at the end, `final_sigmas_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalSigma {
    /// None.
    Zero,
    /// As much as at the first training timestep.
    SigmaMin,
}

impl FinalSigma {
    /// What a scheduler's file says; zero by default.
    ///
    /// # Errors
    /// If it names something else.
    pub fn from_config(config: &ConfigFields) -> Result<Self> {
        let choices = [("zero", Self::Zero), ("sigma_min", Self::SigmaMin)];
        config.choice("final_sigmas_type", &choices, Self::Zero)
    }
}

/// Checks that every step but the last, which may stay where it is, loses noise.
///
/// # Errors
/// If two levels are alike: there are more steps than levels to visit.
pub(super) fn falling(levels: &[NoiseLevel]) -> Result<()> {
    let steps = levels.len().saturating_sub(1);
    let noise = |level: &NoiseLevel| level.sigma / level.alpha;
    let stuck = |w: &[NoiseLevel]| noise(&w[0]) <= noise(&w[1]);
    let repeated = levels[..steps].windows(2).any(stuck);
    let rising = levels[steps.saturating_sub(1)..].windows(2).any(|w| noise(&w[0]) < noise(&w[1]));
    if repeated || rising {
        return Err(Error::invalid(
            "the number of steps",
            steps,
            "so many steps visit one noise level twice with this timestep spacing; take fewer",
        ));
    }
    Ok(())
}
