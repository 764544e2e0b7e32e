//! DEIS: the exponential integrator with polynomials in log rho (Zhang and Chen 2023).

use super::GIVEN_FIELDS;
use super::dpm_multistep::LOWER_ORDER_BELOW;
use super::exponential_integrator::solver_order;
use super::{Configured, FinalSigma, LogSnrSpace, NoiseSchedule, RESPACED, Run, ScheduleDefaults};
use super::{Scheduler, SchedulerEntry, Solver, Stochastic};
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use crate::{NoiseLevel, Result};
use candle_core::Tensor;
use std::collections::VecDeque;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "deis",
    label: "DEIS",
    class_name: "DEISMultistepScheduler",
    order: 2,
    evaluations: 1,
    stochastic: Stochastic::No,
    reference: "Zhang and Chen 2023, equation 15 in log rho, arXiv:2204.13902",
    suffixes: RESPACED,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `DEISMultistepScheduler`, which has no choice of algorithm, solver type or end: what other
/// classes' files say of these is passed over.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    config.only("algorithm_type", &["deis".into(), "dpmsolver".into(), "dpmsolver++".into()])?;
    let schedule = NoiseSchedule::from_config_or(config, ScheduleDefaults::LINEAR)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::Threshold)?;
    let ends = config.clone().with("final_sigmas_type", "sigma_min");
    let space = LogSnrSpace::from_config(&ends, &schedule, false)?;
    let discretization = LogSnrSpace { final_sigma: FinalSigma::SigmaMin, holds_last: true, ..space };
    let solver = DeisSolver::new(solver_order(config)?, config.bool("lower_order_final", true)?);
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver }))
}

/// In `rho = sigma / alpha`, `d(x / alpha) = epsilon d(rho)`; epsilon is the polynomial in `ln rho` through its
/// last values, and the integral is exact.
#[derive(Debug, Clone)]
pub struct DeisSolver {
    order: usize,
    lower_order_final: bool,
    /// Past noise predictions, the newest first.
    past: VecDeque<Tensor>,
}

impl DeisSolver {
    /// A solver of order 1 to 3 without history; `lower_order_final` lets the last two steps of a run of fewer
    /// than 15 fall back to orders 2 and 1.
    pub fn new(order: usize, lower_order_final: bool) -> Self {
        Self { order, lower_order_final, past: VecDeque::new() }
    }
}

impl Solver for DeisSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let levels = run.levels();
        let (from, to) = (levels.from(i), levels.to(i));
        self.past.push_front(run.predict(x, &from)?.noise_left(x, &from)?);
        self.past.truncate(self.order);
        let left = levels.len() - i;
        let falls = self.lower_order_final && levels.len() < LOWER_ORDER_BELOW && left < 3;
        let order = self.past.len().min(if falls { left } else { self.order });

        let rho = |level: NoiseLevel| level.sigma / level.alpha;
        let nodes: Vec<f64> = (0..order).map(|k| rho(levels.from(i - k)).ln()).collect();
        let mut scaled = (x / from.alpha)?;
        for (k, epsilon) in self.past.iter().take(order).enumerate() {
            scaled = (scaled + (epsilon * integrated_basis(&nodes, k, rho(to).ln()))?)?;
        }
        Ok((scaled * to.alpha)?)
    }
}

/// The integral of `l_k(u) e^u` from `nodes[0]` to `end`, where `l_k` is the polynomial that is 1 at node `k`
/// and 0 at the others.
fn integrated_basis(nodes: &[f64], k: usize, end: f64) -> f64 {
    // The coefficients of l_k in w = u - nodes[0], the lowest first.
    let mut coefficients = vec![1.0];
    for (_, node) in nodes.iter().enumerate().filter(|(j, _)| *j != k) {
        let (root, width) = (node - nodes[0], nodes[k] - node);
        let mut product = vec![0.0; coefficients.len() + 1];
        for (power, c) in coefficients.iter().enumerate() {
            product[power] -= c * root / width;
            product[power + 1] += c / width;
        }
        coefficients = product;
    }
    // By parts: I_n = w^n e^w - n I_(n-1), I_0 = e^w - 1.
    let w = end - nodes[0];
    let (mut moment, mut total) = (w.exp_m1(), 0.0);
    for (power, c) in coefficients.iter().enumerate() {
        if power > 0 {
            moment = w.powi(power as i32) * w.exp() - power as f64 * moment;
        }
        total += c * moment;
    }
    nodes[0].exp() * total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against Simpson's rule on the integrand.
    #[test]
    fn integrals_agree_with_a_quadrature() {
        let (nodes, end) = ([0.7, 1.3, 2.2], 0.1);
        for order in 1..=3 {
            for k in 0..order {
                let basis = |u: f64| -> f64 {
                    let others = (0..order).filter(|j| *j != k);
                    u.exp() * others.map(|j| (u - nodes[j]) / (nodes[k] - nodes[j])).product::<f64>()
                };
                let (count, width) = (2000, (end - nodes[0]) / 2000.0);
                let simpson: f64 = (0..count)
                    .map(|i| nodes[0] + f64::from(i) * width)
                    .map(|u| width / 6.0 * (basis(u) + 4.0 * basis(u + width / 2.0) + basis(u + width)))
                    .sum();
                let exact = integrated_basis(&nodes[..order], k, end);
                assert!((simpson - exact).abs() < 1e-10, "order {order}, node {k}: {simpson} {exact}");
            }
        }
    }
}
