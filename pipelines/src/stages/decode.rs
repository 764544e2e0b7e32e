//! Latents to pictures.

use candle_core::Tensor;
use tweedie::Result;
use tweedie::images::Picture;
use tweedie::models::{Autoencoder, Watch};

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

    /// Decodes the latents of one image; `watch` is told of the decoder's parts that are done, and of how many there are, and
    /// says whether to go on.
    ///
    /// # Shapes
    /// `latents`: `[1, latent_channels, height, width]` of the diffusion model.
    ///
    /// # Errors
    /// [`tweedie::Error::Cancelled`] if `watch` breaks; if the decoder gives values that are not finite.
    pub fn run(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Picture> {
        let decoded = self.vae.decode_watched(&self.vae.config().unscaled(latents)?, watch)?;
        let mut pictures = Picture::from_tensor(&decoded)?;
        Ok(pictures.swap_remove(0))
    }
}
