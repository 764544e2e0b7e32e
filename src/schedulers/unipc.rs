//! UniPC: a predictor and a corrector of one form (Zhao et al. 2023).

use super::GIVEN_FIELDS;
use super::exponential_integrator::{Interval, solver_order};
use super::{AlgorithmType, Configured, FinalSigma, LogSnrSpace, NoiseSchedule, RESPACED, Run};
use super::{ScheduleDefaults, Scheduler, SchedulerEntry, Solver, Stochastic};
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use crate::{NoiseLevel, Result};
use candle_core::Tensor;
use std::collections::VecDeque;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "unipc",
    label: "UniPC",
    class_name: "UniPCMultistepScheduler",
    order: 3,
    evaluations: 1,
    stochastic: Stochastic::No,
    reference: "Zhao et al. 2023, algorithms 5 to 8, arXiv:2302.04867",
    suffixes: RESPACED,
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// diffusers takes the solver types of DPM-Solver and DEIS as `bh2`.
const VARIANTS: [(&str, UniPcVariant); 5] = [
    ("bh1", UniPcVariant::Bh1),
    ("bh2", UniPcVariant::Bh2),
    ("midpoint", UniPcVariant::Bh2),
    ("heun", UniPcVariant::Bh2),
    ("logrho", UniPcVariant::Bh2),
];

/// As diffusers' `UniPCMultistepScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    config.only("solver_p", &[])?;
    let defaults = ScheduleDefaults::LINEAR.with_zero_terminal_snr();
    let schedule = NoiseSchedule::from_config_or(config, defaults)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::Threshold)?;
    let discretization = LogSnrSpace { holds_last: true, ..LogSnrSpace::from_config(config, &schedule, false)? };
    let options = UniPcOptions {
        order: solver_order(config)?,
        predict_x0: config.bool("predict_x0", true)?,
        variant: config.choice("solver_type", &VARIANTS, UniPcVariant::Bh2)?,
        lower_order_final: config.bool("lower_order_final", true)?,
        disable_corrector: disabled_steps(config)?,
    };
    if discretization.final_sigma == FinalSigma::Zero {
        let sigma_min = "set final_sigmas_type to \"sigma_min\"";
        if !options.predict_x0 {
            let fix = format!("in terms of the noise no step leads to zero noise; {sigma_min} or predict_x0 to true");
            return Err(config.wrong("predict_x0", fix));
        }
        if !options.lower_order_final && options.order > 1 {
            let fix = format!("a step to zero noise has order 1; {sigma_min} or lower_order_final to true");
            return Err(config.wrong("lower_order_final", fix));
        }
    }
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: UniPcSolver::new(options) }))
}

fn disabled_steps(config: &ConfigFields) -> Result<Vec<usize>> {
    let steps = config.list("disable_corrector")?.unwrap_or_default();
    let whole = |&step: &f64| (step >= 0.0 && step.fract() == 0.0).then_some(step as usize);
    steps
        .iter()
        .map(whole)
        .collect::<Option<_>>()
        .ok_or_else(|| config.wrong("disable_corrector", "it must be a list of steps, counted from 0"))
}

/// The function `B(h)` that scales the corrections (Zhao et al. 2023, section 3.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UniPcVariant {
    /// `B(h) = h`.
    Bh1,
    /// `B(h) = e^h - 1`.
    Bh2,
}

/// Which of the methods, and how it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct UniPcOptions {
    /// The predictor's order, 1 to 3; with the corrector the method has one more.
    pub order: usize,
    /// Whether in terms of the clean sample or of the noise.
    pub predict_x0: bool,
    /// The function `B(h)`.
    pub variant: UniPcVariant,
    /// Whether the last steps have only as high an order as there are steps left.
    pub lower_order_final: bool,
    /// Steps, counted from 0, whose result is not corrected.
    pub disable_corrector: Vec<usize>,
}

impl Default for UniPcOptions {
    /// UniPC-2 that keeps its order to the end.
    fn default() -> Self {
        Self {
            order: 2,
            predict_x0: true,
            variant: UniPcVariant::Bh2,
            lower_order_final: false,
            disable_corrector: Vec::new(),
        }
    }
}

/// Every step first corrects the last one with the evaluation it has just made, then predicts.
#[derive(Debug, Clone)]
pub struct UniPcSolver {
    options: UniPcOptions,
    /// Predictions, the newest first.
    past: VecDeque<Tensor>,
    /// The state that the last step started from, and the order it had.
    last: Option<(Tensor, usize)>,
}

impl UniPcSolver {
    /// A solver without history.
    pub fn new(options: UniPcOptions) -> Self {
        Self { options, past: VecDeque::new(), last: None }
    }

    /// A step of the unified form (equations 3 and 9): `base` is the prediction at `from`, and the `nodes` are
    /// other levels with theirs. The corrector's have `to` among them.
    fn advance(
        &self,
        x: &Tensor,
        from: &NoiseLevel,
        to: &NoiseLevel,
        base: &Tensor,
        nodes: &[(NoiseLevel, &Tensor)],
    ) -> Result<Tensor> {
        let algorithm =
            if self.options.predict_x0 { AlgorithmType::DpmSolverPlusPlus } else { AlgorithmType::DpmSolver };
        let interval = Interval::new(algorithm, from, to);
        if interval.is_empty() {
            return Ok(x.clone());
        }
        let mut next = interval.advance(x, &[(interval.constant(), base)], None)?;
        if nodes.is_empty() {
            return Ok(next);
        }
        let scale = match self.options.variant {
            UniPcVariant::Bh1 => interval.exponent,
            UniPcVariant::Bh2 => interval.constant(),
        };
        let place = |level: &NoiseLevel| (level.half_log_snr() - from.half_log_snr()) / interval.h;
        let places: Vec<f64> = nodes.iter().map(|(level, _)| place(level)).collect();
        let weights = weights(&places, interval.exponent, scale);
        for ((weight, place), (_, prediction)) in weights.iter().zip(&places).zip(nodes) {
            let difference = (*prediction - base)?;
            next = (next - (difference * (interval.scale * scale * weight / place))?)?;
        }
        Ok(next)
    }
}

impl Solver for UniPcSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let levels = run.levels();
        let (from, to) = (levels.from(i), levels.to(i));
        let prediction = run.predict(x, &from)?;
        let newest = if self.options.predict_x0 { prediction.x0 } else { prediction.epsilon };

        let mut x = x.clone();
        if let Some((start, order)) = &self.last
            && !self.options.disable_corrector.contains(&(i - 1))
        {
            let mut nodes: Vec<_> = (1..*order).map(|k| (levels.from(i - 1 - k), &self.past[k])).collect();
            nodes.push((from, &newest));
            x = self.advance(start, &levels.from(i - 1), &from, &self.past[0], &nodes)?;
        }

        self.past.push_front(newest);
        self.past.truncate(self.options.order);
        let left = if self.options.lower_order_final { levels.len() - i } else { usize::MAX };
        let order = self.past.len().min(left);
        let nodes: Vec<_> = (1..order).map(|k| (levels.from(i - k), &self.past[k])).collect();
        let next = self.advance(&x, &from, &to, &self.past[0], &nodes)?;
        self.last = Some((x, order));
        Ok(next)
    }
}

/// The weights `rho` of the differences at `places`, in units of the step: those that make the step exact for
/// polynomials (theorem 3.1). One difference alone has weight a half.
fn weights(places: &[f64], exponent: f64, scale: f64) -> Vec<f64> {
    if places.len() == 1 {
        return vec![0.5];
    }
    let (mut phi, mut factorial) = (exponent.exp_m1() / exponent - 1.0, 1.0);
    let rows = (0..places.len()).map(|power| {
        let mut row: Vec<f64> = places.iter().map(|place| place.powi(power as i32)).collect();
        row.push(phi * factorial / scale);
        factorial *= power as f64 + 2.0;
        phi = phi / exponent - 1.0 / factorial;
        row
    });
    solve(rows.collect())
}

/// Solves a system whose rows end in their right-hand side, by elimination with pivots.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let n = rows.len();
    for column in 0..n {
        let size = |row: &usize| rows[*row][column].abs();
        let pivot = (column..n).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(column);
        rows.swap(column, pivot);
        let pivot = rows[column].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(i, _)| *i != column) {
            let factor = row[column] / pivot[column];
            row.iter_mut().zip(&pivot).for_each(|(value, above)| *value -= factor * above);
        }
    }
    (0..n).map(|row| rows[row][n] / rows[row][row]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elimination_inverts_a_known_system() {
        let solved = solve(vec![vec![0.0, 2.0, 1.0, 7.0], vec![1.0, -1.0, 3.0, 8.0], vec![2.0, 1.0, -1.0, 1.0]]);
        for (got, want) in solved.iter().zip([1.0, 2.0, 3.0]) {
            assert!((got - want).abs() < 1e-12, "{solved:?}");
        }
    }

    /// Exactness for polynomials, by quadrature: with the weights, the step integrates `e^(exponent (1 - s)) s^k`
    /// over the unit interval for every power up to the number of nodes.
    #[test]
    fn weights_integrate_polynomials() {
        let places = [-1.3, -0.6, 1.0];
        for exponent in [-0.8, 0.5] {
            for scale in [exponent, f64::exp_m1(exponent)] {
                let rho = weights(&places, exponent, scale);
                for power in 1..=3 {
                    let formula: f64 = rho.iter().zip(&places).map(|(w, r)| scale * w * r.powi(power - 1)).sum();
                    let count = 20_000;
                    let integrand = |s: f64| exponent * (exponent * (1.0 - s)).exp() * s.powi(power);
                    let midpoint = |i: i32| (f64::from(i) + 0.5) / f64::from(count);
                    let integral: f64 = (0..count).map(|i| integrand(midpoint(i)) / f64::from(count)).sum();
                    assert!((formula - integral).abs() < 1e-8, "{exponent} {scale} {power}: {formula} {integral}");
                }
            }
        }
    }
}
