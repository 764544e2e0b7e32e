//! What the steps of the DPM-Solver family have in common (Lu et al. 2022 and 2023).
//!
//! In `lambda = ln(alpha / sigma)` the linear part of the diffusion ODE, or SDE, is integrated exactly. What
//! is left is an integral of the network's prediction times an exponential, for which the prediction is taken
//! as a polynomial in `lambda`.

use super::Run;
use crate::config::ConfigFields;
use crate::denoising::Prediction;
use crate::{Error, NoiseLevel, Result};
use candle_core::Tensor;

/// Which equation is integrated, and in terms of which prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlgorithmType {
    /// The ODE in terms of the noise (Lu et al. 2022, equation 3.4).
    DpmSolver,
    /// The ODE in terms of the clean sample (Lu et al. 2023, equation 8).
    DpmSolverPlusPlus,
    /// The SDE in terms of the noise (Lu et al. 2023, appendix A).
    SdeDpmSolver,
    /// The SDE in terms of the clean sample (Lu et al. 2023, equation 18).
    SdeDpmSolverPlusPlus,
}

/// diffusers takes DEIS's file as one of DPM-Solver++.
const ALGORITHM_TYPES: [(&str, AlgorithmType); 5] = [
    ("dpmsolver++", AlgorithmType::DpmSolverPlusPlus),
    ("dpmsolver", AlgorithmType::DpmSolver),
    ("sde-dpmsolver++", AlgorithmType::SdeDpmSolverPlusPlus),
    ("sde-dpmsolver", AlgorithmType::SdeDpmSolver),
    ("deis", AlgorithmType::DpmSolverPlusPlus),
];

/// How the difference of predictions is weighted in a second-order step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SolverType {
    /// As half the weight of the prediction itself.
    Midpoint,
    /// By its exact integral.
    Heun,
}

/// diffusers takes the solver types of UniPC and DEIS as the midpoint.
const SOLVER_TYPES: [(&str, SolverType); 5] = [
    ("midpoint", SolverType::Midpoint),
    ("heun", SolverType::Heun),
    ("bh1", SolverType::Midpoint),
    ("bh2", SolverType::Midpoint),
    ("logrho", SolverType::Midpoint),
];

impl SolverType {
    /// From a scheduler's file.
    ///
    /// # Errors
    /// If the file names one that does not exist.
    pub fn from_config(config: &ConfigFields) -> Result<Self> {
        config.choice("solver_type", &SOLVER_TYPES, Self::Midpoint)
    }
}

impl AlgorithmType {
    /// From a scheduler's file, with `final_sigmas_type`.
    ///
    /// # Errors
    /// If the file names one that does not exist, or that cannot go down to no noise.
    pub fn from_config(config: &ConfigFields) -> Result<Self> {
        let algorithm = config.choice("algorithm_type", &ALGORITHM_TYPES, Self::DpmSolverPlusPlus)?;
        let ends_at_zero = super::FinalSigma::from_config(config)? == super::FinalSigma::Zero;
        if ends_at_zero && !algorithm.predicts_x0() {
            return Err(config.wrong(
                "algorithm_type",
                "in terms of the noise no step leads to zero noise; set final_sigmas_type to \"sigma_min\", or use \
                 \"dpmsolver++\" or \"sde-dpmsolver++\"",
            ));
        }
        Ok(algorithm)
    }

    /// Whether the integral is in terms of the clean sample.
    pub fn predicts_x0(self) -> bool {
        matches!(self, Self::DpmSolverPlusPlus | Self::SdeDpmSolverPlusPlus)
    }

    /// Whether it integrates the SDE and so draws noise.
    pub fn is_stochastic(self) -> bool {
        matches!(self, Self::SdeDpmSolver | Self::SdeDpmSolverPlusPlus)
    }

    /// The quantity that the integral is in terms of, out of an evaluation at `x`.
    ///
    /// # Errors
    /// If shapes differ.
    pub(super) fn term(self, prediction: Prediction, x: &Tensor, level: &NoiseLevel) -> Result<Tensor> {
        if self.predicts_x0() { Ok(prediction.x0) } else { prediction.noise_left(x, level) }
    }
}

/// The exact parts of a step between two levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Interval {
    /// `lambda_to - lambda_from`, above 0; infinite if the step ends without noise.
    pub h: f64,
    /// The factor of the state.
    pub decay: f64,
    /// The factor of the integral, whose sign makes the next state `decay x - scale * integral`.
    pub scale: f64,
    /// The exponent over the whole step, `-h` or `h` for the ODE, twice that for the SDE with data.
    pub exponent: f64,
    /// The standard deviation of the SDE's noise.
    pub noise: f64,
}

impl Interval {
    pub(super) fn new(algorithm: AlgorithmType, from: &NoiseLevel, to: &NoiseLevel) -> Self {
        let h = to.half_log_snr() - from.half_log_snr();
        let (signal, noise) = (to.alpha / from.alpha, to.sigma / from.sigma);
        let interval = Self { h, decay: noise, scale: to.alpha, exponent: -h, noise: 0.0 };
        match algorithm {
            AlgorithmType::DpmSolverPlusPlus => interval,
            AlgorithmType::DpmSolver => Self { decay: signal, scale: to.sigma, exponent: h, ..interval },
            AlgorithmType::SdeDpmSolverPlusPlus => Self {
                decay: noise * (-h).exp(),
                exponent: -2.0 * h,
                noise: to.sigma * (-(-2.0 * h).exp_m1()).sqrt(),
                ..interval
            },
            AlgorithmType::SdeDpmSolver => Self {
                h,
                decay: signal,
                scale: 2.0 * to.sigma,
                exponent: h,
                noise: to.sigma * (2.0 * h).exp_m1().sqrt(),
            },
        }
    }

    /// Whether the step leads nowhere, as the last one does if respaced sigmas already end where it should.
    pub(super) fn is_empty(&self) -> bool {
        self.h == 0.0
    }

    /// The weight of a constant prediction.
    pub(super) fn constant(&self) -> f64 {
        self.exponent.exp_m1()
    }

    /// The weight of a prediction that grows by 1 per step, by [`SolverType`].
    pub(super) fn linear(&self, solver_type: SolverType) -> f64 {
        match solver_type {
            SolverType::Midpoint => 0.5 * self.constant(),
            SolverType::Heun => self.constant() / self.exponent - 1.0,
        }
    }

    /// The weight of half a second difference per squared step.
    pub(super) fn quadratic(&self) -> f64 {
        (self.constant() - self.exponent) / (self.exponent * self.exponent) - 0.5
    }

    /// The state after the step: `decay x - scale * sum of weighted terms`, plus noise.
    ///
    /// # Errors
    /// If the noise source fails.
    pub(super) fn advance(&self, x: &Tensor, terms: &[(f64, &Tensor)], noise: Option<&Tensor>) -> Result<Tensor> {
        let mut next = (x * self.decay)?;
        for (weight, term) in terms {
            next = (next - (*term * (self.scale * weight))?)?;
        }
        match noise {
            Some(noise) => Ok((next + (noise * self.noise)?)?),
            None => Ok(next),
        }
    }
}

/// Checks the order of a solver of this family.
///
/// # Errors
/// If it is not 1, 2 or 3.
pub(super) fn solver_order(config: &ConfigFields) -> Result<usize> {
    match config.usize("solver_order", 2)? {
        order @ 1..=3 => Ok(order),
        _ => Err(config.wrong("solver_order", "it must be 1, 2 or 3")),
    }
}

/// The noise of one step, if the algorithm has any.
pub(super) fn step_noise(algorithm: AlgorithmType, x: &Tensor, run: &mut Run<'_>) -> Result<Option<Tensor>> {
    algorithm.is_stochastic().then(|| run.noise_like(x)).transpose()
}

/// Checks that an algorithm has steps of an order.
///
/// # Errors
/// For order 3 with the SDE in terms of the noise, which nobody has published.
pub(super) fn check_order(algorithm: AlgorithmType, order: usize) -> Result<()> {
    if algorithm == AlgorithmType::SdeDpmSolver && order > 2 {
        let fix = "\"sde-dpmsolver\" has orders 1 and 2; use \"sde-dpmsolver++\" or solver_order 2";
        return Err(Error::invalid("solver_order", order, fix));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [AlgorithmType; 4] = [
        AlgorithmType::DpmSolver,
        AlgorithmType::DpmSolverPlusPlus,
        AlgorithmType::SdeDpmSolver,
        AlgorithmType::SdeDpmSolverPlusPlus,
    ];

    /// If the data is one point, the prediction is that point and the noise is exact, so one step of the ODE
    /// moves `alpha x0 + sigma e` to the other level's, however long it is.
    #[test]
    fn one_point_is_solved_exactly() {
        let (x0, e) = (0.7, -1.3);
        let (from, to) = (NoiseLevel::from_sigma(0.0, 9.0), NoiseLevel::from_sigma(0.0, 0.2));
        for algorithm in [AlgorithmType::DpmSolver, AlgorithmType::DpmSolverPlusPlus] {
            let interval = Interval::new(algorithm, &from, &to);
            let term = if algorithm.predicts_x0() { x0 } else { e };
            let x = from.alpha * x0 + from.sigma * e;
            let next = interval.decay * x - interval.scale * interval.constant() * term;
            assert!((next - (to.alpha * x0 + to.sigma * e)).abs() < 1e-12, "{algorithm:?}");
        }
    }

    /// The SDE keeps the marginal variance: what decays of the old noise and what is added make the new one.
    #[test]
    fn the_sde_with_data_keeps_the_marginal_variance() {
        let (from, to) = (NoiseLevel::from_sigma(0.0, 9.0), NoiseLevel::from_sigma(0.0, 0.2));
        let interval = Interval::new(AlgorithmType::SdeDpmSolverPlusPlus, &from, &to);
        assert!(((interval.decay * from.sigma).hypot(interval.noise) - to.sigma).abs() < 1e-12);
        // The mean of the clean sample is kept as well.
        let signal = interval.decay * from.alpha - interval.scale * interval.constant();
        assert!((signal - to.alpha).abs() < 1e-12);
    }

    #[test]
    fn a_step_to_no_noise_gives_the_clean_sample() {
        let (from, to) = (NoiseLevel::from_sigma(0.0, 0.5), NoiseLevel::from_sigma(0.0, 0.0));
        for algorithm in ALL.into_iter().filter(|a| a.predicts_x0()) {
            let interval = Interval::new(algorithm, &from, &to);
            assert_eq!((interval.decay, interval.noise), (0.0, 0.0));
            assert_eq!(-interval.scale * interval.constant(), 1.0);
        }
    }
}
