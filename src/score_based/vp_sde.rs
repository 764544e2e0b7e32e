//! The variance-preserving SDE, which DDPM discretises.

use crate::schedulers::NoiseSchedule;
use crate::{Error, NoiseLevel, Result};
use candle_core::Tensor;

/// `dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw` for `t` in `(0, 1]` (Song et al. 2021, equation 11), with
/// `beta(t) = beta_min + t (beta_max - beta_min)` (equation 32).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VpSde {
    beta_min: f64,
    beta_max: f64,
}

impl VpSde {
    /// With `beta` growing linearly from `beta_min` at `t = 0` to `beta_max` at `t = 1`. The paper has 0.1 and
    /// 20, the limit of DDPM's betas from 0.0001 to 0.02 in 1000 steps.
    ///
    /// # Errors
    /// If one of them is not a positive number.
    pub fn new(beta_min: f64, beta_max: f64) -> Result<Self> {
        for (name, beta) in [("beta_min", beta_min), ("beta_max", beta_max)] {
            if !(beta > 0.0 && beta.is_finite()) {
                return Err(Error::invalid(format!("{name} of the VP-SDE"), beta, "it must be a positive number"));
            }
        }
        Ok(Self { beta_min, beta_max })
    }

    /// The one whose noise at `t = 1 / T` and at `t = 1` is that of the first and the last of the schedule's
    /// `T` timesteps, so that a network trained on the schedule knows every `t` between.
    ///
    /// # Errors
    /// If the schedule ends in pure noise, which the SDE reaches only after infinite time, or if no linear
    /// `beta(t)` goes through both ends.
    pub fn through(schedule: &NoiseSchedule) -> Result<Self> {
        let abar = schedule.alphas_cumprod();
        let (first, last) = (-abar[0].ln(), -abar[abar.len() - 1].ln());
        if last.is_infinite() {
            let fix = "the VP-SDE never reaches pure noise; turn rescale_betas_zero_snr off";
            return Err(Error::invalid("the last of alphas_cumprod", 0, fix));
        }
        // The integral of beta up to t, `beta_min t + (beta_max - beta_min) t^2 / 2`, at both times.
        let t = 1.0 / abar.len() as f64;
        if t == 1.0 {
            return Self::new(last, last);
        }
        let beta_min = (first - last * t * t) / (t - t * t);
        Self::new(beta_min, 2.0 * last - beta_min)
    }

    /// `beta(t)`.
    pub fn beta(&self, t: f64) -> f64 {
        self.beta_min + t * (self.beta_max - self.beta_min)
    }

    /// The integral of `beta` from 0 to `t`.
    fn integrated_beta(&self, t: f64) -> f64 {
        t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))
    }

    /// The drift `f(x, t) = -1/2 beta(t) x`.
    ///
    /// # Shapes
    /// `x` and the result: `[batch, ...]`.
    ///
    /// # Errors
    /// If the element type has no such operation.
    pub fn drift(&self, x: &Tensor, t: f64) -> Result<Tensor> {
        Ok((x * (-0.5 * self.beta(t)))?)
    }

    /// The diffusion coefficient `g(t) = sqrt(beta(t))`.
    pub fn diffusion(&self, t: f64) -> f64 {
        self.beta(t).sqrt()
    }

    /// The transition from `x(0)` to `x(t)`, `N(alpha x(0), sigma^2 I)` with `alpha^2 = exp(-integral of beta)`
    /// and `sigma^2 = 1 - alpha^2` (equation 33). Its `timestep` is `t`.
    pub fn marginal(&self, t: f64) -> NoiseLevel {
        let integral = self.integrated_beta(t);
        NoiseLevel { timestep: t, alpha: (-0.5 * integral).exp(), sigma: (-(-integral).exp_m1()).sqrt() }
    }

    /// The `t` at which `alpha^2` is `alpha_cumprod`; at most 1.
    pub fn time_of(&self, alpha_cumprod: f64) -> f64 {
        let integral = -alpha_cumprod.ln();
        if integral >= self.integrated_beta(1.0) {
            return 1.0;
        }
        let growth = self.beta_max - self.beta_min;
        2.0 * integral / (self.beta_min + (self.beta_min * self.beta_min + 2.0 * growth * integral).sqrt())
    }

    /// `steps + 1` evenly spaced times from 1 down to `earliest`, for the reverse SDE.
    pub fn reverse_times(&self, steps: usize, earliest: f64) -> Vec<f64> {
        (0..=steps).map(|i| 1.0 - (1.0 - earliest) * (i as f64 / steps.max(1) as f64)).collect()
    }

    /// Tweedie's formula: the expected clean sample `E[x(0) | x(t)] = (x + sigma^2 score) / alpha`. As the last
    /// step of a sampler it takes out the noise that is left at the earliest time.
    ///
    /// # Shapes
    /// All `[batch, ...]`, alike.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn denoised(&self, x: &Tensor, score: &Tensor, t: f64) -> Result<Tensor> {
        let NoiseLevel { alpha, sigma, .. } = self.marginal(t);
        Ok(((x + (score * (sigma * sigma))?)? / alpha)?)
    }
}
