//! The log-likelihood by the instantaneous change of variables.

use super::{ProbabilityFlow, Probes, divergence, normal_like};
use crate::Result;
use crate::noise::NoiseSource;
use candle_core::{DType, Device, Tensor};
use std::f64::consts::{LN_2, PI, SQRT_2};

/// Bits per dimension between the density of pixels scaled to `[-1, 1]` and the probability of 8-bit pixels:
/// one of 256 values is a cell of width `2 / 256`, and `log2(256 / 2) = 7`.
pub const EIGHT_BIT_OFFSET: f64 = 7.0;

/// The log-likelihoods of a batch.
#[derive(Debug, Clone)]
pub struct LogLikelihood {
    /// `log p(x)` in nats by image.
    pub nats: Vec<f64>,
    /// The standard error of each, from the spread of the probes; none if the divergence was exact or there was
    /// one probe.
    pub standard_error: Option<Vec<f64>>,
    /// The noise that the images map to: `[batch, ...]`.
    pub latents: Tensor,
    /// Evaluations of the score.
    pub evaluations: usize,
    dimensions: usize,
}

impl LogLikelihood {
    /// The negative log-likelihood in bits per dimension, plus `offset`: 0 for a density, and
    /// [`EIGHT_BIT_OFFSET`] for 8-bit pixels that [`uniformly_dequantized`] scaled.
    pub fn bits_per_dim(&self, offset: f64) -> Vec<f64> {
        self.nats.iter().map(|nats| offset - nats / (LN_2 * self.dimensions as f64)).collect()
    }
}

/// 8-bit pixels as a sample of a density on `[-1, 1]`: `2 (pixel + u) / 256 - 1` with `u` uniform in `[0, 1]`.
///
/// By Jensen's inequality the mean of its `bits_per_dim(EIGHT_BIT_OFFSET)` bounds the bits of the discrete
/// pixels from above (Theis et al. 2016, section 3.1). The uniform values are `Phi` of normal ones.
///
/// # Shapes
/// `pixels`, of values 0 to 255 in a floating-point type, and the result: `[batch, ...]`.
///
/// # Errors
/// If the noise fails.
pub fn uniformly_dequantized(pixels: &Tensor, noise: &mut dyn NoiseSource) -> Result<Tensor> {
    let uniform = (normal_like(noise, pixels)? / SQRT_2)?.erf()?.affine(0.5, 0.5)?;
    Ok((pixels + uniform)?.affine(1.0 / 128.0, -1.0)?)
}

impl ProbabilityFlow<'_> {
    /// `log p_0(x(0)) = log p_1(x(1)) + integral of div v(x(t), t) dt` along the flow `dx/dt = v(x, t)` (Song et al.
    /// 2021, equation 39), where `p_1` is the prior `N(0, I)`.
    ///
    /// The probes are drawn once and kept along the way, so that the integrand is smooth. The density is that
    /// of the earliest time. It is as good as the prior is for `t = 1`, where the SDE's own density still holds
    /// a share `alpha(1)` of the data: 0.007 for the paper's betas, 0.07 for Stable Diffusion's.
    ///
    /// # Shapes
    /// `x`, f32 or f64: `[batch, ...]` with at least one further dimension.
    ///
    /// # Errors
    /// If the score has no derivative, or the score, the noise or the integration fails.
    pub fn log_likelihood(&self, x: &Tensor, probes: Probes, noise: &mut dyn NoiseSource) -> Result<LogLikelihood> {
        let shape = x.shape().clone();
        let start = x.flatten_from(1)?;
        let (batch, dimensions) = start.dims2()?;
        let vectors = probes.draw(x, noise)?;

        // div(-1/2 beta (x + score)) has the trace of the identity, d, estimated by the same probes: where the
        // density is nearly the prior both traces cancel, and with them the errors of Gaussian probes.
        let squares = vectors.iter().map(|v| Ok(v.sqr()?.flatten_from(1)?.sum_keepdim(1)?));
        let squares = Tensor::cat(&squares.collect::<Result<Vec<_>>>()?, 1)?;

        // One row of the ODE's state is an image and, by probe, the integral so far.
        let integrals = Tensor::zeros((batch, vectors.len()), x.dtype(), x.device())?;
        let augmented = |state: &Tensor, t: f64| -> Result<Tensor> {
            let x = state.narrow(1, 0, dimensions)?.reshape(&shape)?;
            let (score, traces) = divergence(|x| self.score().score(x, t), &x, &vectors)?;
            let velocity = self.velocity_of(&x, &score, t)?.flatten_from(1)?;
            let divergence = ((traces + &squares)? * (-0.5 * self.sde().beta(t)))?;
            Ok(Tensor::cat(&[velocity, divergence], 1)?)
        };
        let state = Tensor::cat(&[start, integrals], 1)?;
        let end = self.integrator().integrate(&augmented, &state, self.earliest(), 1.0)?;

        let latents = end.x.narrow(1, 0, dimensions)?;
        let changes = on_host(&end.x.narrow(1, dimensions, vectors.len())?)?;
        let nats = on_host(&latents)?.iter().zip(&changes).map(|(z, changes)| log_prior(z) + mean(changes)).collect();
        let estimated = !probes.is_exact() && vectors.len() > 1;
        let standard_error = estimated.then(|| changes.iter().map(|changes| standard_error(changes)).collect());
        let latents = latents.reshape(&shape)?;
        Ok(LogLikelihood { nats, standard_error, latents, evaluations: end.evaluations, dimensions })
    }
}

/// `log N(z; 0, I)`.
fn log_prior(z: &[f64]) -> f64 {
    -0.5 * z.iter().map(|z| z * z + (2.0 * PI).ln()).sum::<f64>()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Of the mean of at least two values.
fn standard_error(values: &[f64]) -> f64 {
    let (center, count) = (mean(values), values.len() as f64);
    let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    (squares / (count * (count - 1.0))).sqrt()
}

fn on_host(rows: &Tensor) -> Result<Vec<Vec<f64>>> {
    Ok(rows.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_vec2()?)
}
