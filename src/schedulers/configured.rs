//! A scheduler put together from its parts.

use super::{Levels, NoiseSchedule, Scheduler, Solver};
use crate::denoising::Parameterization;
use crate::{NoiseLevel, Result};

/// A rule that chooses the noise levels of a run.
pub trait Discretization {
    /// The levels of a run of `steps` steps.
    ///
    /// # Errors
    /// If so many steps cannot be made.
    fn levels(&self, steps: usize) -> Result<Levels>;

    /// The training timestep with the noise of a level: what the network is told, unless that is something else.
    fn training_timestep(&self, level: &NoiseLevel) -> f64 {
        level.timestep
    }
}

/// A forward process, a parameterization, a discretization and a solver: one configured [`Scheduler`].
#[derive(Debug, Clone)]
pub struct Configured<D, S> {
    /// The forward process that the network was trained on.
    pub schedule: NoiseSchedule,
    /// What the network predicts.
    pub parameterization: Parameterization,
    /// Which levels are visited.
    pub discretization: D,
    /// The solver as it is before its first step; every request gets a copy.
    pub solver: S,
}

impl<D: Discretization, S: Solver + Clone + 'static> Scheduler for Configured<D, S> {
    fn schedule(&self) -> Option<&NoiseSchedule> {
        Some(&self.schedule)
    }

    fn levels(&self, steps: usize) -> Result<Levels> {
        self.discretization.levels(steps)
    }

    fn parameterization(&self) -> &Parameterization {
        &self.parameterization
    }

    fn noise_share(&self, level: &NoiseLevel) -> f64 {
        self.schedule.noise_share(self.discretization.training_timestep(level))
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(self.solver.clone())
    }
}
