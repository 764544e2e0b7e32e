//! How much of a state is signal and how much is noise.

use crate::Result;
use candle_core::Tensor;

/// The `abar` that stands for none in a sigma, which is then 4096 and not infinite.
pub(crate) const LEAST_ALPHA_CUMPROD: f64 = 1.0 / (1u64 << 24) as f64;

/// How much signal and how much noise a state holds: `x = alpha * x0 + sigma * epsilon`.
///
/// Variance-preserving models have `alpha^2 + sigma^2 = 1`; solvers that work in sigma space have
/// `alpha = 1` and scale what they show to the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseLevel {
    /// What the network is told; solvers in sigma space interpolate between the training timesteps.
    pub timestep: f64,
    /// The factor of the clean sample.
    pub alpha: f64,
    /// The standard deviation of the noise.
    pub sigma: f64,
}

impl NoiseLevel {
    /// The variance-preserving level with `abar = alpha_cumprod`.
    pub fn variance_preserving(timestep: f64, alpha_cumprod: f64) -> Self {
        Self { timestep, alpha: alpha_cumprod.sqrt(), sigma: (1.0 - alpha_cumprod).sqrt() }
    }

    /// The variance-preserving level where noise over signal is `sigma`: `alpha = 1 / sqrt(1 + sigma^2)`.
    pub fn from_sigma(timestep: f64, sigma: f64) -> Self {
        let alpha = 1.0 / (1.0 + sigma * sigma).sqrt();
        Self { timestep, alpha, sigma: sigma * alpha }
    }

    /// Half the log-SNR, `lambda = ln(alpha / sigma)` (Lu et al. 2022); infinite where there is no noise.
    pub fn half_log_snr(&self) -> f64 {
        (self.alpha / self.sigma).ln()
    }

    /// `abar`, the share of the signal in the variance: `alpha^2 / (alpha^2 + sigma^2)`.
    pub fn alpha_cumprod(&self) -> f64 {
        let signal = self.alpha * self.alpha;
        signal / (signal + self.sigma * self.sigma)
    }

    /// The factor that turns a state at this level into the variance-preserving one that networks are
    /// trained on, `1 / sqrt(alpha^2 + sigma^2)`; exactly 1 where the level is variance-preserving.
    pub fn input_scale(&self) -> f64 {
        let variance = self.alpha * self.alpha + self.sigma * self.sigma;
        if (variance - 1.0).abs() < 1e-12 { 1.0 } else { 1.0 / variance.sqrt() }
    }

    /// The level of a state at this one that was multiplied by `factor`.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self { alpha: self.alpha * factor, sigma: self.sigma * factor, ..self }
    }

    /// Noises clean samples to this level: `alpha * x0 + sigma * noise`.
    ///
    /// # Shapes
    /// Both `[batch, ...]`, alike; so is the result.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn add_noise(&self, x0: &Tensor, noise: &Tensor) -> Result<Tensor> {
        Ok(((x0 * self.alpha)? + (noise * self.sigma)?)?)
    }
}
