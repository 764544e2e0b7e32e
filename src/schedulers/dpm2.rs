//! DPM-Solver-2 in sigma space: a midpoint step (Karras et al. 2022's notation for Lu et al. 2022).

use super::GIVEN_FIELDS;
use super::{Configured, NoiseSchedule, RESPACED, Run, ScheduleDefaults, Scheduler, SchedulerEntry};
use super::{Levels, SigmaSpace, Solver, Stochastic};
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use crate::{NoiseLevel, Result};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpm2",
    label: "DPM2",
    class_name: "KDPM2DiscreteScheduler",
    order: 2,
    evaluations: 2,
    stochastic: Stochastic::No,
    reference: "Lu et al. 2022, algorithm 1, arXiv:2206.00927, as in k-diffusion",
    suffixes: RESPACED,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `KDPM2DiscreteScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    with_solver(config, Dpm2Solver)
}

/// The fields that both of diffusers' KDPM2 classes have, with a solver.
pub(super) fn with_solver<S: Solver + Clone + 'static>(config: &ConfigFields, solver: S) -> Result<Box<dyn Scheduler>> {
    let schedule = NoiseSchedule::from_config_or(config, ScheduleDefaults::LATENT_LINEAR)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::None)?;
    let space = SigmaSpace::from_config(config, &schedule)?.respaced(config)?;
    let discretization = SigmaSpace { rounds_karras: true, ..space };
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver }))
}

/// The slope at the geometric mean of `from` and `sigma`, where the slope at `from` leads.
///
/// Known parts are put back with the noise of `to`, where the whole step ends, as diffusers' inpainting does. (In
/// an ancestral step with `eta` 1 that is the mean itself.)
pub(super) fn slope_halfway(
    x: &Tensor,
    slope: &Tensor,
    [from, to]: [&NoiseLevel; 2],
    sigma: f64,
    run: &Run<'_>,
) -> Result<Tensor> {
    let middle = run.levels().between(from.alpha, (from.sigma * sigma).sqrt())?;
    let mut halfway = (x + (slope * (middle.sigma - from.sigma))?)?;
    run.constrain(&mut halfway, to)?;
    Ok(run.predict(&halfway, &middle)?.epsilon)
}

/// A step with the slope at its middle, which is the geometric mean of both sigmas; a step to zero noise is
/// Euler's.
///
/// The levels have one alpha and a clock.
#[derive(Debug, Clone, Default)]
pub struct Dpm2Solver;

impl Solver for Dpm2Solver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let slope = run.predict(x, &from)?.epsilon;
        if to.sigma == 0.0 {
            return Ok((x - (slope * from.sigma)?)?);
        }
        let slope = slope_halfway(x, &slope, [&from, &to], to.sigma, run)?;
        Ok((x + (slope * (to.sigma - from.sigma))?)?)
    }

    fn evaluations(&self, i: usize, levels: &Levels) -> usize {
        if levels.to(i).sigma == 0.0 { 1 } else { 2 }
    }
}
