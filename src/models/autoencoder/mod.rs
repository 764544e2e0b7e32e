//! The variational autoencoder between pixels and latents (Kingma and Welling 2014; Rombach et al. 2022), as
//! diffusers' `AutoencoderKL` has it.

mod config;
mod either;
mod halves;
mod latent_space;
mod strips;
mod tiny;

pub use config::AutoencoderConfig;
pub use either::EitherAutoencoderConfig;
pub use latent_space::LatentSpace;
pub use strips::Strips;
pub use tiny::{AutoencoderTiny, AutoencoderTinyConfig};

use crate::layers::{Backend, Conv2d, FeatureMap, Weights};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use halves::{Decoder, Encoder};
use std::fmt;
use std::ops::ControlFlow;

/// Pixels to latents and back.
pub trait Autoencoder: fmt::Debug + Send + Sync {
    /// What it encodes pictures to.
    fn latent_space(&self) -> LatentSpace;

    /// # Shapes
    /// `images`: `[batch, in_channels, height, width]` in `[-1, 1]`; the result's parts:
    /// `[batch, latent_channels, height / factor, width / factor]`, unscaled.
    ///
    /// # Errors
    /// If the encoder was left out, or the channels do not fit.
    fn encode(&self, images: &Tensor) -> Result<DiagonalGaussian>;

    /// Decodes latents as the encoder gives them; see [`LatentSpace::unscaled`] for those of a diffusion model. `watch` is told
    /// of the decoder's parts.
    ///
    /// # Shapes
    /// `latents`: `[batch, latent_channels, height, width]`; the result:
    /// `[batch, out_channels, height * factor, width * factor]`, about `[-1, 1]`, not clamped.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `watch` breaks; if the channels do not fit.
    fn decode_watched(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor>;

    /// [`Self::encode`] in strips, which changes no bit of the result. Where an autoencoder has no strips, as on other devices than
    /// the CPU, all is encoded at once.
    ///
    /// # Shapes
    /// As [`Self::encode`].
    ///
    /// # Errors
    /// As [`Self::encode`]; if there is no room for a temporary file, or a gradient is asked for.
    fn encode_in_strips(&self, images: &Tensor, _strips: &Strips) -> Result<DiagonalGaussian> {
        self.encode(images)
    }

    /// [`Self::decode_watched`] in strips, which changes no bit of the result. Where an autoencoder has no strips, as on other
    /// devices than the CPU, all is decoded at once. `watch` is asked after every strip whether to go on.
    ///
    /// # Shapes
    /// As [`Self::decode_watched`].
    ///
    /// # Errors
    /// As [`Self::decode_watched`]; if there is no room for a temporary file, or a gradient is asked for.
    fn decode_in_strips(&self, latents: &Tensor, _strips: &Strips, watch: &mut Watch<'_>) -> Result<Tensor> {
        self.decode_watched(latents, watch)
    }

    /// Bytes that decoding latents of this size takes beside the weights; 0 if that is not known.
    fn decoding_memory(&self, _height: usize, _width: usize) -> Memory {
        Memory::default()
    }

    /// The same of encoding pictures of this size.
    fn encoding_memory(&self, _height: usize, _width: usize) -> Memory {
        Memory::default()
    }

    /// The same, with nobody watching.
    ///
    /// # Errors
    /// If the channels do not fit.
    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_watched(latents, &mut |_, _| ControlFlow::Continue(()))
    }
}

/// Bytes that a half of an autoencoder takes for a picture of some size, beside the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// The most that maps have when all is computed at once; 0 if that is not known.
    pub at_once: u64,
    /// What they have at the very least, in [`Strips`] if there are any; 0 if that is not known.
    pub least: u64,
}

/// The encoder's answer: a Gaussian with a diagonal covariance for each latent value.
#[derive(Debug, Clone)]
pub struct DiagonalGaussian {
    /// `[batch, latent_channels, height, width]`; also the mode.
    pub mean: Tensor,
    /// Logarithm of the variance, limited to -30 and 20, alike.
    pub log_variance: Tensor,
    is_certain: bool,
}

impl DiagonalGaussian {
    /// One value for certain, of an autoencoder that gives no distribution.
    ///
    /// # Errors
    /// If the device fails.
    pub fn certain(latents: Tensor) -> Result<Self> {
        let log_variance = Tensor::full(f32::NEG_INFINITY, latents.shape(), latents.device())?;
        Ok(Self { log_variance: log_variance.to_dtype(latents.dtype())?, mean: latents, is_certain: true })
    }

    /// Whether there is nothing to draw.
    pub fn is_certain(&self) -> bool {
        self.is_certain
    }

    /// The most likely latents.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// One of a batch of 1, repeated for `batch` images.
    ///
    /// # Errors
    /// If the latents have another number of dimensions than four.
    pub fn repeat(&self, batch: usize) -> Result<Self> {
        let repeat = |x: &Tensor| x.repeat((batch, 1, 1, 1));
        Ok(Self { mean: repeat(&self.mean)?, log_variance: repeat(&self.log_variance)?, is_certain: self.is_certain })
    }

    /// Latents for standard normal `noise` of the same shape: `mean + std * noise`.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((&self.mean + ((&self.log_variance * 0.5)?.exp()? * noise)?)?)
    }
}

/// Is told how many of a decoder's parts are done and how many there are, before the first and after each; breaking stops it.
pub type Watch<'a> = dyn FnMut(usize, usize) -> ControlFlow<()> + 'a;

/// Tells a [`Watch`] of a part.
///
/// # Errors
/// [`Error::Cancelled`] if it breaks.
fn tell(watch: &mut Watch<'_>, done: usize, parts: usize) -> Result<()> {
    if watch(done, parts).is_break() { Err(Error::Cancelled) } else { Ok(()) }
}

/// The autoencoder; the encoder can be left out where it is not needed.
#[derive(Debug)]
pub struct AutoencoderKl {
    encoder: Option<(Encoder, Option<Conv2d>)>,
    decoder: Decoder,
    post_quant_conv: Option<Conv2d>,
    config: AutoencoderConfig,
    backend: Backend,
    /// The element type of activations.
    dtype: DType,
}

/// Which halves of an autoencoder to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halves {
    /// Both.
    Both,
    /// The decoder alone, for text to image.
    Decoder,
}

impl AutoencoderKl {
    /// Builds the autoencoder. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: AutoencoderConfig, halves: Halves, dtype: DType) -> Result<Self> {
        let latent = config.latent_channels;
        let encoder = (halves == Halves::Both).then(|| {
            let quant =
                config.use_quant_conv.then(|| Conv2d::new(&weights.at("quant_conv"), 2 * latent, 2 * latent, 1));
            Ok::<_, Error>((Encoder::new(&weights.at("encoder"), &config)?, quant.transpose()?))
        });
        let post = config.use_post_quant_conv.then(|| Conv2d::new(&weights.at("post_quant_conv"), latent, latent, 1));
        Ok(Self {
            encoder: encoder.transpose()?,
            decoder: Decoder::new(&weights.at("decoder"), &config)?,
            post_quant_conv: post.transpose()?,
            backend: weights.backend(),
            config,
            dtype,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }
}

impl Autoencoder for AutoencoderKl {
    fn latent_space(&self) -> LatentSpace {
        self.config.latent_space()
    }

    fn encode(&self, images: &Tensor) -> Result<DiagonalGaussian> {
        self.encode_in_strips(images, &Strips::NONE)
    }

    fn decode_watched(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        self.decode_in_strips(latents, &Strips::NONE, watch)
    }

    fn encode_in_strips(&self, images: &Tensor, strips: &Strips) -> Result<DiagonalGaussian> {
        let Some((encoder, quant)) = &self.encoder else {
            return Err(Error::invalid("the autoencoder", "a decoder alone", "build it with Halves::Both to encode"));
        };
        let moments = self.each(images, strips, |x, strips, _| {
            let h = encoder.forward(x, strips)?;
            match quant {
                Some(quant) => quant.forward(&h),
                None => Ok(h),
            }
        })?;
        let moments = moments.chunk(2, 1)?;
        let log_variance = moments[1].clamp(-30.0, 20.0)?;
        Ok(DiagonalGaussian { mean: moments[0].clone(), log_variance, is_certain: false })
    }

    fn decode_in_strips(&self, latents: &Tensor, strips: &Strips, watch: &mut Watch<'_>) -> Result<Tensor> {
        self.each(latents, strips, |z, strips, (image, images)| {
            let z = match &self.post_quant_conv {
                Some(post) => post.forward(&z)?,
                None => z,
            };
            self.decoder.forward(z, strips, &mut |done, parts| watch(image * parts + done, images * parts))
        })
    }

    /// At the highest resolution a residual block has what comes from below, the same normalised, and what it makes of it.
    fn decoding_memory(&self, height: usize, width: usize) -> Memory {
        let channels = &self.config.block_out_channels;
        let beside = 2 * channels.get(1).unwrap_or(&channels[0]) + channels[0];
        let factor = self.config.latent_space().factor;
        let (rows, columns) = (height.saturating_mul(factor), width.saturating_mul(factor));
        let at_once = strips::bytes(beside as u64, rows, columns);
        self.memory(at_once, (height, width), (rows, columns))
    }

    /// At the highest resolution a residual block has what goes in, what is between, and what comes out.
    fn encoding_memory(&self, height: usize, width: usize) -> Memory {
        let values = 3 * self.config.block_out_channels[0] + self.config.in_channels;
        let factor = self.config.latent_space().factor;
        let at_once = strips::bytes(values as u64, height, width);
        self.memory(at_once, (height / factor, width / factor), (height, width))
    }
}

impl AutoencoderKl {
    /// With what it takes for latents of this size at the lowest resolution, which is never in strips. Without the attention that
    /// is a residual block's input, its output and two maps between. The picture, whose size is given last, is there twice: as it
    /// comes or goes, and as layers have it.
    fn memory(&self, at_once: u64, (height, width): (usize, usize), (rows, columns): (usize, usize)) -> Memory {
        let channels = self.config.block_out_channels.last().map_or(0, |&channels| channels as u64);
        let maps = |count: u64| strips::bytes(count * channels, height, width);
        let attends = self.config.mid_block_add_attention;
        let lowest = if attends { maps(8) } else { maps(4) };
        match self.backend {
            Backend::Kernels => {
                let picture = strips::bytes(2 * self.config.in_channels as u64, rows, columns);
                let least = if attends { maps(6) } else { maps(4) };
                Memory { at_once: at_once.max(lowest), least: least.max(picture) }
            }
            Backend::Candle => Memory { at_once, least: at_once },
        }
    }

    /// Runs a half on all images together, or on each by itself if it is in strips, which it is told.
    fn each(
        &self,
        x: &Tensor,
        strips: &Strips,
        mut half: impl FnMut(FeatureMap, &Strips, (usize, usize)) -> Result<FeatureMap>,
    ) -> Result<Tensor> {
        let mut run = |x: &Tensor, strips: &Strips, place: (usize, usize)| -> Result<Tensor> {
            let map = FeatureMap::from_nchw(&x.to_dtype(self.dtype)?, self.backend)?;
            Ok(half(map, strips, place)?.to_nchw()?.to_dtype(x.dtype())?)
        };
        let count = x.dim(0)?;
        if *strips == Strips::NONE || self.backend == Backend::Candle || count == 0 {
            return run(x, &Strips::NONE, (0, 1));
        }
        let images = (0..count).map(|image| run(&x.narrow(0, image, 1)?, strips, (image, count)));
        Ok(Tensor::cat(&images.collect::<Result<Vec<_>>>()?, 0)?)
    }
}
