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

/// The raw outputs for two conditionings, computed in one batch.
fn both_branches(
    network: &dyn Network,
    x: &Tensor,
    timestep: f64,
    [negative, positive]: [&Conditioning; 2],
) -> Result<(Tensor, Tensor)> {
    let both = Conditioning::cat(&[negative, positive])?;
    let raw = network.forward(&Tensor::cat(&[x, x], 0)?, timestep, &both)?;
    let batch = x.dim(0)?;
    Ok((raw.narrow(0, 0, batch)?, raw.narrow(0, batch, batch)?))
}
