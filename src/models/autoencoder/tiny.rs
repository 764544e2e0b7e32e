//! The tiny autoencoder (TAESD; Ollin Boer Bohan, 2023), as diffusers' `AutoencoderTiny` has it: convolutions and ReLU
//! alone, distilled from Stable Diffusion's autoencoder, some twenty times as fast.

use super::{Autoencoder, AutoencoderConfig, DiagonalGaussian, Halves, LatentSpace, Watch, tell};
use crate::config::{ConfigFields, Flaw, MOST_RESOLUTIONS, are_widths};
use crate::layers::{Activation, Backend, Conv2d, ConvGeometry, FeatureMap, Weights};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use serde_json::json;
use std::ops::ControlFlow;

/// The configuration of an [`AutoencoderTiny`], in diffusers' terms.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoencoderTinyConfig {
    /// What it has in common with the large one, the encoder's channels among it.
    pub common: AutoencoderConfig,
    /// Channels at each resolution of the decoder, the lowest first.
    pub decoder_channels: Vec<usize>,
    /// Residual blocks at each resolution of the encoder, the highest first.
    pub encoder_blocks: Vec<usize>,
    /// Residual blocks at each resolution of the decoder, the lowest first.
    pub decoder_blocks: Vec<usize>,
}

/// TAESD's, which are diffusers' defaults.
impl Default for AutoencoderTinyConfig {
    fn default() -> Self {
        Self {
            decoder_channels: vec![64; 4],
            encoder_blocks: vec![1, 3, 3, 3],
            decoder_blocks: vec![3, 3, 3, 1],
            common: AutoencoderConfig {
                in_channels: 3,
                out_channels: 3,
                latent_channels: 4,
                scaling_factor: 1.0,
                shift_factor: 0.0,
                force_upcast: false,
                block_out_channels: vec![64; 4],
                layers_per_block: 0,
                norm_num_groups: 1,
                use_quant_conv: false,
                use_post_quant_conv: false,
                mid_block_add_attention: false,
            },
        }
    }
}

impl AutoencoderTinyConfig {
    /// From the fields of a `config.json`, with diffusers' defaults for those that are absent.
    ///
    /// # Errors
    /// If a field has an unusable value, or an option is set that is not supported.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        // The fields of the first that its own pipelines do not read either.
        fields.ignore(&["latent_magnitude", "latent_shift", "block_out_channels"]);
        fields.only("act_fn", &[json!("relu")])?;
        fields.only("upsample_fn", &[json!("nearest")])?;
        fields.only("upsampling_scaling_factor", &[json!(2)])?;
        let Self { decoder_channels, encoder_blocks, decoder_blocks, common } = Self::default();
        let config = Self {
            decoder_channels: fields.usize_list("decoder_block_out_channels", &decoder_channels)?,
            encoder_blocks: fields.usize_list("num_encoder_blocks", &encoder_blocks)?,
            decoder_blocks: fields.usize_list("num_decoder_blocks", &decoder_blocks)?,
            common: AutoencoderConfig {
                in_channels: fields.usize("in_channels", common.in_channels)?,
                out_channels: fields.usize("out_channels", common.out_channels)?,
                latent_channels: fields.usize("latent_channels", common.latent_channels)?,
                scaling_factor: fields.f64("scaling_factor", common.scaling_factor)?,
                shift_factor: fields.f64("shift_factor", common.shift_factor)?,
                force_upcast: fields.bool("force_upcast", common.force_upcast)?,
                block_out_channels: fields.usize_list("encoder_block_out_channels", &common.block_out_channels)?,
                ..common
            },
        };
        fields.reject_unread()?;
        config.check().map_err(|(field, expected)| fields.wrong(field, expected))?;
        Ok(config)
    }

    /// Whether the parts fit together.
    pub(crate) fn check(&self) -> Result<(), Flaw> {
        let AutoencoderConfig { in_channels, out_channels, latent_channels, block_out_channels, .. } = &self.common;
        for (name, width) in
            [("in_channels", in_channels), ("out_channels", out_channels), ("latent_channels", latent_channels)]
        {
            if !are_widths([width]) {
                return Err((name, "it cannot be 0".into()));
            }
        }
        let resolutions = block_out_channels.len();
        if resolutions == 0 || !are_widths(block_out_channels) || !are_widths(&self.decoder_channels) {
            return Err(("encoder_block_out_channels", "neither it nor the decoder's can be 0".into()));
        }
        for (name, list) in [
            ("decoder_block_out_channels", &self.decoder_channels),
            ("num_encoder_blocks", &self.encoder_blocks),
            ("num_decoder_blocks", &self.decoder_blocks),
        ] {
            if list.len() != resolutions || resolutions > MOST_RESOLUTIONS {
                let expected = format!("it must have one entry for each of the encoder's {resolutions}, 16 at most");
                return Err((name, expected));
            }
        }
        if self.encoder_blocks.iter().chain(&self.decoder_blocks).any(|&count| count > 100) {
            return Err(("num_encoder_blocks", "at most 100 blocks at each resolution".into()));
        }
        // A change of resolution keeps the channels, so all are alike.
        let alike = |list: &[usize]| list.iter().all(|&channels| channels == list[0]);
        if !alike(block_out_channels) || !alike(&self.decoder_channels) {
            return Err(("encoder_block_out_channels", "all resolutions must have as many channels".into()));
        }
        Ok(())
    }
}

/// A layer of the lists that checkpoints number.
#[derive(Debug)]
enum Layer {
    Conv(Conv2d),
    Block(Box<[Conv2d; 3]>),
    Relu,
    Upsample,
}

impl Layer {
    fn forward(&self, x: FeatureMap) -> Result<FeatureMap> {
        match self {
            Self::Conv(conv) => conv.forward(&x),
            Self::Relu => x.activate(Activation::Relu),
            Self::Upsample => {
                let (_, _, height, width) = x.dims();
                x.resize_nearest(2 * height, 2 * width)
            }
            Self::Block(convolutions) => {
                let [first, second, third] = convolutions.as_ref();
                let h = first.forward(&x)?.activate(Activation::Relu)?;
                let h = second.forward(&h)?.activate(Activation::Relu)?;
                third.forward(&h)?.add(&x)?.activate(Activation::Relu)
            }
        }
    }
}

/// A list of layers under construction; an index of the checkpoint for each.
struct Layers<'a> {
    weights: Weights<'a>,
    layers: Vec<Layer>,
}

impl Layers<'_> {
    fn here(&self) -> Self {
        Self { weights: self.weights.at(self.layers.len()), layers: Vec::new() }
    }

    fn conv(&mut self, inputs: usize, outputs: usize) -> Result<()> {
        let conv = Conv2d::new(&self.here().weights, inputs, outputs, 3)?;
        self.layers.push(Layer::Conv(conv));
        Ok(())
    }

    fn without_bias(&mut self, channels: usize, stride: usize) -> Result<()> {
        let geometry = ConvGeometry::square(3, stride, 1);
        let conv = Conv2d::without_bias(&self.here().weights, channels, channels, geometry)?;
        self.layers.push(Layer::Conv(conv));
        Ok(())
    }

    fn blocks(&mut self, channels: usize, count: usize) -> Result<()> {
        for _ in 0..count {
            let weights = self.here().weights.at("conv");
            // The odd ones are activations.
            let conv = |i: usize| Conv2d::new(&weights.at(2 * i), channels, channels, 3);
            self.layers.push(Layer::Block(Box::new([conv(0)?, conv(1)?, conv(2)?])));
        }
        Ok(())
    }
}

/// The tiny autoencoder; the encoder can be left out where it is not needed.
#[derive(Debug)]
pub struct AutoencoderTiny {
    encoder: Option<Vec<Layer>>,
    decoder: Vec<Layer>,
    config: AutoencoderTinyConfig,
    backend: Backend,
    /// The element type of activations.
    dtype: DType,
}

impl AutoencoderTiny {
    /// Builds the autoencoder. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: AutoencoderTinyConfig, halves: Halves, dtype: DType) -> Result<Self> {
        Ok(Self {
            encoder: (halves == Halves::Both).then(|| encoder(weights, &config)).transpose()?,
            decoder: decoder(weights, &config)?,
            backend: weights.backend(),
            config,
            dtype,
        })
    }

    /// What it has in common with the large autoencoder.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config.common
    }

    fn run(&self, layers: &[Layer], x: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        let mut last = FeatureMap::from_nchw(&x.to_dtype(self.dtype)?, self.backend)?;
        tell(watch, 0, layers.len())?;
        for (i, layer) in layers.iter().enumerate() {
            last = layer.forward(last)?;
            tell(watch, i + 1, layers.len())?;
        }
        Ok(last.to_nchw()?.to_dtype(x.dtype())?)
    }
}

impl Autoencoder for AutoencoderTiny {
    fn latent_space(&self) -> LatentSpace {
        self.config.common.latent_space()
    }

    /// It has no variance.
    fn encode(&self, images: &Tensor) -> Result<DiagonalGaussian> {
        let Some(encoder) = &self.encoder else {
            return Err(Error::invalid("the autoencoder", "a decoder alone", "build it with Halves::Both to encode"));
        };
        let latents = self.run(encoder, &images.affine(0.5, 0.5)?, &mut |_, _| ControlFlow::Continue(()))?;
        DiagonalGaussian::certain(latents)
    }

    fn decode_watched(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        let limited = ((latents / 3.0)?.tanh()? * 3.0)?;
        Ok(self.run(&self.decoder, &limited, watch)?.affine(2.0, -1.0)?)
    }
}

fn encoder(weights: &Weights<'_>, config: &AutoencoderTinyConfig) -> Result<Vec<Layer>> {
    let channels = config.common.block_out_channels[0];
    let mut layers = Layers { weights: weights.at("encoder.layers"), layers: Vec::new() };
    for (i, &count) in config.encoder_blocks.iter().enumerate() {
        match i {
            0 => layers.conv(config.common.in_channels, channels)?,
            _ => layers.without_bias(channels, 2)?,
        }
        layers.blocks(channels, count)?;
    }
    layers.conv(channels, config.common.latent_channels)?;
    Ok(layers.layers)
}

fn decoder(weights: &Weights<'_>, config: &AutoencoderTinyConfig) -> Result<Vec<Layer>> {
    let channels = config.decoder_channels[0];
    let mut layers = Layers { weights: weights.at("decoder.layers"), layers: Vec::new() };
    layers.conv(config.common.latent_channels, channels)?;
    layers.layers.push(Layer::Relu);
    for (i, &count) in config.decoder_blocks.iter().enumerate() {
        layers.blocks(channels, count)?;
        if i + 1 == config.decoder_blocks.len() {
            layers.conv(channels, config.common.out_channels)?;
        } else {
            layers.layers.push(Layer::Upsample);
            layers.without_bias(channels, 1)?;
        }
    }
    Ok(layers.layers)
}
