//! Diffusion in continuous time: the view in which DDPM is one discretisation.
//!
//! Song et al. 2021 ("Score-Based Generative Modeling through Stochastic Differential Equations") let noise
//! grow by a stochastic differential equation, here the variance-preserving [`VpSde`]. The [`Score`]
//! `grad log p_t(x)`, which a denoising network gives through Tweedie's formula, is all that is needed to run
//! it backwards:
//!
//! ```text
//! forward SDE             dx = f(x, t) dt + g(t) dw                                     (5)
//! reverse SDE             dx = [f(x, t) - g(t)^2 score(x, t)] dt + g(t) dw              (6)
//! probability-flow ODE    dx = [f(x, t) - 1/2 g(t)^2 score(x, t)] dt                   (13)
//! ```
//!
//! | | solved by |
//! |---|---|
//! | reverse SDE | [`ReverseSde::euler_maruyama`], [`PredictorCorrector`] |
//! | probability-flow ODE | [`ProbabilityFlow`] with [`DormandPrince`], an adaptive method for any ODE |
//! | likelihood | [`ProbabilityFlow::log_likelihood`] with the [`divergence`] from random [`Probes`] |
//! | noise levels without time | [`AnnealedLangevin`] with a [`NoiseConditionalScore`] |
//!
//! Time `t` is in `(0, 1]`, data at 0. Tensors are `[batch, ...]` of any rank; coefficients are f64 and
//! tensors keep their type. No image sees another's values or noise; only the ODE's step lengths are common
//! to a batch, and keep every image of it within the tolerance.
//!
//! # Examples
//!
//! ```
//! use tweedie::noise::{NoiseSource, TorchNoise};
//! use tweedie::score_based::{DormandPrince, ProbabilityFlow, Score, VpSde};
//! use tweedie::{Result, Tensor};
//!
//! /// Of standard normal data, which stay that at all times.
//! struct Normal;
//!
//! impl Score for Normal {
//!     fn score(&self, x: &Tensor, _: f64) -> Result<Tensor> {
//!         Ok(x.neg()?)
//!     }
//! }
//!
//! // Then no point has anywhere to go.
//! let flow = ProbabilityFlow::new(VpSde::new(0.1, 20.0)?, &Normal, 1e-3, DormandPrince::default())?;
//! let noise = TorchNoise::shared(0).normal(&[1, 4])?;
//! let data = flow.decode(&noise)?.x;
//! assert!((data - noise)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
//! # Ok::<_, tweedie::Error>(())
//! ```

mod annealed_langevin;
mod divergence;
mod dormand_prince;
mod likelihood;
mod predictor_corrector;
mod probability_flow;
mod reverse_sde;
mod score;
mod vp_sde;

pub use annealed_langevin::AnnealedLangevin;
pub use divergence::{Probes, divergence};
pub use dormand_prince::{DormandPrince, RungeKuttaStep, Solution, VectorField};
pub use likelihood::{EIGHT_BIT_OFFSET, LogLikelihood, uniformly_dequantized};
pub use predictor_corrector::PredictorCorrector;
pub use probability_flow::ProbabilityFlow;
pub use reverse_sde::ReverseSde;
pub use score::{DenoiserScore, NoiseConditionalScore, Score};
pub use vp_sde::VpSde;

use crate::noise::NoiseSource;
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Fresh standard normal noise with the shape, type and device of `x`.
fn normal_like(noise: &mut dyn NoiseSource, x: &Tensor) -> Result<Tensor> {
    Ok(noise.normal(x.dims())?.to_dtype(x.dtype())?.to_device(x.device())?)
}

/// The state after a step, if it consists of numbers.
fn finite(x: Tensor, stage: impl FnOnce() -> String) -> Result<Tensor> {
    let sum = x.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()?;
    if sum.is_finite() {
        return Ok(x);
    }
    Err(Error::NotFinite {
        stage: stage(),
        detail: format!("the magnitudes sum to {sum}"),
        fix: "take more or shorter steps, end farther from zero noise, or check the score",
    })
}
