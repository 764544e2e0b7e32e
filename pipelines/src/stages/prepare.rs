//! Noise levels, the first latents of a batch, and what of the picture is known.

use super::Reference;
use crate::requests::inpaint::MaskFill;
use crate::settings::Settings;
use crate::task::Task;
use candle_core::Tensor;
use tweedie::models::{DiagonalGaussian, LatentSpace};
use tweedie::noise::NoiseSource;
use tweedie::schedulers::{Levels, Resampling, Scheduler};
use tweedie::{Device, NoiseLevel, Result};

/// What denoising starts from.
pub struct Prepared {
    /// The configured scheduler.
    pub scheduler: Box<dyn Scheduler>,
    /// The levels of the run.
    pub levels: Levels,
    /// The step to start with.
    pub start: usize,
    /// Noise, or a noised picture: `[batch, latent_channels, height / factor, width / factor]`.
    pub latents: Tensor,
    /// What is put back into every state.
    pub known: Option<Known>,
    /// What the network is shown beside the state: mask and masked picture,
    /// `[batch, 1 + latent_channels, height / factor, width / factor]`.
    pub shown: Option<Tensor>,
    /// The jumps back in time.
    pub resampling: Resampling,
}

/// The known part of a picture, for networks that are not shown it.
pub struct Known {
    /// The latents of the given picture, one for each image.
    pub latents: Tensor,
    /// The noise that they are noised with at every level.
    pub noise: Tensor,
    /// 1 where to paint, `[1, 1, height, width]`.
    pub mask: Tensor,
}

impl Known {
    /// Keeps `x` where the mask is 1, and puts the known latents at `level` where it is 0. At `end` they are put back
    /// as they are, whatever noise the solver leaves there.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn put_back(&self, x: &Tensor, level: &NoiseLevel, end: &NoiseLevel) -> Result<Tensor> {
        let known = if level == end { self.latents.clone() } else { level.add_noise(&self.latents, &self.noise)? };
        let unmasked = self.mask.affine(-1.0, 1.0)?;
        Ok((known.broadcast_mul(&unmasked)? + x.broadcast_mul(&self.mask)?)?)
    }
}

/// Draws the first latents, in f32, and encodes what is known.
///
/// Each image's stream gives, in diffusers' order: the sample of the picture's latents if they are needed, the
/// noise, and for inpainting the sample of the masked picture's latents, even where the network has no use for it.
///
/// # Errors
/// If the number of steps is impossible.
pub fn prepare(
    settings: &Settings,
    reference: &Reference,
    latent_space: &LatentSpace,
    batch: usize,
    noise: &mut dyn NoiseSource,
    device: &Device,
) -> Result<Prepared> {
    let scheduler = settings.build_scheduler()?;
    let levels = scheduler.levels(settings.steps)?;
    let factor = latent_space.factor;
    let shape = [batch, latent_space.channels, settings.height / factor, settings.width / factor];
    let mut draw = || -> Result<Tensor> { Ok(noise.normal(&shape)?.to_device(device)?) };

    let picture =
        reference.picture.as_ref().map(|gaussian| sampled(gaussian, &mut draw, batch, latent_space)).transpose()?;
    let noise = draw()?;
    let picture = match (&settings.task, &reference.mask, picture) {
        (Task::Inpaint { options, .. }, Some(mask), Some(picture)) => {
            Some(filled(picture, options.mask_fill, mask, &noise)?)
        }
        (.., picture) => picture,
    };
    let start = settings.start();
    // At full strength inpainting forgets what is under the mask; image to image still starts from its picture.
    let from_pure_noise = matches!(&settings.task, Task::Inpaint { strength, .. } if *strength == 1.0);
    let latents = match &picture {
        Some(picture) if !from_pure_noise => levels.from(start).add_noise(picture, &noise)?,
        _ => (&noise * levels.init_noise_sigma())?,
    };
    let resampling = Resampling::default();
    let mut prepared = Prepared { scheduler, levels, start, latents, known: None, shown: None, resampling };
    if let (Task::Inpaint { options, .. }, Some(mask)) = (&settings.task, &reference.mask) {
        prepared.resampling = options.resampling();
        if let Some(masked) = &reference.masked {
            let masked = sampled(masked, &mut draw, batch, latent_space)?;
            prepared.shown = Some(Tensor::cat(&[&mask.repeat((batch, 1, 1, 1))?, &masked], 1)?);
        } else if let Some(latents) = picture {
            // diffusers draws for the masked picture here too, and has no use for it.
            if reference.picture.as_ref().is_some_and(|gaussian| !gaussian.is_certain()) {
                draw()?;
            }
            prepared.known = Some(Known { latents, noise, mask: mask.clone() });
        }
    }
    Ok(prepared)
}

/// Latents with what drawing starts from where the mask is 1. Colours of the surroundings are in them already.
fn filled(latents: Tensor, fill: MaskFill, mask: &Tensor, noise: &Tensor) -> Result<Tensor> {
    let unmasked = || latents.broadcast_mul(&mask.affine(-1.0, 1.0)?);
    match fill {
        MaskFill::Original | MaskFill::Surroundings => Ok(latents),
        MaskFill::Nothing => Ok(unmasked()?),
        MaskFill::Noise => Ok((unmasked()? + noise.broadcast_mul(mask)?)?),
    }
}

/// Scaled latents for each image; where they are certain nothing is drawn.
fn sampled(
    gaussian: &DiagonalGaussian,
    draw: &mut dyn FnMut() -> Result<Tensor>,
    batch: usize,
    latent_space: &LatentSpace,
) -> Result<Tensor> {
    let each = gaussian.repeat(batch)?;
    latent_space.scaled(&if each.is_certain() { each.mean } else { each.sample(&draw()?)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tweedie::Device;

    #[test]
    fn what_is_under_the_mask_is_filled_and_the_rest_stays() -> Result<()> {
        let row = |values: [f32; 4]| Tensor::from_slice(&values, (1, 1, 1, 4), &Device::Cpu);
        let (latents, noise) = (row([1.0, 2.0, 3.0, 4.0])?, row([0.1, 0.2, 0.3, 0.4])?);
        let mask = row([0.0, 1.0, 1.0, 0.0])?;
        for (fill, expected) in [
            (MaskFill::Original, [1.0, 2.0, 3.0, 4.0]),
            (MaskFill::Surroundings, [1.0, 2.0, 3.0, 4.0]),
            (MaskFill::Noise, [1.0, 0.2, 0.3, 4.0]),
            (MaskFill::Nothing, [1.0, 0.0, 0.0, 4.0]),
        ] {
            let filled = filled(latents.clone(), fill, &mask, &noise)?;
            assert_eq!(filled.flatten_all()?.to_vec1::<f32>()?, expected, "{fill:?}");
        }
        Ok(())
    }
}
