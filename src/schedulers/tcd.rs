//! Trajectory consistency distillation (Zheng et al. 2024).

use super::{Configured, DistilledSteps, NoiseSchedule, Run, ScheduleDefaults, Scheduler, SchedulerEntry};
use super::{Solver, Stochastic};
use crate::Result;
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "tcd",
    label: "TCD",
    class_name: "TCDScheduler",
    order: 1,
    evaluations: 1,
    stochastic: Stochastic::Optional,
    reference: "Zheng et al. 2024, algorithm 4, arXiv:2402.19159",
    suffixes: &[],
    request_fields: &["eta"],
    preset: &[],
    build,
};

/// As diffusers' `TCDScheduler`, which has fields for limits on the clean sample and does not use them.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let defaults = ScheduleDefaults::LATENT.with_zero_terminal_snr();
    let schedule = NoiseSchedule::from_config_or(config, defaults)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::None)?;
    let discretization = DistilledSteps::from_config(config, &schedule, schedule.level(0)?)?;
    let eta = config.f64("eta", 0.3)?;
    if !(0.0..=1.0).contains(&eta) {
        return Err(config.wrong("eta", "it must lie between 0 (deterministic) and 1"));
    }
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: TcdSolver { eta } }))
}

/// Strategic stochastic sampling: down to timestep `(1 - eta) t` of the next level's `t`, then noise back up.
///
/// The last step draws no noise. The levels have a clock.
#[derive(Debug, Clone)]
pub struct TcdSolver {
    /// The share of the way that is taken by noise, `gamma` in the paper.
    pub eta: f64,
}

impl Solver for TcdSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let levels = run.levels();
        let (from, to) = (levels.from(i), levels.to(i));
        let lower = levels.at_timestep(((1.0 - self.eta) * to.timestep).floor())?;
        let prediction = run.predict(x, &from)?;
        let down = lower.add_noise(&prediction.x0, &prediction.epsilon)?;
        if self.eta == 0.0 || i + 1 == levels.len() {
            return Ok(down);
        }
        let signal = to.alpha / lower.alpha;
        let noise = (1.0 - signal * signal).max(0.0).sqrt();
        Ok(((down * signal)? + (run.noise_like(x)? * noise)?)?)
    }
}
