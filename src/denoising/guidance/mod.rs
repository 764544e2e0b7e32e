//! Guidance: networks made of networks.
//!
//! Each kind takes a network and is one, so solvers and pipelines need not know that there is guidance.

mod adaptive_projected;
mod classifier;
mod classifier_free;
mod perturbed_attention;
mod schedule;

pub use adaptive_projected::{AdaptiveProjectedGuidance, Projection};
pub use classifier::{Classifier, ClassifierGuidance};
pub use classifier_free::ClassifierFreeGuidance;
pub use perturbed_attention::{PerturbedAttentionGuidance, PerturbedNetwork};
pub use schedule::{GuidanceSchedule, GuidanceShape};

use super::Network;
use crate::Result;
use crate::conditioning::Conditioning;
use candle_core::Tensor;
use std::cell::RefCell;

/// A network that is asked for two conditionings in one batch.
struct BothBranches<'a> {
    network: &'a dyn Network,
    negative: &'a Conditioning,
    /// The positive conditioning that was seen last, and both after one another: the same tensors in every step, so that
    /// the network can keep what it makes of them.
    joined: RefCell<Option<(Conditioning, Conditioning)>>,
}

impl<'a> BothBranches<'a> {
    fn new(network: &'a dyn Network, negative: &'a Conditioning) -> Self {
        Self { network, negative, joined: RefCell::default() }
    }

    /// The raw outputs for the negative conditioning and for the positive one.
    fn forward(&self, x: &Tensor, timestep: f64, positive: &Conditioning) -> Result<(Tensor, Tensor)> {
        let raw = self.network.forward(&Tensor::cat(&[x, x], 0)?, timestep, &self.joined(positive)?)?;
        let batch = x.dim(0)?;
        Ok((raw.narrow(0, 0, batch)?, raw.narrow(0, batch, batch)?))
    }

    fn joined(&self, positive: &Conditioning) -> Result<Conditioning> {
        if let Some((last, joined)) = &*self.joined.borrow()
            && last.is(positive)
        {
            return Ok(joined.clone());
        }
        let joined = Conditioning::cat(&[self.negative, positive])?;
        self.joined.replace(Some((positive.clone(), joined.clone())));
        Ok(joined)
    }
}
