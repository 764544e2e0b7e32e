//! Latents to pictures.

use candle_core::Tensor;
use tweedie::Result;
use tweedie::images::Picture;
use tweedie::models::Autoencoder;

/// The autoencoder's decoder.
#[derive(Debug)]
pub struct Decode {
    vae: Autoencoder,
}

impl Decode {
    /// From its autoencoder.
    pub fn new(vae: Autoencoder) -> Self {
        Self { vae }
    }

    /// The autoencoder.
    pub fn vae(&self) -> &Autoencoder {
        &self.vae
    }

    /// Decodes the latents of one image.
    ///
    /// # Shapes
    /// `latents`: `[1, latent_channels, height, width]` of the diffusion model.
    ///
    /// # Errors
    /// If the decoder gives values that are not finite.
    pub fn run(&self, latents: &Tensor) -> Result<Picture> {
        let decoded = self.vae.decode(&self.vae.config().unscaled(latents)?)?;
        let mut pictures = Picture::from_tensor(&decoded)?;
        Ok(pictures.swap_remove(0))
    }
}
