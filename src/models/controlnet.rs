//! ControlNet (Zhang et al. 2023), as diffusers' `ControlNetModel` has it: a copy of the UNet's way down that is shown a
//! picture, and whose states are added to the UNet's through convolutions that were zero before training.

use super::unet::blocks::BlockContext;
use super::unet::encoder::{Additions, Encoder};
use super::unet::{ControlResiduals, UNet2DConditionConfig};
use crate::config::{ConfigFields, Flaw, MOST_RESOLUTIONS, are_widths};
use crate::denoising::Call;
use crate::layers::{Activation, Backend, Conv2d, ConvGeometry, FeatureMap, Weights};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Tensor};

/// The configuration of a [`ControlNet`], in diffusers' terms.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlNetConfig {
    /// Of the copy; the way up is not there.
    pub encoder: UNet2DConditionConfig,
    /// Channels of the picture.
    pub conditioning_channels: usize,
    /// Channels at each resolution of the picture's embedding, the highest first.
    pub embedding_channels: Vec<usize>,
    /// Whether it was trained with blue before green before red.
    pub bgr: bool,
    /// Whether it adds the mean over all places, so that the picture says what is drawn and not where. It then speaks to
    /// the prompt's branch of guidance alone.
    pub pools: bool,
}

impl ControlNetConfig {
    /// From the fields of a `config.json`, with diffusers' defaults for those that are absent.
    ///
    /// # Errors
    /// If a field has an unusable value, or an option is set that is not supported.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        let conditioning_channels = fields.usize("conditioning_channels", 3)?;
        let embedding_channels = fields.usize_list("conditioning_embedding_out_channels", &[16, 32, 96, 256])?;
        let bgr = fields.choice("controlnet_conditioning_channel_order", &[("rgb", false), ("bgr", true)], false)?;
        let pools = fields.bool("global_pool_conditions", false)?;
        // Everything else is the UNet's; of the way up, which a ControlNet's file does not mention, any will do.
        let blocks = fields.usize_list("block_out_channels", &[320, 640, 1280, 1280])?.len();
        let encoder =
            UNet2DConditionConfig::from_fields(&fields.clone().with("up_block_types", vec!["UpBlock2D"; blocks]))?;
        let config = Self { encoder, conditioning_channels, embedding_channels, bgr, pools };
        config.check().map_err(|(field, expected)| fields.wrong(field, expected))?;
        Ok(config)
    }

    /// Whether what it has beside the UNet's copy can be used.
    pub(crate) fn check(&self) -> Result<(), Flaw> {
        if !(1..=64).contains(&self.conditioning_channels) {
            return Err(("conditioning_channels", "it must be 1 to 64".into()));
        }
        if !(1..=MOST_RESOLUTIONS).contains(&self.embedding_channels.len()) || !are_widths(&self.embedding_channels) {
            let expected = "it must be the channels of 1 to 16 resolutions, none of them 0";
            return Err(("conditioning_embedding_out_channels", expected.into()));
        }
        Ok(())
    }
}

/// How much a control counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Strength {
    /// What is added is multiplied by this.
    pub scale: f64,
    /// Whether the picture is to lead without help from a prompt: guess mode. What is added grows from a tenth at the
    /// highest resolution to the whole in the middle, and the branch of guidance without the prompt gets none of it.
    pub guess: bool,
}

impl Strength {
    /// The factor of residual `i`; the middle's comes after the `count` others.
    fn at(self, i: usize, count: usize) -> f64 {
        if self.guess { self.scale * 10f64.powf(i as f64 / count as f64 - 1.0) } else { self.scale }
    }
}

/// The network.
#[derive(Debug)]
pub struct ControlNet {
    embedding: PictureEmbedding,
    encoder: Encoder,
    down: Vec<Conv2d>,
    mid: Conv2d,
    config: ControlNetConfig,
}

impl ControlNet {
    /// Builds the network. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: ControlNetConfig, dtype: DType) -> Result<Self> {
        let channels = &config.encoder.block_out_channels;
        // One for the first convolution, for each layer, and for each change of resolution.
        let mut widths = vec![channels[0]];
        for (i, (&width, &layers)) in channels.iter().zip(&config.encoder.layers_per_block).enumerate() {
            let changes = usize::from(i + 1 < channels.len());
            widths.extend(std::iter::repeat_n(width, layers + changes));
        }
        let down = widths.iter().enumerate();
        let down = down.map(|(i, &width)| Conv2d::new(&weights.at("controlnet_down_blocks").at(i), width, width, 1));
        let last = channels[channels.len() - 1];
        Ok(Self {
            embedding: PictureEmbedding::new(&weights.at("controlnet_cond_embedding"), &config, dtype)?,
            encoder: Encoder::new(weights, &config.encoder, dtype)?,
            down: down.collect::<Result<_>>()?,
            mid: Conv2d::new(&weights.at("controlnet_mid_block"), last, last, 1)?,
            config,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// Embeds the picture that it is shown; the same for every step.
    ///
    /// # Shapes
    /// `picture`: `[batch, 3, height, width]`, red first, 0 to 1; the result is at the size of latents.
    ///
    /// # Errors
    /// If it takes another number of channels.
    pub fn embed(&self, picture: &Tensor) -> Result<Tensor> {
        let channels = picture.dim(1)?;
        if channels != self.config.conditioning_channels {
            let fix = format!("the ControlNet takes {}; pictures have three", self.config.conditioning_channels);
            return Err(Error::unusable(
                ErrorKind::Model,
                "the number of the control picture's channels",
                channels,
                fix,
            ));
        }
        let picture = if self.config.bgr { reversed_channels(picture)? } else { picture.clone() };
        self.embedding.forward(&picture)
    }

    /// What is added to the UNet's states, times `strength`.
    ///
    /// # Shapes
    /// The call's `x`: `[rows, in_channels, height, width]`; its conditioning's text: `[rows, tokens,
    /// cross_attention_dim]`; `picture`: what [`Self::embed`] gives, for each row.
    ///
    /// # Errors
    /// If the shapes do not fit, or the model needs conditioning that is not there.
    pub fn forward(&self, call: &Call<'_>, picture: &Tensor, strength: Strength) -> Result<ControlResiduals> {
        let Call { x, conditioning, cache, .. } = *call;
        let text = self.encoder.text(conditioning, cache)?;
        let time = self.encoder.embed_time(&call.timesteps()?, conditioning, &text, cache)?;
        let context = BlockContext { time: &time, text: &text, perturbed: 0..0, token_merging: 0.0, cache };
        let picture = self.encoder.map(picture)?;
        let (h, states) = self.encoder.forward(x, &context, Additions { first: Some(&picture), resolutions: &[] })?;
        let count = self.down.len();
        let out = |conv: &Conv2d, h: &FeatureMap, i: usize| {
            let scale = if self.config.pools { strength.scale } else { strength.at(i, count) };
            let residual = conv.forward(h)?.scale(scale)?.to_nchw()?;
            if !self.config.pools {
                return Ok(residual);
            }
            let mean = residual.mean_keepdim(3)?.mean_keepdim(2)?;
            Ok(mean.broadcast_as(residual.shape())?.contiguous()?)
        };
        let down = self.down.iter().zip(&states).enumerate().map(|(i, (conv, h))| out(conv, h, i));
        Ok(ControlResiduals {
            down: down.collect::<Result<_>>()?,
            mid: Some(out(&self.mid, &h, count)?),
            ..ControlResiduals::default()
        })
    }
}

fn reversed_channels(x: &Tensor) -> Result<Tensor> {
    let channels = x.chunk(x.dim(1)?, 1)?;
    Ok(Tensor::cat(&channels.iter().rev().collect::<Vec<_>>(), 1)?)
}

/// Convolutions from pixels to latents' size, SiLU between them.
#[derive(Debug)]
struct PictureEmbedding {
    /// All but the last are followed by SiLU.
    convs: Vec<Conv2d>,
    backend: Backend,
    dtype: DType,
}

impl PictureEmbedding {
    fn new(weights: &Weights<'_>, config: &ControlNetConfig, dtype: DType) -> Result<Self> {
        let channels = &config.embedding_channels;
        let halving = ConvGeometry::square(3, 2, 1);
        let mut convs = vec![Conv2d::new(&weights.at("conv_in"), config.conditioning_channels, channels[0], 3)?];
        for (i, pair) in channels.windows(2).enumerate() {
            let weights = weights.at("blocks");
            convs.push(Conv2d::new(&weights.at(2 * i), pair[0], pair[0], 3)?);
            convs.push(Conv2d::with_geometry(&weights.at(2 * i + 1), pair[0], pair[1], halving)?);
        }
        let outputs = config.encoder.block_out_channels[0];
        convs.push(Conv2d::new(&weights.at("conv_out"), channels[channels.len() - 1], outputs, 3)?);
        Ok(Self { convs, backend: weights.backend(), dtype })
    }

    fn forward(&self, picture: &Tensor) -> Result<Tensor> {
        let mut h = FeatureMap::from_nchw(&picture.to_dtype(self.dtype)?, self.backend)?;
        for (i, conv) in self.convs.iter().enumerate() {
            h = conv.forward(&h)?;
            if i + 1 < self.convs.len() {
                h = h.activate(Activation::Silu)?;
            }
        }
        h.to_nchw()
    }
}
