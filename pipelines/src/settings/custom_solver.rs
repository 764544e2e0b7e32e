//! A solver that is none of the library's.

use std::fmt;
use std::sync::Arc;
use tweedie::denoising::Parameterization;
use tweedie::schedulers::{Levels, NoiseSchedule, Scheduler, Solver};
use tweedie::{NoiseLevel, Result};

/// How a solver is made, and what it is called.
#[derive(Clone)]
pub struct CustomSolver {
    name: String,
    make: Arc<dyn Fn() -> Box<dyn Solver> + Send + Sync>,
}

impl fmt::Debug for CustomSolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CustomSolver").field("name", &self.name).finish_non_exhaustive()
    }
}

impl CustomSolver {
    pub fn new(name: &str, make: impl Fn() -> Box<dyn Solver> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), make: Arc::new(make) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A scheduler with its own solver replaced.
    pub fn over(&self, scheduler: Box<dyn Scheduler>) -> Box<dyn Scheduler> {
        Box::new(WithSolver { scheduler, solver: self.clone() })
    }
}

struct WithSolver {
    scheduler: Box<dyn Scheduler>,
    solver: CustomSolver,
}

impl Scheduler for WithSolver {
    fn schedule(&self) -> Option<&NoiseSchedule> {
        self.scheduler.schedule()
    }

    fn levels(&self, steps: usize) -> Result<Levels> {
        self.scheduler.levels(steps)
    }

    fn parameterization(&self) -> &Parameterization {
        self.scheduler.parameterization()
    }

    fn noise_share(&self, level: &NoiseLevel) -> f64 {
        self.scheduler.noise_share(level)
    }

    fn solver(&self) -> Box<dyn Solver> {
        (self.solver.make)()
    }
}
