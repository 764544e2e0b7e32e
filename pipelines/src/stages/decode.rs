//! Latents to pictures.

use crate::memory;
use candle_core::Tensor;
use std::ops::ControlFlow;
use tweedie::Result;
use tweedie::images::Picture;
use tweedie::models::{Autoencoder, LatentSpace, Watch};

/// The autoencoder's decoder.
#[derive(Debug)]
pub struct Decode {
    vae: Box<dyn Autoencoder>,
    latent_space: LatentSpace,
}

impl Decode {
    /// From its autoencoder.
    pub fn new(vae: Box<dyn Autoencoder>) -> Self {
        Self { latent_space: vae.latent_space(), vae }
    }

    /// The autoencoder.
    pub fn vae(&self) -> &dyn Autoencoder {
        self.vae.as_ref()
    }

    /// What it decodes.
    pub fn latent_space(&self) -> &LatentSpace {
        &self.latent_space
    }

    /// Decodes the latents of one image.
    ///
    /// # Shapes
    /// `latents`: `[1, latent_channels, height, width]` of the diffusion model.
    ///
    /// # Errors
    /// If the decoder gives values that are not finite.
    pub fn run(&self, latents: &Tensor) -> Result<Picture> {
        self.run_watched(latents, &mut |_, _| ControlFlow::Continue(()))
    }

    /// The same, in strips where there is too little memory for the decoder at once, which changes no pixel; `watch` is told of the
    /// decoder's parts that are done, and of how many there are, and says whether to go on.
    ///
    /// # Errors
    /// [`tweedie::Error::Cancelled`] if `watch` breaks; if the decoder gives values that are not finite.
    pub fn run_watched(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Picture> {
        let (_, _, height, width) = latents.dims4()?;
        let strips = memory::strips(self.vae.decoding_memory(height, width), width * self.latent_space.factor);
        let decoded = self.vae.decode_in_strips(&self.latent_space.unscaled(latents)?, &strips, watch)?;
        let mut pictures = Picture::from_tensor(&decoded)?;
        Ok(pictures.swap_remove(0))
    }
}
