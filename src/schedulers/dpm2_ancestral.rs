//! DPM-Solver-2 with ancestral noise.

use super::dpm2::{slope_halfway, with_solver};
use super::euler_ancestral::ancestral_split;
use super::{GIVEN_FIELDS, Levels, RESPACED, Run, Scheduler, SchedulerEntry, Solver, Stochastic};
use crate::Result;
use crate::config::ConfigFields;
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpm2-a",
    label: "DPM2 a",
    class_name: "KDPM2AncestralDiscreteScheduler",
    order: 1,
    evaluations: 2,
    stochastic: Stochastic::Yes,
    reference: "k-diffusion's sample_dpm_2_ancestral, after Lu et al. 2022, arXiv:2206.00927",
    suffixes: RESPACED,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `KDPM2AncestralDiscreteScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    with_solver(config, Dpm2AncestralSolver)
}

/// The midpoint step of DPM-Solver-2 to the lower of the two parts of an ancestral step, then noise. A step
/// to zero noise is Euler's and draws none.
///
/// The levels have one alpha and a clock.
#[derive(Debug, Clone, Default)]
pub struct Dpm2AncestralSolver;

impl Solver for Dpm2AncestralSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let slope = run.predict(x, &from)?.epsilon;
        if to.sigma == 0.0 {
            return Ok((x - (slope * from.sigma)?)?);
        }
        let (down, up) = ancestral_split(from.sigma, to.sigma);
        let slope = slope_halfway(x, &slope, [&from, &to], down, run)?;
        let lower = (x + (slope * (down - from.sigma))?)?;
        Ok((lower + (run.noise_like(x)? * up)?)?)
    }

    fn evaluations(&self, i: usize, levels: &Levels) -> usize {
        if levels.to(i).sigma == 0.0 { 1 } else { 2 }
    }
}
