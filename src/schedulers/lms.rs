//! Linear multistep: Adams-Bashforth on uneven sigmas.

use super::GIVEN_FIELDS;
use super::{Configured, NoiseSchedule, RESPACED, Run, ScheduleDefaults, Scheduler};
use super::{SchedulerEntry, SigmaSpace, Solver, Stochastic};
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use crate::{NoiseLevel, Result};
use candle_core::Tensor;
use std::collections::VecDeque;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "lms",
    label: "LMS",
    class_name: "LMSDiscreteScheduler",
    order: 4,
    evaluations: 1,
    stochastic: Stochastic::No,
    reference: "k-diffusion's sample_lms; Hairer, Norsett and Wanner, Solving ODEs I, III.5",
    suffixes: RESPACED,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `LMSDiscreteScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let schedule = NoiseSchedule::from_config_or(config, ScheduleDefaults::LINEAR)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::None)?;
    let discretization = SigmaSpace::from_config(config, &schedule)?.respaced(config)?.with_own_ends_of_karras();
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: LmsSolver::default() }))
}

/// Integrates the polynomial through the last four slopes over a step.
///
/// A run that starts in the middle weighs what slopes it has as if those before were there too, which is
/// what the reference does. The levels have one alpha.
#[derive(Debug, Clone, Default)]
pub struct LmsSolver {
    /// The slopes of past steps, the newest first.
    slopes: VecDeque<Tensor>,
}

/// How many slopes are kept.
const ORDER: usize = 4;

impl Solver for LmsSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let levels = run.levels();
        let (from, to) = (levels.from(i), levels.to(i));
        self.slopes.push_front(run.predict(x, &from)?.epsilon);
        self.slopes.truncate(ORDER);
        let past: Vec<NoiseLevel> = (0..ORDER.min(i + 1)).map(|k| levels.from(i - k)).collect();
        let mut next = x.clone();
        for (k, slope) in self.slopes.iter().enumerate() {
            next = (next + (slope * integrated_basis(&past, k, from.sigma, to.sigma))?)?;
        }
        Ok(next)
    }
}

/// The integral over sigma of the Lagrange polynomial that is 1 at level `k` and 0 at the others. Two
/// Gauss points are exact up to third degree.
fn integrated_basis(nodes: &[NoiseLevel], k: usize, start: f64, end: f64) -> f64 {
    let basis = |sigma: f64| -> f64 {
        let others = nodes.iter().enumerate().filter(|(j, _)| *j != k);
        others.map(|(_, node)| (sigma - node.sigma) / (nodes[k].sigma - node.sigma)).product()
    };
    let (middle, half) = (f64::midpoint(start, end), (end - start) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (basis(middle - offset) + basis(middle + offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_steps_give_the_coefficients_of_adams_and_bashforth() {
        let nodes: Vec<NoiseLevel> =
            (0..4).map(|k| NoiseLevel { timestep: 0.0, alpha: 1.0, sigma: 5.0 + f64::from(k) }).collect();
        for (k, expected) in [55.0, -59.0, 37.0, -9.0].into_iter().enumerate() {
            assert!((integrated_basis(&nodes, k, 5.0, 4.0) + expected / 24.0).abs() < 1e-12, "{k}");
        }
        for (k, expected) in [3.0, -1.0].into_iter().enumerate() {
            assert!((integrated_basis(&nodes[..2], k, 5.0, 4.0) + expected / 2.0).abs() < 1e-12, "{k}");
        }
    }
}
