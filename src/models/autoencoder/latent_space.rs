//! What pictures are encoded to.

use crate::Result;
use candle_core::Tensor;

/// The latents of an autoencoder, as a diffusion model has them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentSpace {
    /// Channels.
    pub channels: usize,
    /// Pixels per latent value along a side.
    pub factor: usize,
    /// What the encoder's latents are multiplied by.
    pub scaling_factor: f64,
}

impl LatentSpace {
    /// The encoder's latents as a diffusion model has them: `z * scaling_factor`.
    ///
    /// # Errors
    /// If they are no floats.
    pub fn scaled(&self, latents: &Tensor) -> Result<Tensor> {
        Ok((latents * self.scaling_factor)?)
    }

    /// A diffusion model's latents as the decoder takes them: `z / scaling_factor`.
    ///
    /// # Errors
    /// If they are no floats.
    pub fn unscaled(&self, latents: &Tensor) -> Result<Tensor> {
        Ok((latents / self.scaling_factor)?)
    }
}
