//! The score, and how a trained network gives it.

use super::VpSde;
use crate::denoising::Denoiser;
use crate::schedulers::NoiseSchedule;
use crate::{Error, NoiseLevel, Result};
use candle_core::Tensor;

/// How far beyond a schedule's ends a log-SNR may lie: the rounding of the way from there to `t` and back.
const SLACK: f64 = 1e-6;

/// `grad log p_t(x)`, the gradient of the log density of the forward process at time `t`.
///
/// A closure `(x, t) -> score` is one.
pub trait Score {
    /// The score of a state at time `t`.
    ///
    /// # Shapes
    /// `x` and the result: `[batch, ...]`. Row `i` of the result depends on row `i` of `x` alone.
    ///
    /// # Errors
    /// If the network fails, or does not know this `t`.
    fn score(&self, x: &Tensor, t: f64) -> Result<Tensor>;
}

impl<F: Fn(&Tensor, f64) -> Result<Tensor>> Score for F {
    fn score(&self, x: &Tensor, t: f64) -> Result<Tensor> {
        self(x, t)
    }
}

/// `grad log p_sigma(x)`, the gradient of the log density of data plus noise of standard deviation `sigma`
/// (Song and Ermon 2019).
///
/// A closure `(x, sigma) -> score` is one.
pub trait NoiseConditionalScore {
    /// The score of a state `x0 + sigma epsilon`.
    ///
    /// # Shapes
    /// `x` and the result: `[batch, ...]`. Row `i` of the result depends on row `i` of `x` alone.
    ///
    /// # Errors
    /// If the network fails, or does not know this `sigma`.
    fn noise_conditional_score(&self, x: &Tensor, sigma: f64) -> Result<Tensor>;
}

impl<F: Fn(&Tensor, f64) -> Result<Tensor>> NoiseConditionalScore for F {
    fn noise_conditional_score(&self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        self(x, sigma)
    }
}

/// The score of a denoising network: Tweedie's formula, solved for the score,
/// `score = (alpha E[x0|x] - x) / sigma^2 = -epsilon / sigma`.
///
/// A network is trained at whole timesteps, and an SDE has its own time. What both share is the
/// signal-to-noise ratio: the density of `alpha x0 + sigma epsilon` depends on nothing else. So `alpha` and
/// `sigma` are the SDE's closed form, and the network is told the timestep of equal log-SNR, linear between
/// the training timesteps. Thus the SDE need not have the schedule's betas, its coefficients stay smooth,
/// which methods of high order rely on, and only the network's embedding of time is interpolated.
///
/// The score is made of `epsilon`, which clipping and thresholding leave alone: a limited `x0` is no longer
/// the mean that the formula speaks of.
pub struct DenoiserScore<'a> {
    denoiser: &'a Denoiser<'a>,
    sde: VpSde,
    /// `ln(alpha^2 / sigma^2)` by timestep, falling.
    log_snr: Vec<f64>,
}

impl<'a> DenoiserScore<'a> {
    /// The score of a denoiser that was trained on `schedule`, in the time of `sde`.
    /// [`VpSde::through`] makes an SDE that the schedule covers from `t = 1 / T` on.
    ///
    /// # Errors
    /// If the schedule is pure noise at every timestep.
    pub fn new(denoiser: &'a Denoiser<'a>, schedule: &NoiseSchedule, sde: VpSde) -> Result<Self> {
        // A timestep of pure noise (zero terminal SNR) has no log-SNR.
        let abar = schedule.alphas_cumprod().iter().take_while(|abar| **abar > 0.0);
        let log_snr: Vec<_> = abar.map(|abar| abar.ln() - (1.0 - abar).ln()).collect();
        if log_snr.is_empty() {
            return Err(Error::invalid("the first of alphas_cumprod", 0, "a score needs some signal"));
        }
        Ok(Self { denoiser, sde, log_snr })
    }

    /// The earliest and the latest `t` that the network knows.
    pub fn times(&self) -> (f64, f64) {
        let time = |log_snr: f64| self.sde.time_of(1.0 / (1.0 + (-log_snr).exp()));
        (time(self.log_snr[0]), time(self.log_snr[self.log_snr.len() - 1]))
    }

    /// The timestep of a log-SNR.
    fn timestep(&self, log_snr: f64) -> Result<f64> {
        let (first, last) = (self.log_snr[0], self.log_snr[self.log_snr.len() - 1]);
        if !(last - SLACK..=first + SLACK).contains(&log_snr) {
            let (earliest, latest) = self.times();
            let fix = format!(
                "the network was trained from {last:.4} to {first:.4}, which is t from {earliest} to {latest}; \
                 stay within, or make the SDE with VpSde::through"
            );
            return Err(Error::invalid("the log-SNR at which the score is asked", log_snr, fix));
        }
        let after = self.log_snr.partition_point(|value| *value > log_snr);
        if after == 0 || after == self.log_snr.len() {
            return Ok(after.min(self.log_snr.len() - 1) as f64);
        }
        let (low, high) = (self.log_snr[after - 1], self.log_snr[after]);
        Ok((after - 1) as f64 + (log_snr - low) / (high - low))
    }

    /// Of the density of `alpha x0 + sigma epsilon`.
    fn at(&self, x: &Tensor, alpha: f64, sigma: f64) -> Result<Tensor> {
        let timestep = self.timestep(2.0 * (alpha.ln() - sigma.ln()))?;
        let prediction = self.denoiser.predict(x, &NoiseLevel { timestep, alpha, sigma }, None)?;
        Ok((prediction.epsilon * (-1.0 / sigma))?)
    }
}

impl Score for DenoiserScore<'_> {
    fn score(&self, x: &Tensor, t: f64) -> Result<Tensor> {
        let NoiseLevel { alpha, sigma, .. } = self.sde.marginal(t);
        self.at(x, alpha, sigma)
    }
}

impl NoiseConditionalScore for DenoiserScore<'_> {
    fn noise_conditional_score(&self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        self.at(x, 1.0, sigma)
    }
}
