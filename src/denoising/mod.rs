//! From a network's raw output to what a solver reads.
//!
//! Every network here estimates, one way or another, Tweedie's formula
//! `E[x0 | x_t] = (x_t + sigma_t^2 * score) / alpha_t`. [`Parameterization`] is the one place that knows
//! which way.
//!
//! # Examples
//!
//! ```
//! use tweedie::conditioning::Conditioning;
//! use tweedie::denoising::{Cache, Call, ClassifierFreeGuidance, Network};
//! use tweedie::{DType, Device, NoiseLevel, Result, Tensor};
//!
//! /// Answers with the class that it is told.
//! struct Told;
//!
//! impl Network for Told {
//!     fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
//!         let classes = call.conditioning.class_labels.as_ref().expect("a class for each row");
//!         Ok(classes.to_dtype(DType::F32)?.reshape(((), 1, 1, 1))?.broadcast_as(call.x.dims())?.contiguous()?)
//!     }
//! }
//!
//! // none + scale (prompted - none) = 1 + 3 (5 - 1)
//! let x = Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu)?;
//! let [five, one] = [5, 1].map(|class| Conditioning::classes(&[class], &Device::Cpu));
//! let (five, one, cache) = (five?, one?, Cache::default());
//! let guided = ClassifierFreeGuidance::new(&Told, &one, 3.0, 0.0);
//! let level = NoiseLevel { timestep: 500.0, alpha: 0.6, sigma: 0.8 };
//! let answer = guided.forward(&Call::new(&x, level, &five, &cache))?;
//! assert_eq!(answer.flatten_all()?.to_vec1::<f32>()?, [13.0]);
//! # Ok::<_, tweedie::Error>(())
//! ```

mod call;
mod guidance;
mod inpainting;
mod parameterization;
mod reuse;

pub use crate::layers::Cache;
pub use call::{Branch, Call, Position, RowLevels};
pub use guidance::{
    AdaptiveProjectedGuidance, Classifier, ClassifierFreeGuidance, ClassifierGuidance, GuidanceSchedule, GuidanceShape,
    NoiseShare, PerturbedAttentionGuidance, Projection,
};
pub use inpainting::InpaintingNetwork;
pub use parameterization::{Limit, LimitFields, Parameterization, Prediction, PredictionType};
pub use reuse::{Reuse, ReuseSchedule};

use crate::conditioning::Conditioning;
use crate::{NoiseLevel, Result};
use candle_core::Tensor;

/// A trained network, or several combined, or anything with the same signature.
///
/// Models are a pure function of their weights and the call, so threads share them. What guides or controls one may hold
/// the state of a run, and then lives as long as that.
pub trait Network {
    /// The raw output for the states of a call.
    ///
    /// A network without self-attention that it could do without refuses perturbed rows.
    ///
    /// # Shapes
    /// The call's as its fields say; the result is `[rows, out_channels, height, width]`, in the type of `x`.
    ///
    /// # Errors
    /// If the shapes or the conditioning do not fit the network.
    fn forward(&self, call: &Call<'_>) -> Result<Tensor>;
}

impl<N: Network + ?Sized> Network for &N {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        (**self).forward(call)
    }
}

/// A network with its conditioning and the meaning of its output: what a solver evaluates.
///
/// One lives for one run: what the network keeps of the conditioning from step to step is the run's, and is let go with it.
pub struct Denoiser<'a> {
    network: &'a dyn Network,
    conditioning: &'a Conditioning,
    parameterization: &'a Parameterization,
    cache: Cache,
    reuse: Option<ReuseSchedule>,
    token_merging: f64,
}

impl<'a> Denoiser<'a> {
    /// Binds a network to what it is asked for and to what its output means.
    pub fn new(
        network: &'a dyn Network,
        conditioning: &'a Conditioning,
        parameterization: &'a Parameterization,
    ) -> Self {
        Self { network, conditioning, parameterization, cache: Cache::default(), reuse: None, token_merging: 0.0 }
    }

    /// The same in a run of which some calls alone are whole.
    #[must_use]
    pub fn reusing(self, reuse: Option<ReuseSchedule>) -> Self {
        Self { reuse, ..self }
    }

    /// The same with such a share of tokens merged, as [`Call::token_merging`] has it.
    #[must_use]
    pub fn merging_tokens(self, share: f64) -> Self {
        Self { token_merging: share, ..self }
    }

    /// Evaluates the network once, at a position of a run or outside of any.
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]` at `level`; every part of the result has that shape.
    ///
    /// # Errors
    /// If the network fails, or the level has no such prediction (epsilon at zero signal).
    pub fn predict(&self, x: &Tensor, level: &NoiseLevel, position: Option<Position>) -> Result<Prediction> {
        let scale = self.parameterization.input_scale(level);
        let scaled = if scale == 1.0 { x.clone() } else { (x * scale)? };
        let call = Call::new(&scaled, level.scaled(scale), self.conditioning, &self.cache);
        let reuse = self.reuse.map_or(Reuse::Nothing, |schedule| schedule.at(position));
        let raw = self.network.forward(&Call { position, reuse, token_merging: self.token_merging, ..call })?;
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
