//! A given picture to the distribution of its latents.

use crate::memory;
use crate::requests::inpaint::MaskFill;
use crate::task::Task;
use candle_core::Tensor;
use tweedie::families::NetworkFacts;
use tweedie::models::{Autoencoder, DiagonalGaussian};
use tweedie::{Device, Result};

/// What the autoencoder makes of a given picture. All is of batch 1; nothing is there for text to image.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    /// The picture's latents, unless denoising needs none.
    pub picture: Option<DiagonalGaussian>,
    /// The latents of the picture with grey where the mask is, for a network that is shown what is known.
    pub masked: Option<DiagonalGaussian>,
    /// The mask over latents, `[1, 1, height, width]`, 1 where to paint.
    pub mask: Option<Tensor>,
}

/// Encodes what a task brings along, in strips where there is too little memory for the encoder at once.
///
/// # Errors
/// If the autoencoder fails.
pub fn reference(task: &Task, vae: &dyn Autoencoder, network: &NetworkFacts, device: &Device) -> Result<Reference> {
    let latent_space = vae.latent_space();
    let encode = |pixels: &Tensor| {
        let (_, _, height, width) = pixels.dims4()?;
        vae.encode_in_strips(pixels, &memory::strips(vae.encoding_memory(height, width), width))
    };
    match task {
        Task::TextToImage => Ok(Reference::default()),
        Task::ImageToImage { canvas, .. } => {
            let pixels = canvas.picture()?.to_tensor(device)?;
            Ok(Reference { picture: Some(encode(&pixels)?), ..Reference::default() })
        }
        Task::Inpaint { canvas, strength, options } => {
            let picture = match options.mask_fill {
                MaskFill::Surroundings => canvas.picture()?.filled_from_surroundings(&canvas.mask()?)?,
                _ => canvas.picture()?,
            };
            let pixels = picture.to_tensor(device)?;
            let network_sees_known = network.in_channels > latent_space.channels;
            let known = canvas.mask()?.to_tensor(device)?.affine(-1.0, 1.0)?;
            let masked = pixels.broadcast_mul(&known)?;
            let mask = canvas.latent_mask(latent_space.factor)?;
            Ok(Reference {
                picture: (!network_sees_known || *strength < 1.0).then(|| encode(&pixels)).transpose()?,
                masked: network_sees_known.then(|| encode(&masked)).transpose()?,
                mask: Some(mask.to_tensor(device)?),
            })
        }
    }
}
