//! The noise levels of one run.

use super::Clock;
use crate::{Error, NoiseLevel, Result};

/// The levels that a solver steps through: step `i` takes `x` from `from(i)` to `to(i)`.
///
/// `to(i)` is `from(i + 1)` up to the rounding of timesteps to integers, where the solver's reference
/// lands beside the next timestep.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    from: Vec<NoiseLevel>,
    to: Vec<NoiseLevel>,
    init_noise_sigma: f64,
    clock: Option<Clock>,
}

impl Levels {
    /// A chain: step `i` goes from `levels[i]` to `levels[i + 1]`. One level makes no step.
    ///
    /// `init_noise_sigma` is the standard deviation of the noise that the first state starts as.
    pub fn chain(levels: &[NoiseLevel], init_noise_sigma: f64) -> Self {
        let steps = levels.len().saturating_sub(1);
        Self {
            from: levels[..steps].to_vec(),
            to: levels[levels.len() - steps..].to_vec(),
            init_noise_sigma,
            clock: None,
        }
    }

    /// Steps given one by one, as pairs of where each starts and where it lands.
    pub fn steps(pairs: &[(NoiseLevel, NoiseLevel)], init_noise_sigma: f64) -> Self {
        let (from, to) = pairs.iter().copied().unzip();
        Self { from, to, init_noise_sigma, clock: None }
    }

    /// The same levels with the timesteps of those between them, which some solvers visit.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    /// The level between others with noise `sigma` and their signal `alpha`.
    ///
    /// # Errors
    /// If the levels came without a clock.
    pub fn between(&self, alpha: f64, sigma: f64) -> Result<NoiseLevel> {
        Ok(NoiseLevel { timestep: self.clock()?.timestep(sigma), alpha, sigma })
    }

    /// The variance-preserving level at a timestep, visited or not.
    ///
    /// # Errors
    /// If the levels came without a clock, or the model has no such timestep.
    pub fn at_timestep(&self, timestep: f64) -> Result<NoiseLevel> {
        self.clock()?.level(timestep)
    }

    fn clock(&self) -> Result<&Clock> {
        self.clock.as_ref().ok_or_else(|| {
            Error::invalid("the clock of the levels", "absent", "this solver visits others too; use Levels::with_clock")
        })
    }

    /// The number of steps.
    pub fn len(&self) -> usize {
        self.from.len()
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.from.is_empty()
    }

    /// Where step `i` starts.
    ///
    /// # Panics
    /// If there is no such step.
    pub fn from(&self, i: usize) -> NoiseLevel {
        self.from[i]
    }

    /// Where step `i` lands.
    ///
    /// # Panics
    /// If there is no such step.
    pub fn to(&self, i: usize) -> NoiseLevel {
        self.to[i]
    }

    /// The level that the state after step `i` is taken to have: the start of the next step, or the end.
    ///
    /// # Panics
    /// If there is no such step.
    pub fn after(&self, i: usize) -> NoiseLevel {
        self.from.get(i + 1).copied().unwrap_or(self.to[i])
    }

    /// The timesteps at which steps start, as the network is told them.
    pub fn timesteps(&self) -> Vec<f64> {
        self.from.iter().map(|level| level.timestep).collect()
    }

    /// The standard deviation of the pure noise that a run starts from.
    pub fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_between_need_a_clock() -> Result<()> {
        let ends = [NoiseLevel::from_sigma(9.0, 3.0), NoiseLevel::from_sigma(0.0, 0.1)];
        let levels = Levels::chain(&ends, 1.0);
        assert!(levels.between(1.0, 1.0).is_err() && levels.at_timestep(4.0).is_err());
        let levels = levels.with_clock(Clock::LogSigma { scale: 2.0 });
        assert!((levels.between(1.0, 3.0)?.timestep - 2.0 * 3f64.ln()).abs() < 1e-12);
        Ok(())
    }
}
