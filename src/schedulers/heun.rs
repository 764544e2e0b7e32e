//! Heun's second-order method on the probability-flow ODE (Karras et al. 2022, algorithm 1).

use super::GIVEN_FIELDS;
use super::{Churn, Configured, NoiseSchedule, RESPACED, Run, ScheduleDefaults, Scheduler, SchedulerEntry};
use super::{Levels, SigmaSpace, Solver, Stochastic};
use crate::Result;
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "heun",
    label: "Heun",
    class_name: "HeunDiscreteScheduler",
    order: 2,
    evaluations: 2,
    stochastic: Stochastic::No,
    reference: "Karras et al. 2022, algorithm 1, arXiv:2206.00364",
    suffixes: RESPACED,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `HeunDiscreteScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let schedule = NoiseSchedule::from_config_or(config, ScheduleDefaults::LATENT_LINEAR)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::Clip { by_default: false })?;
    let discretization = SigmaSpace::from_config(config, &schedule)?.respaced(config)?;
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: HeunSolver::default() }))
}

/// The mean of the slopes at both ends of a step; a step to zero noise has one end and is Euler's.
///
/// With churn this is algorithm 2. The levels have one alpha.
#[derive(Debug, Clone, Default)]
pub struct HeunSolver {
    /// The noise added before each step.
    pub churn: Churn,
}

impl Solver for HeunSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let (x, from) = self.churn.raise(x, &from, run)?;
        let h = to.sigma - from.sigma;
        let slope = run.predict(&x, &from)?.noise_left(&x, &from)?;
        let mut ahead = (&x + (&slope * h)?)?;
        if to.sigma == 0.0 {
            return Ok(ahead);
        }
        run.constrain(&mut ahead, &to)?;
        let slope_ahead = run.predict(&ahead, &to)?.noise_left(&ahead, &to)?;
        Ok((x + ((slope + slope_ahead)? * (h / 2.0))?)?)
    }

    fn evaluations(&self, i: usize, levels: &Levels) -> usize {
        if levels.to(i).sigma == 0.0 { 1 } else { 2 }
    }
}
