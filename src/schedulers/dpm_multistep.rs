//! DPM-Solver and DPM-Solver++ with the predictions of past steps (Lu et al. 2022 and 2023).

use super::GIVEN_FIELDS;
use super::exponential_integrator::{Interval, check_order, solver_order, step_noise};
use super::{AlgorithmType, Configured, LogSnrSpace, NoiseSchedule, RESPACED_OR_LU, Run, ScheduleDefaults};
use super::{Scheduler, SchedulerEntry, Setting, Solver, SolverType, Stochastic};
use crate::Result;
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use candle_core::Tensor;
use std::collections::VecDeque;

pub(super) const ENTRY_2M: SchedulerEntry = SchedulerEntry {
    name: "dpm++2m",
    label: "DPM++ 2M",
    class_name: "DPMSolverMultistepScheduler",
    order: 2,
    evaluations: 1,
    stochastic: Stochastic::Optional,
    reference: "Lu et al. 2023, algorithm 2, arXiv:2211.01095",
    suffixes: RESPACED_OR_LU,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

pub(super) const ENTRY_2M_SDE: SchedulerEntry = SchedulerEntry {
    name: "dpm++2m-sde",
    label: "DPM++ 2M SDE",
    order: 1,
    stochastic: Stochastic::Yes,
    reference: "Lu et al. 2023, equation 18, arXiv:2211.01095",
    preset: &[("algorithm_type", Setting::Name("sde-dpmsolver++"))],
    ..ENTRY_2M
};

pub(super) const ENTRY_3M: SchedulerEntry =
    SchedulerEntry { name: "dpm++3m", label: "DPM++ 3M", preset: &[("solver_order", Setting::Whole(3))], ..ENTRY_2M };

/// As diffusers' `DPMSolverMultistepScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let defaults = ScheduleDefaults::LINEAR.with_zero_terminal_snr();
    let schedule = NoiseSchedule::from_config_or(config, defaults)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::Threshold)?
        .with_learned_variance(super::ddpm::learns_variance(config)?);
    let cosine = config.fields().get("beta_schedule").is_some_and(|kind| kind == "squaredcos_cap_v2");
    let discretization =
        LogSnrSpace { rounds: !cosine, ..LogSnrSpace::from_config(config, &schedule, true)?.clipped(config)? };
    let options = MultistepOptions {
        order: solver_order(config)?,
        algorithm: AlgorithmType::from_config(config)?,
        solver_type: SolverType::from_config(config)?,
        lower_order_final: config.bool("lower_order_final", true)?,
        euler_at_final: config.bool("euler_at_final", false)?,
    };
    check_order(options.algorithm, options.order)?;
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: DpmMultistepSolver::new(options) }))
}

/// Which of the multistep methods, and how it ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultistepOptions {
    /// 1 to 3; the first steps have fewer predictions and so a lower order.
    pub order: usize,
    /// The equation.
    pub algorithm: AlgorithmType,
    /// The weight of a second-order step's difference.
    pub solver_type: SolverType,
    /// Whether the last two steps of a run of fewer than 15 fall back to orders 2 and 1.
    pub lower_order_final: bool,
    /// Whether the last step is always of first order.
    pub euler_at_final: bool,
}

impl Default for MultistepOptions {
    /// DPM-Solver++(2M) that keeps its order to the end.
    fn default() -> Self {
        Self {
            order: 2,
            algorithm: AlgorithmType::DpmSolverPlusPlus,
            solver_type: SolverType::Midpoint,
            lower_order_final: false,
            euler_at_final: false,
        }
    }
}

/// Runs of this many steps or more keep their order to the end.
pub(super) const LOWER_ORDER_BELOW: usize = 15;

/// The predictions of the last steps make a polynomial in lambda, extrapolated over the next.
#[derive(Debug, Clone)]
pub struct DpmMultistepSolver {
    options: MultistepOptions,
    /// Predictions, the newest first.
    past: VecDeque<Tensor>,
}

impl DpmMultistepSolver {
    /// A solver without history.
    pub fn new(options: MultistepOptions) -> Self {
        Self { options, past: VecDeque::new() }
    }

    /// The order of step `i` of `steps`.
    fn order(&self, i: usize, steps: usize, ends_without_noise: bool) -> usize {
        let o = &self.options;
        let short = o.lower_order_final && steps < LOWER_ORDER_BELOW;
        let limit = match steps - i {
            1 if short || o.euler_at_final || ends_without_noise => 1,
            2 if short => 2,
            _ => o.order,
        };
        limit.min(o.order).min(self.past.len())
    }
}

impl Solver for DpmMultistepSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let MultistepOptions { algorithm, solver_type, .. } = self.options;
        let levels = run.levels();
        let (from, to) = (levels.from(i), levels.to(i));
        self.past.push_front(algorithm.term(run.predict(x, &from)?, x, &from)?);
        self.past.truncate(self.options.order);
        let noise = step_noise(algorithm, x, run)?;

        let interval = Interval::new(algorithm, &from, &to);
        if interval.is_empty() {
            return Ok(x.clone());
        }
        let order = self.order(i, levels.len(), to.sigma == 0.0);
        let newest = (interval.constant(), &self.past[0]);
        // Back to the k-th level before this one, in units of the step.
        let back = |k: usize| (levels.from(i + 1 - k).half_log_snr() - levels.from(i - k).half_log_snr()) / interval.h;
        if order == 1 {
            return interval.advance(x, &[newest], noise.as_ref());
        }
        let r0 = back(1);
        let first = ((&self.past[0] - &self.past[1])? / r0)?;
        if order == 2 {
            return interval.advance(x, &[newest, (interval.linear(solver_type), &first)], noise.as_ref());
        }
        let r1 = back(2);
        let before = ((&self.past[1] - &self.past[2])? / r1)?;
        // Half the second derivative; its weight is that of the whole, in the reference as in the authors' code.
        // So the third-order step is exact for lines only, and the method's order is 2, with a smaller error.
        let second = ((&first - before)? / (r0 + r1))?;
        let slope = (first + (&second * r0)?)?;
        let terms = [newest, (interval.linear(SolverType::Heun), &slope), (curvature(algorithm, &interval), &second)];
        interval.advance(x, &terms, noise.as_ref())
    }
}

/// The weight of the second difference in a third-order step.
///
/// For the SDE the reference has the half of [`Interval::quadratic`] with the other sign, and pictures follow
/// it. That weight does not vanish with the step, so what it multiplies, the noise of the last predictions,
/// biases the samples however many steps there are; order 2 does not have it.
pub(super) fn curvature(algorithm: AlgorithmType, interval: &Interval) -> f64 {
    match algorithm {
        AlgorithmType::SdeDpmSolverPlusPlus => interval.quadratic() + 1.0,
        _ => interval.quadratic(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_rise_with_the_history_and_fall_at_the_end() {
        let orders = |options: MultistepOptions, steps: usize, zero: bool| -> Vec<usize> {
            let mut solver = DpmMultistepSolver::new(options);
            let one = Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu);
            let mut step = |i| {
                solver.past.extend(one.as_ref().ok().cloned());
                solver.past.truncate(options.order);
                solver.order(i, steps, zero && i + 1 == steps)
            };
            (0..steps).map(&mut step).collect()
        };
        let third = MultistepOptions { order: 3, lower_order_final: true, ..MultistepOptions::default() };
        assert_eq!(orders(third, 6, false), [1, 2, 3, 3, 2, 1]);
        assert_eq!(orders(third, 15, false)[13..], [3, 3]);
        assert_eq!(orders(third, 15, true)[13..], [3, 1]);
        let free = MultistepOptions::default();
        assert_eq!(orders(free, 5, false), [1, 2, 2, 2, 2]);
        assert_eq!(orders(MultistepOptions { euler_at_final: true, ..free }, 5, false), [1, 2, 2, 2, 1]);
    }
}
