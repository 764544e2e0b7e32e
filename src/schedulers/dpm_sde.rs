//! DPM-Solver++ for the SDE with an evaluation in the middle of each step.

use super::GIVEN_FIELDS;
use super::euler_ancestral::ancestral_split;
use super::{Configured, NoiseSchedule, RESPACED, Run, ScheduleDefaults, Scheduler};
use super::{Levels, SchedulerEntry, SigmaSpace, Solver, Stochastic};
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use crate::{NoiseLevel, Result};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpm++sde",
    label: "DPM++ SDE",
    class_name: "DPMSolverSDEScheduler",
    order: 1,
    evaluations: 2,
    stochastic: Stochastic::Yes,
    reference: "k-diffusion's sample_dpmpp_sde, after Lu et al. 2023, arXiv:2211.01095",
    suffixes: RESPACED,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `DPMSolverSDEScheduler`, but for its random numbers.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let schedule = NoiseSchedule::from_config_or(config, ScheduleDefaults::LATENT_LINEAR)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::None)?;
    let discretization = SigmaSpace::from_config(config, &schedule)?.respaced(config)?.with_own_ends_of_karras();
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: DpmSdeSolver }))
}

/// An ancestral step to the middle of the step, then one over the whole with the prediction made there. A step
/// to zero noise is Euler's and draws none.
///
/// Both steps ride on one Brownian path in sigma. diffusers takes the path from torchsde's tree, whose numbers
/// are its own; here every half of a step is a draw of the request's noise source, so the distribution is the
/// same and a seed's picture is not. The levels have one alpha and a clock.
#[derive(Debug, Clone, Default)]
pub struct DpmSdeSolver;

impl Solver for DpmSdeSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let prediction = run.predict(x, &from)?;
        if to.sigma == 0.0 {
            return Ok((x - (prediction.epsilon * from.sigma)?)?);
        }
        let middle = run.levels().between(from.alpha, (from.sigma * to.sigma).sqrt())?;
        let upper = run.noise_like(x)?;
        let mut halfway = ancestral_step(x, &prediction.x0, &from, &middle, &upper)?;
        run.constrain(&mut halfway, &middle)?;
        let prediction = run.predict(&halfway, &middle)?;

        let share = (from.sigma - middle.sigma) / (from.sigma - to.sigma);
        let path = ((upper * share.sqrt())? + (run.noise_like(x)? * (1.0 - share).sqrt())?)?;
        ancestral_step(x, &prediction.x0, &from, &to, &path)
    }

    fn evaluations(&self, i: usize, levels: &Levels) -> usize {
        if levels.to(i).sigma == 0.0 { 1 } else { 2 }
    }
}

/// Towards `x0` until the lower part of `to` is left, then noise back up.
fn ancestral_step(x: &Tensor, x0: &Tensor, from: &NoiseLevel, to: &NoiseLevel, noise: &Tensor) -> Result<Tensor> {
    let (down, up) = ancestral_split(from.sigma, to.sigma);
    let decay = down / from.sigma;
    let lower = ((x * decay)? + (x0 * (from.alpha * (1.0 - decay)))?)?;
    Ok((lower + (noise * up)?)?)
}
