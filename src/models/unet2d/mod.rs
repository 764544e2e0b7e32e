//! The UNet in pixel space (Ho et al. 2020; Song et al. 2021; Dhariwal and Nichol 2021), as diffusers' `UNet2DModel`
//! has it: unconditional, or conditioned on a class.

mod blocks;
mod config;

pub use config::{BlockKind, ClassEmbedding, TimeEmbedding, UNet2DConfig};

use crate::denoising::{Branch, Call, Network};
use crate::layers::{
    Backend, Conv2d, Embedding, FeatureMap, FourierEmbedding, GroupNorm, SinusoidalEmbedding, TimestepEmbedding,
    Weights, on_device,
};
use crate::models::attention_block::AttentionBlock;
use crate::{Error, Result};
use blocks::{DownBlock, MidBlock, UpBlock};
use candle_core::{DType, Tensor};

#[derive(Debug)]
enum TimeProjection {
    Sinusoidal(SinusoidalEmbedding),
    Fourier(FourierEmbedding),
}

impl TimeProjection {
    fn new(weights: &Weights<'_>, config: &UNet2DConfig) -> Result<(Self, usize)> {
        let width = config.block_out_channels[0];
        let (flip_sin_to_cos, freq_shift) = (config.flip_sin_to_cos, config.freq_shift);
        Ok(match config.time_embedding {
            TimeEmbedding::Positional => {
                (Self::Sinusoidal(SinusoidalEmbedding { width, flip_sin_to_cos, freq_shift }), width)
            }
            TimeEmbedding::Fourier => (Self::Fourier(FourierEmbedding::new(weights, width)?), 2 * width),
        })
    }

    fn forward(&self, timesteps: &Tensor) -> Result<Tensor> {
        match self {
            Self::Sinusoidal(embedding) => embedding.forward(timesteps),
            Self::Fourier(embedding) => embedding.forward(timesteps),
        }
    }
}

#[derive(Debug)]
enum Classes {
    None,
    Table(Embedding),
    Timestep(TimestepEmbedding),
    Identity,
}

impl Classes {
    fn new(weights: &Weights<'_>, kind: ClassEmbedding, projected: usize, width: usize) -> Result<Self> {
        Ok(match kind {
            ClassEmbedding::None => Self::None,
            ClassEmbedding::Table(classes) => Self::Table(Embedding::new(weights, classes, width)?),
            ClassEmbedding::Timestep => Self::Timestep(TimestepEmbedding::new(weights, projected, width)?),
            ClassEmbedding::Identity => Self::Identity,
        })
    }
}

/// The denoising network of diffusion in pixel space.
#[derive(Debug)]
pub struct UNet2DModel {
    conv_in: Conv2d,
    time_proj: TimeProjection,
    time_embedding: TimestepEmbedding,
    class_embedding: Classes,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConfig,
    backend: Backend,
    /// The element type of activations.
    dtype: DType,
}

impl UNet2DModel {
    /// Builds the network. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the configuration contradicts itself, or the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: UNet2DConfig, dtype: DType) -> Result<Self> {
        config.check()?;
        let channels = &config.block_out_channels;
        let blocks = channels.len();
        let layers = vec![config.layers_per_block; blocks];
        let sizes = config.block_sizes(&layers);
        let time_width = config.time_embed_dim();
        let (time_proj, projected) = TimeProjection::new(&weights.at("time_proj"), &config)?;

        let down_blocks = (0..blocks).map(|i| {
            let attention = |weights: &Weights<'_>| config.attention(weights, config.down_blocks[i], i);
            DownBlock::new(&weights.at("down_blocks").at(i), &sizes, i, attention)
        });
        let mid_block = config.mid_block.then(|| MidBlock::new(&weights.at("mid_block"), &config));
        let up_blocks = (0..blocks).map(|i| {
            let attention = |weights: &Weights<'_>| config.attention(weights, config.up_blocks[i], blocks - 1 - i);
            UpBlock::new(&weights.at("up_blocks").at(i), &sizes, i, attention)
        });
        let norm = |name| GroupNorm::new(&weights.at(name), config.norm_num_groups, channels[0], config.norm_eps);
        Ok(Self {
            conv_in: Conv2d::new(&weights.at("conv_in"), config.in_channels, channels[0], 3)?,
            time_proj,
            time_embedding: TimestepEmbedding::new(&weights.at("time_embedding"), projected, time_width)?,
            class_embedding: Classes::new(
                &weights.at("class_embedding"),
                config.class_embedding,
                projected,
                time_width,
            )?,
            down_blocks: down_blocks.collect::<Result<_>>()?,
            mid_block: mid_block.transpose()?,
            up_blocks: up_blocks.collect::<Result<_>>()?,
            conv_norm_out: norm("conv_norm_out")?.with_silu(),
            conv_out: Conv2d::new(&weights.at("conv_out"), channels[0], config.out_channels, 3)?,
            backend: weights.backend(),
            config,
            dtype,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &UNet2DConfig {
        &self.config
    }

    fn evaluate(&self, call: &Call<'_>) -> Result<Tensor> {
        if !call.rows(|branch| branch == Branch::Perturbed)?.is_empty() {
            let fix = "only networks with a text can be perturbed; use another guidance";
            return Err(Error::invalid("perturbed attention", "on", fix));
        }
        let (x, timesteps) = (call.x, call.timesteps()?);
        let time = self.embed_time(&timesteps, call.conditioning.class_labels.as_ref())?;
        let input = x.to_dtype(self.dtype)?;
        let input = if self.config.center_input_sample { input.affine(2.0, -1.0)? } else { input };

        let mut h = self.conv_in.forward(&FeatureMap::from_nchw(&input, self.backend)?)?;
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            h = block.forward(h, &time, &mut skips, AttentionBlock::forward, None)?;
        }
        if let Some(mid_block) = &self.mid_block {
            h = mid_block.forward(&h, &time)?;
        }
        for block in &self.up_blocks {
            h = block.forward(h, &time, &mut skips, AttentionBlock::forward)?;
        }
        let out = self.conv_out.forward(&self.conv_norm_out.forward(&h)?)?;
        let out = out.to_nchw()?.to_dtype(x.dtype())?;
        match self.config.time_embedding {
            TimeEmbedding::Positional => Ok(out),
            TimeEmbedding::Fourier => {
                Ok(out.broadcast_div(&timesteps.to_dtype(x.dtype())?.reshape(((), 1, 1, 1))?)?)
            }
        }
    }

    /// The embedding of the timesteps and of the classes: `[batch, time_embed_dim]`.
    fn embed_time(&self, timesteps: &Tensor, class_labels: Option<&Tensor>) -> Result<Tensor> {
        let project = |scalars: &Tensor| Ok::<_, Error>(self.time_proj.forward(scalars)?.to_dtype(self.dtype)?);
        let time = self.time_embedding.forward(&project(timesteps)?)?;
        let class = match (&self.class_embedding, class_labels) {
            (Classes::None, None) => return Ok(time),
            (Classes::Table(table), Some(labels)) => table.forward(labels)?,
            (Classes::Timestep(embedding), Some(labels)) => {
                embedding.forward(&project(&labels.to_dtype(timesteps.dtype())?)?)?
            }
            (Classes::Identity, Some(labels)) => labels.clone(),
            (Classes::None, Some(_)) => {
                let fix = "this UNet was trained without classes; leave them away";
                return Err(Error::invalid("the class labels", "given", fix));
            }
            (_, None) => {
                let fix = "this UNet is conditioned on a class; give one for each image";
                return Err(Error::invalid("the class labels", "missing", fix));
            }
        };
        Ok((time + class.to_dtype(self.dtype)?)?)
    }
}

/// The conditioning's class labels are `[rows]` of u32, each below `num_class_embeds` (or what [`ClassEmbedding`] says); a
/// network without classes refuses them, and one with classes needs them.
impl Network for UNet2DModel {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        on_device(call.x.device(), || self.evaluate(call))
    }
}
