//! From a network's raw output to what a solver reads.
//!
//! Every network here estimates, one way or another, Tweedie's formula
//! `E[x0 | x_t] = (x_t + sigma_t^2 * score) / alpha_t`. [`Parameterization`] is the one place that knows
//! which way.

mod guidance;
mod parameterization;

pub use guidance::{
    AdaptiveProjectedGuidance, Classifier, ClassifierFreeGuidance, ClassifierGuidance, GuidanceSchedule, GuidanceShape,
    PerturbedAttentionGuidance, PerturbedNetwork, Projection,
};
pub use parameterization::{Limit, LimitFields, Parameterization, Prediction, PredictionType};

use crate::Result;
use crate::conditioning::Conditioning;
use crate::schedulers::NoiseLevel;
use candle_core::Tensor;

/// A trained network, or several combined, or anything with the same signature.
pub trait Network {
    /// The raw output for a state.
    ///
    /// # Shapes
    /// `x`: `[batch, in_channels, height, width]`, scaled to unit variance; `timestep` in training steps,
    /// not always whole; the result is `[batch, out_channels, height, width]`.
    ///
    /// # Errors
    /// If the shapes do not fit the network.
    fn forward(&self, x: &Tensor, timestep: f64, conditioning: &Conditioning) -> Result<Tensor>;
}

impl<N: Network + ?Sized> Network for &N {
    fn forward(&self, x: &Tensor, timestep: f64, conditioning: &Conditioning) -> Result<Tensor> {
        (**self).forward(x, timestep, conditioning)
    }
}

/// A network with its conditioning and the meaning of its output: what a solver evaluates.
pub struct Denoiser<'a> {
    network: &'a dyn Network,
    conditioning: &'a Conditioning,
    parameterization: &'a Parameterization,
}

impl<'a> Denoiser<'a> {
    /// Binds a network to what it is asked for and to what its output means.
    pub fn new(
        network: &'a dyn Network,
        conditioning: &'a Conditioning,
        parameterization: &'a Parameterization,
    ) -> Self {
        Self { network, conditioning, parameterization }
    }

    /// Evaluates the network once.
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]` at `level`; every part of the result has that shape.
    ///
    /// # Errors
    /// If the network fails, or the level has no such prediction (epsilon at zero signal).
    pub fn predict(&self, x: &Tensor, level: &NoiseLevel) -> Result<Prediction> {
        let scale = self.parameterization.input_scale(level);
        let input = if scale == 1.0 { x.clone() } else { (x * scale)? };
        let raw = self.network.forward(&input, level.timestep, self.conditioning)?;
        self.interpret(raw, x, level)
    }

    /// Reads a raw output as a prediction for the state `x` at `level`.
    ///
    /// # Shapes
    /// As [`Parameterization::convert`].
    ///
    /// # Errors
    /// If the level has no such prediction (epsilon at zero signal).
    pub fn interpret(&self, raw: Tensor, x: &Tensor, level: &NoiseLevel) -> Result<Prediction> {
        self.parameterization.convert(raw, x, level)
    }
}
