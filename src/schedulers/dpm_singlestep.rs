//! DPM-Solver and DPM-Solver++ in blocks that start afresh (Lu et al. 2022 and 2023).

use super::GIVEN_FIELDS;
use super::dpm_multistep::curvature;
use super::exponential_integrator::{Interval, solver_order, step_noise};
use super::{AlgorithmType, Configured, LogSnrSpace, NoiseSchedule, RESPACED_LINSPACE, Run, ScheduleDefaults};
use super::{Scheduler, SchedulerEntry, Solver, SolverType, Stochastic};
use crate::Result;
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "dpm++2s",
    label: "DPM++ 2S",
    class_name: "DPMSolverSinglestepScheduler",
    order: 2,
    evaluations: 1,
    stochastic: Stochastic::Optional,
    reference: "Lu et al. 2023, algorithm 1, arXiv:2211.01095",
    suffixes: RESPACED_LINSPACE,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `DPMSolverSinglestepScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let schedule = NoiseSchedule::from_config_or(config, ScheduleDefaults::LINEAR)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::Threshold)?
        .with_learned_variance(super::ddpm::learns_variance(config)?);
    let discretization = LogSnrSpace::from_config(config, &schedule, false)?.linspace().clipped(config)?;
    let options = SinglestepOptions {
        order: solver_order(config)?,
        algorithm: AlgorithmType::from_config(config)?,
        solver_type: SolverType::from_config(config)?,
        lower_order_final: config.bool("lower_order_final", false)?,
    };
    if options.algorithm == AlgorithmType::SdeDpmSolver {
        return Err(config.wrong("algorithm_type", "the singlestep solver has \"sde-dpmsolver++\" for the SDE"));
    }
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: DpmSinglestepSolver::new(options) }))
}

/// Which of the singlestep methods, and how it ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SinglestepOptions {
    /// The number of evaluations in a block, 1 to 3, and its order.
    pub order: usize,
    /// The equation.
    pub algorithm: AlgorithmType,
    /// The weight of the difference in a second-order step; in a third-order one, whether there is a second
    /// difference.
    pub solver_type: SolverType,
    /// Whether the run ends in shorter blocks. It does so anyway where blocks do not fill the steps, or where
    /// the last step ends without noise.
    pub lower_order_final: bool,
}

impl Default for SinglestepOptions {
    /// DPM-Solver++(2S) that keeps its order to the end.
    fn default() -> Self {
        Self {
            order: 2,
            algorithm: AlgorithmType::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: false,
        }
    }
}

/// Blocks of `order` evaluations at consecutive levels, each block from the state it began with.
///
/// The levels of a run hold the inner levels of the blocks too, so a step is one evaluation, as in the
/// reference: the k-th of a block goes from the block's start to the next level with k predictions.
#[derive(Debug, Clone)]
pub struct DpmSinglestepSolver {
    options: SinglestepOptions,
    /// The state that the block began with.
    start: Option<Tensor>,
    /// The block's predictions, the first first.
    block: Vec<Tensor>,
}

impl DpmSinglestepSolver {
    /// A solver before its first block.
    pub fn new(options: SinglestepOptions) -> Self {
        Self { options, start: None, block: Vec::new() }
    }

    /// Which evaluation of its block step `i` of `steps` is, from 1.
    fn place(&self, i: usize, steps: usize, ends_without_noise: bool) -> usize {
        let order = self.options.order;
        let last = i + 1 == steps;
        let lower = self.options.lower_order_final || !steps.is_multiple_of(order) || ends_without_noise;
        match (order, steps % order, steps - i) {
            _ if last && ends_without_noise => 1,
            // The end is [1, 2, 1] or [1, 1] where whole blocks would fill the run.
            (2 | 3, 0, 1) if lower => 1,
            _ => i % order + 1,
        }
    }
}

impl Solver for DpmSinglestepSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let SinglestepOptions { algorithm, solver_type, .. } = self.options;
        let levels = run.levels();
        let (now, to) = (levels.from(i), levels.to(i));
        let prediction = algorithm.term(run.predict(x, &now)?, x, &now)?;
        let noise = step_noise(algorithm, x, run)?;
        let ends_without_noise = levels.to(levels.len() - 1).sigma == 0.0;
        if self.place(i, levels.len(), ends_without_noise) == 1 {
            self.block.clear();
        }
        if self.block.is_empty() {
            self.start = Some(x.clone());
        }
        self.block.push(prediction);

        let start = self.start.as_ref().unwrap_or(x);
        let first = i + 1 - self.block.len();
        let from = levels.from(first);
        let interval = Interval::new(algorithm, &from, &to);
        if interval.is_empty() {
            return Ok(x.clone());
        }
        let constant = (interval.constant(), &self.block[0]);
        // The change of the prediction per step, as the k-th evaluation after the first shows it.
        let place = |k: usize| (levels.from(first + k).half_log_snr() - from.half_log_snr()) / interval.h;
        let slope = |k: usize| -> Result<Tensor> { Ok(((&self.block[k] - &self.block[0])? / place(k))?) };
        match self.block.len() {
            1 => interval.advance(start, &[constant], noise.as_ref()),
            2 => {
                let slope = slope(1)?;
                interval.advance(start, &[constant, (interval.linear(solver_type), &slope)], noise.as_ref())
            }
            _ if solver_type == SolverType::Midpoint => {
                let slope = slope(2)?;
                interval.advance(start, &[constant, (interval.linear(SolverType::Heun), &slope)], noise.as_ref())
            }
            _ => {
                let (near, far) = (slope(1)?, slope(2)?);
                let (r1, r2) = (place(1), place(2));
                let second = ((&far - &near)? * (2.0 / (r2 - r1)))?;
                let slope = (((near * r2)? - (far * r1)?)? / (r2 - r1))?;
                let curvature = curvature(algorithm, &interval);
                let terms = [constant, (interval.linear(SolverType::Heun), &slope), (curvature, &second)];
                interval.advance(start, &terms, noise.as_ref())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fill_the_run_and_end_low() {
        let places = |order: usize, lower: bool, steps: usize, zero: bool| -> Vec<usize> {
            let options = SinglestepOptions { order, lower_order_final: lower, ..SinglestepOptions::default() };
            (0..steps).map(|i| DpmSinglestepSolver::new(options).place(i, steps, zero)).collect()
        };
        assert_eq!(places(2, false, 6, false), [1, 2, 1, 2, 1, 2]);
        assert_eq!(places(2, true, 6, false), [1, 2, 1, 2, 1, 1]);
        assert_eq!(places(2, false, 7, false), [1, 2, 1, 2, 1, 2, 1]);
        assert_eq!(places(3, false, 6, true), [1, 2, 3, 1, 2, 1]);
        assert_eq!(places(3, false, 6, false), [1, 2, 3, 1, 2, 3]);
        assert_eq!(places(3, false, 7, true), [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(places(3, false, 8, false), [1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(places(3, false, 8, true), [1, 2, 3, 1, 2, 3, 1, 1]);
        assert_eq!(places(1, false, 3, true), [1, 1, 1]);
    }
}
