//! Perturbed-attention guidance.

use super::GuidanceSchedule;
use crate::Result;
use crate::conditioning::{Conditioning, Derived};
use crate::denoising::{Branch, Call, Network};
use candle_core::Tensor;

/// Guidance away from what the network says without looking around (Ahn et al. 2024, equation 8), along with
/// classifier-free guidance: `raw = negative + scale (positive - negative) + pag_scale (positive - perturbed)`.
pub struct PerturbedAttentionGuidance<'a> {
    network: &'a dyn Network,
    negative: Option<&'a Conditioning>,
    scale: GuidanceSchedule<'a>,
    pag_scale: f64,
    /// What is asked for in one batch, without the negative conditioning and with it.
    joined: [Derived; 2],
}

impl<'a> PerturbedAttentionGuidance<'a> {
    /// Guides by `pag_scale`, and away from `negative` by `scale` if there is one.
    pub fn new(
        network: &'a dyn Network,
        negative: Option<&'a Conditioning>,
        scale: impl Into<GuidanceSchedule<'a>>,
        pag_scale: f64,
    ) -> Self {
        Self { network, negative, scale: scale.into(), pag_scale, joined: Default::default() }
    }
}

impl Network for PerturbedAttentionGuidance<'_> {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let batch = call.x.dim(0)?;
        let scale = self.scale.at(&call.level()?);
        let negative = self.negative.filter(|_| scale != 1.0);
        // The unprompted branch only if it counts, all in one batch.
        let mut parts = vec![call.conditioning, call.conditioning];
        parts.extend(negative);
        let branches = &[Branch::Perturbed, Branch::Prompted, Branch::Unprompted][..parts.len()];
        let joined =
            self.joined[usize::from(negative.is_some())].of(call.conditioning, || Conditioning::cat(&parts))?;
        let (x, conditioning) = (&Tensor::cat(&vec![call.x; parts.len()], 0)?, &joined);
        let raw = self.network.forward(&Call { x, conditioning, branches, ..*call })?;
        let part = |i: usize| raw.narrow(0, i * batch, batch);
        let (perturbed, positive) = (part(0)?, part(1)?);
        let mut guided = (&positive + ((&positive - perturbed)? * self.pag_scale)?)?;
        if negative.is_some() {
            guided = (guided + ((&positive - part(2)?)? * (scale - 1.0))?)?;
        }
        Ok(guided)
    }
}
