//! An adaptive Runge-Kutta method for any ODE on tensors.

use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// The right-hand side `(x, t) -> dx/dt` of an ODE.
pub type VectorField<'a> = dyn Fn(&Tensor, f64) -> Result<Tensor> + 'a;

const STAGES: usize = 7;
/// The nodes `c`.
const C: [f64; STAGES] = [0.0, 1.0 / 5.0, 3.0 / 10.0, 4.0 / 5.0, 8.0 / 9.0, 1.0, 1.0];
/// The matrix `a`; its last row is also the weights `b` of order 5.
const A: [&[f64]; STAGES] = [
    &[],
    &[1.0 / 5.0],
    &[3.0 / 40.0, 9.0 / 40.0],
    &[44.0 / 45.0, -56.0 / 15.0, 32.0 / 9.0],
    &[19_372.0 / 6561.0, -25_360.0 / 2187.0, 64_448.0 / 6561.0, -212.0 / 729.0],
    &[9017.0 / 3168.0, -355.0 / 33.0, 46_732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18_656.0],
    &[35.0 / 384.0, 0.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0],
];
/// The weights of order 5 less those of order 4.
const E: [f64; STAGES] =
    [71.0 / 57_600.0, 0.0, -71.0 / 16_695.0, 71.0 / 1920.0, -17_253.0 / 339_200.0, 22.0 / 525.0, -1.0 / 40.0];

/// The next step is this much shorter than the error estimate suggests.
const SAFETY: f64 = 0.9;
/// Bounds on the ratio of a step to the one before.
const FACTORS: (f64, f64) = (0.2, 10.0);
/// A step shorter than this many roundings of `t` has collapsed.
const SHORTEST: f64 = 10.0;

/// The embedded pair of orders 5 and 4 of Dormand and Prince 1980, which advances with the order 5 and keeps
/// the error of each step below `atol + rtol |x|`.
///
/// Errors are root mean squares over each row of the first dimension, the worst row counting: a batch takes
/// the steps that its hardest image needs. Step control and first step are those of Hairer, Norsett and
/// Wanner, "Solving Ordinary Differential Equations I", section II.4.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DormandPrince {
    /// The relative tolerance.
    pub rtol: f64,
    /// The absolute tolerance.
    pub atol: f64,
    /// How many steps, accepted or not, are tried before giving up.
    pub max_steps: usize,
}

impl Default for DormandPrince {
    /// Both tolerances 1e-5, as Song et al. 2021 sample and compute likelihoods.
    fn default() -> Self {
        Self { rtol: 1e-5, atol: 1e-5, max_steps: 10_000 }
    }
}

/// One step of the pair.
#[derive(Debug, Clone)]
pub struct RungeKuttaStep {
    /// The state after the step, of order 5.
    pub x: Tensor,
    /// Its difference from the state of order 4.
    pub error: Tensor,
    /// The slope at the new state: the first stage of the next step.
    pub slope: Tensor,
}

/// Where an integration ended and what it cost.
#[derive(Debug, Clone)]
pub struct Solution {
    /// The state at the end.
    pub x: Tensor,
    /// Evaluations of the vector field.
    pub evaluations: usize,
    /// Steps that met the tolerance.
    pub accepted: usize,
    /// Steps that did not, and were tried again shorter.
    pub rejected: usize,
}

impl DormandPrince {
    /// With relative tolerance `rtol` and absolute tolerance `atol`.
    ///
    /// # Errors
    /// If one is negative or no number, or both are 0.
    pub fn new(rtol: f64, atol: f64) -> Result<Self> {
        let usable = |tolerance: f64| tolerance >= 0.0 && tolerance.is_finite();
        if !usable(rtol) || !usable(atol) || rtol + atol == 0.0 {
            let fix = "neither may be negative and one must be positive";
            return Err(Error::invalid("(rtol, atol) of the integration", format!("({rtol}, {atol})"), fix));
        }
        Ok(Self { rtol, atol, ..Self::default() })
    }

    /// Integrates `field` from the state `x` at `from` to the time `to`, forwards or backwards.
    ///
    /// # Shapes
    /// `x` and the solution: `[rows, ...]`, whose rows the tolerance holds for one by one.
    ///
    /// # Errors
    /// If the field fails or is not finite at the start, the step collapses (a singularity, or a tolerance
    /// finer than the tensors' type), or `max_steps` do not suffice.
    pub fn integrate(&self, field: &VectorField<'_>, x: &Tensor, from: f64, to: f64) -> Result<Solution> {
        let mut solution = Solution { x: x.clone(), evaluations: 0, accepted: 0, rejected: 0 };
        if from == to {
            return Ok(solution);
        }
        let (mut t, direction) = (from, (to - from).signum());
        let mut slope = field(x, t)?;
        let mut length = self.first_length(field, x, &slope, from, to)?;
        let mut longest_factor = FACTORS.1;
        solution.evaluations = 2;
        while t != to {
            let remaining = (to - t).abs();
            let last = length >= remaining;
            length = length.min(remaining);
            self.check_progress(t, length, last, &solution)?;

            let step = Self::step(field, &solution.x, t, direction * length, &slope)?;
            solution.evaluations += STAGES - 1;
            let error = self.norm(&step.error, &solution.x, &step.x)?;
            let factor = if error.is_finite() { SAFETY * error.powf(-0.2) } else { 0.0 };
            if error <= 1.0 {
                t = if last { to } else { t + direction * length };
                (solution.x, slope) = (step.x, step.slope);
                solution.accepted += 1;
                length *= factor.clamp(FACTORS.0, longest_factor);
                longest_factor = FACTORS.1;
            } else {
                solution.rejected += 1;
                length *= factor.clamp(FACTORS.0, 1.0);
                // The step after a rejected one does not grow.
                longest_factor = 1.0;
            }
        }
        Ok(solution)
    }

    /// One step of length `h`, which may be negative, from the state `x` at `t`; `slope` is the field there.
    ///
    /// # Shapes
    /// `x`, `slope` and the parts of the result are alike.
    ///
    /// # Errors
    /// If the field fails.
    pub fn step(field: &VectorField<'_>, x: &Tensor, t: f64, h: f64, slope: &Tensor) -> Result<RungeKuttaStep> {
        let mut slopes = vec![slope.clone()];
        let mut next = x.clone();
        for stage in 1..STAGES {
            next = (x + combined(&slopes, A[stage], h)?)?;
            slopes.push(field(&next, t + C[stage] * h)?);
        }
        let error = combined(&slopes, &E, h)?;
        let slope = slopes.swap_remove(STAGES - 1);
        Ok(RungeKuttaStep { x: next, error, slope })
    }

    /// The length of a first step that the tolerance is likely to allow.
    fn first_length(&self, field: &VectorField<'_>, x: &Tensor, slope: &Tensor, from: f64, to: f64) -> Result<f64> {
        let (size, speed) = (self.norm(x, x, x)?, self.norm(slope, x, x)?);
        if !size.is_finite() || !speed.is_finite() {
            return Err(Error::NotFinite {
                stage: format!("the start of the integration at t = {from}"),
                detail: format!("the state has norm {size}, its slope {speed}"),
                fix: "start farther from the singularity, or check the vector field",
            });
        }
        let trial = if size < 1e-5 || speed < 1e-5 { 1e-6 } else { 0.01 * size / speed };
        let trial = trial.min((to - from).abs());
        let h = (to - from).signum() * trial;
        let moved = (x + (slope * h)?)?;
        let bend = self.norm(&(field(&moved, from + h)? - slope)?, x, x)? / trial;
        let steepest = speed.max(bend);
        let length = if steepest <= 1e-15 { (trial * 1e-3).max(1e-6) } else { (0.01 / steepest).powf(0.2) };
        Ok(length.min(100.0 * trial).min((to - from).abs()))
    }

    /// The largest over the rows of the root mean square of `value / (atol + rtol max(|x|, |y|))`; infinite if
    /// any is not a number.
    fn norm(&self, value: &Tensor, x: &Tensor, y: &Tensor) -> Result<f64> {
        let scale = x.abs()?.maximum(&y.abs()?)?.affine(self.rtol, self.atol)?;
        let rows = value.dims().first().copied().unwrap_or(1).max(1);
        let ratios = (value / scale)?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
        let squares = ratios.reshape((rows, ratios.elem_count() / rows))?.sqr()?.mean(1)?.to_vec1::<f64>()?;
        let finite = squares.iter().all(|square| square.is_finite());
        Ok(if finite {
            squares.iter().fold(0.0, |worst: f64, square| worst.max(*square)).sqrt()
        } else {
            f64::INFINITY
        })
    }

    fn check_progress(&self, t: f64, length: f64, last: bool, solution: &Solution) -> Result<()> {
        if length == 0.0 || (!last && length < SHORTEST * f64::EPSILON * t.abs()) {
            return Err(Error::invalid(
                format!("the step of the integration at t = {t}"),
                format!("{length:e}, too short to change t"),
                "loosen rtol and atol, compute in f64, or end before the singularity",
            ));
        }
        let tried = solution.accepted + solution.rejected;
        if tried >= self.max_steps {
            return Err(Error::invalid(
                "max_steps of the integration",
                self.max_steps,
                format!("at t = {t} the steps are {length:e} long; raise it, or loosen rtol and atol"),
            ));
        }
        Ok(())
    }
}

/// `h sum_j weights_j slopes_j`.
fn combined(slopes: &[Tensor], weights: &[f64], h: f64) -> Result<Tensor> {
    let mut sum = (&slopes[0] * (h * weights[0]))?;
    for (slope, weight) in slopes.iter().zip(weights).skip(1).filter(|(_, weight)| **weight != 0.0) {
        sum = (sum + (slope * (h * weight))?)?;
    }
    Ok(sum)
}
