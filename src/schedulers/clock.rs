//! Which timestep a network is told at a noise level that no training timestep has.

use super::SigmaTable;
use crate::{NoiseLevel, Result};

/// The relation between noise and the timestep that the network is told.
///
/// A solver that evaluates between two levels asks the run's levels, which hold one of these, so it needs
/// to know nothing of the model's schedule.
#[derive(Debug, Clone, PartialEq)]
pub enum Clock {
    /// Training timesteps; between them the logarithm of sigma is linear.
    Table(SigmaTable),
    /// `timestep = scale * ln(sigma)`: 1/4 for EDM (Karras et al. 2022, table 1, `c_noise`); -1 makes the
    /// timestep half the log-SNR.
    LogSigma {
        /// The factor of the logarithm.
        scale: f64,
    },
}

impl Clock {
    /// The timestep at which noise over signal is `sigma`, not always whole.
    pub fn timestep(&self, sigma: f64) -> f64 {
        match self {
            Self::Table(table) => table.timestep(sigma),
            Self::LogSigma { scale } => scale * sigma.ln(),
        }
    }

    /// The variance-preserving level at a timestep.
    ///
    /// # Errors
    /// If the timestep is not one of the table's.
    pub fn level(&self, timestep: f64) -> Result<NoiseLevel> {
        match self {
            Self::Table(table) => table.level(timestep),
            Self::LogSigma { scale } => Ok(NoiseLevel::from_sigma(timestep, (timestep / scale).exp())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_clock_goes_both_ways() -> Result<()> {
        let clock = Clock::LogSigma { scale: 0.25 };
        let level = clock.level(clock.timestep(3.7))?;
        assert!((level.sigma / level.alpha - 3.7).abs() < 1e-12);
        assert!((level.alpha.powi(2) + level.sigma.powi(2) - 1.0).abs() < 1e-12);
        Ok(())
    }
}
