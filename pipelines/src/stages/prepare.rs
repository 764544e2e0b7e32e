//! Noise levels and the first latents of a batch.

use crate::request::Settings;
use candle_core::Tensor;
use tweedie::models::AutoencoderConfig;
use tweedie::noise::NoiseSource;
use tweedie::schedulers::{Levels, Scheduler};
use tweedie::{Device, Result};

/// What denoising starts from.
pub struct Prepared {
    /// The configured scheduler.
    pub scheduler: Box<dyn Scheduler>,
    /// The levels of the run.
    pub levels: Levels,
    /// Noise: `[batch, latent_channels, height / factor, width / factor]`.
    pub latents: Tensor,
}

/// Draws the first latents, in f32, as the first thing that each image's stream gives.
///
/// # Errors
/// If the number of steps is impossible.
pub fn prepare(
    settings: &Settings,
    vae: &AutoencoderConfig,
    batch: usize,
    noise: &mut dyn NoiseSource,
    device: &Device,
) -> Result<Prepared> {
    let scheduler = settings.build_scheduler()?;
    let levels = scheduler.levels(settings.steps)?;
    let factor = vae.factor();
    let shape = [batch, vae.latent_channels, settings.height / factor, settings.width / factor];
    let latents = (noise.normal(&shape)?.to_device(device)? * levels.init_noise_sigma())?;
    Ok(Prepared { scheduler, levels, latents })
}
