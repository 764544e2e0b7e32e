//! Perturbed-attention guidance.

use super::GuidanceSchedule;
use crate::Result;
use crate::conditioning::{Conditioning, Derived};
use crate::denoising::Network;
use candle_core::Tensor;

/// A network that can also answer with its self-attention switched to the identity somewhere.
pub trait PerturbedNetwork: Network {
    /// The raw outputs for the conditioning, the first `perturbed` rows of the batch with perturbed attention.
    ///
    /// # Shapes
    /// As [`Network::forward`].
    ///
    /// # Errors
    /// As [`Network::forward`].
    fn forward_perturbed(
        &self,
        x: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        perturbed: usize,
    ) -> Result<Tensor>;
}

/// Guidance away from what the network says without looking around (Ahn et al. 2024, equation 8), along with
/// classifier-free guidance: `raw = negative + scale (positive - negative) + pag_scale (positive - perturbed)`.
pub struct PerturbedAttentionGuidance<'a> {
    network: &'a dyn PerturbedNetwork,
    negative: Option<&'a Conditioning>,
    scale: GuidanceSchedule,
    pag_scale: f64,
    /// What is asked for in one batch, without the negative conditioning and with it.
    joined: [Derived; 2],
}

impl<'a> PerturbedAttentionGuidance<'a> {
    /// Guides by `pag_scale`, and away from `negative` by `scale` if there is one.
    pub fn new(
        network: &'a dyn PerturbedNetwork,
        negative: Option<&'a Conditioning>,
        scale: impl Into<GuidanceSchedule>,
        pag_scale: f64,
    ) -> Self {
        Self { network, negative, scale: scale.into(), pag_scale, joined: Default::default() }
    }
}

impl Network for PerturbedAttentionGuidance<'_> {
    fn forward(&self, x: &Tensor, timestep: f64, conditioning: &Conditioning) -> Result<Tensor> {
        let batch = x.dim(0)?;
        let scale = self.scale.at(timestep);
        let negative = self.negative.filter(|_| scale != 1.0);
        // Perturbed, positive, and negative if it counts, in one batch.
        let mut parts = vec![conditioning, conditioning];
        parts.extend(negative);
        let rows = vec![x; parts.len()];
        let joined = self.joined[usize::from(negative.is_some())].of(conditioning, || Conditioning::cat(&parts))?;
        let raw = self.network.forward_perturbed(&Tensor::cat(&rows, 0)?, timestep, &joined, batch)?;
        let part = |i: usize| raw.narrow(0, i * batch, batch);
        let (perturbed, positive) = (part(0)?, part(1)?);
        let mut guided = (&positive + ((&positive - perturbed)? * self.pag_scale)?)?;
        if negative.is_some() {
            guided = (guided + ((&positive - part(2)?)? * (scale - 1.0))?)?;
        }
        Ok(guided)
    }
}
