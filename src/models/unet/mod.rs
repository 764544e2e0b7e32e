//! The text-conditioned UNet (Rombach et al. 2022), as diffusers' `UNet2DConditionModel` has it.

mod blocks;
mod config;
mod transformer;

pub use config::UNet2DConditionConfig;

use crate::conditioning::Conditioning;
use crate::denoising::{Network, PerturbedNetwork};
use crate::layers::{
    Backend, Conv2d, FeatureMap, GroupNorm, GuidanceEmbedding, SinusoidalEmbedding, TimestepEmbedding, Weights,
};
use crate::{Error, Result};
use blocks::{DownBlock, MidBlock, Step, UpBlock};
use candle_core::{DType, Tensor};
use transformer::Transformer;

/// What a ControlNet adds to the UNet's skip connections and to its middle.
#[derive(Debug, Clone)]
pub struct ControlResiduals {
    /// One for each skip connection, in the order in which they are made: `[batch, channels, height, width]`.
    pub down: Vec<Tensor>,
    /// For the output of the middle block.
    pub mid: Tensor,
}

/// The denoising network of latent diffusion.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    conv_in: Conv2d,
    time_proj: SinusoidalEmbedding,
    time_embedding: TimestepEmbedding,
    guidance_embedding: Option<GuidanceEmbedding>,
    add_time_proj: Option<SinusoidalEmbedding>,
    add_embedding: Option<TimestepEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConditionConfig,
    backend: Backend,
    /// The element type of activations.
    dtype: DType,
}

impl UNet2DConditionModel {
    /// Builds the network. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: UNet2DConditionConfig, dtype: DType) -> Result<Self> {
        let channels = &config.block_out_channels;
        let blocks = channels.len();
        let sinusoidal = |width| SinusoidalEmbedding {
            width,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        };
        let time_width = config.time_embed_dim();

        let sizes = config.block_sizes();
        let down_blocks = (0..blocks).map(|i| {
            let transformer = |weights: &Weights<'_>| config.transformer(weights, config.down_blocks[i], i);
            DownBlock::new(&weights.at("down_blocks").at(i), &sizes, i, transformer)
        });
        let mid_block = config.mid_block.map(|kind| MidBlock::new(&weights.at("mid_block"), &config, kind));
        let up_blocks = (0..blocks).map(|i| {
            let transformer = |weights: &Weights<'_>| config.transformer(weights, config.up_blocks[i], blocks - 1 - i);
            UpBlock::new(&weights.at("up_blocks").at(i), &sizes, i, transformer)
        });
        let additional = config.addition.map(|addition| {
            let embedding = TimestepEmbedding::new(&weights.at("add_embedding"), addition.embedding_input, time_width)?;
            Ok::<_, Error>((sinusoidal(addition.time_width), embedding))
        });
        let (add_time_proj, add_embedding) = additional.transpose()?.unzip();
        let guidance_embedding = config.time_cond_proj_dim.map(|width| {
            let time_embedding = weights.at("time_embedding");
            GuidanceEmbedding::new(&time_embedding, width, channels[0])
        });
        Ok(Self {
            conv_in: Conv2d::new(&weights.at("conv_in"), config.in_channels, channels[0], config.conv_in_kernel)?,
            time_proj: sinusoidal(channels[0]),
            time_embedding: TimestepEmbedding::new(&weights.at("time_embedding"), channels[0], time_width)?,
            guidance_embedding: guidance_embedding.transpose()?,
            add_time_proj,
            add_embedding,
            down_blocks: down_blocks.collect::<Result<_>>()?,
            mid_block: mid_block.transpose()?,
            up_blocks: up_blocks.collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(
                &weights.at("conv_norm_out"),
                config.norm_num_groups,
                channels[0],
                config.norm_eps,
            )?
            .with_silu(),
            conv_out: Conv2d::new(&weights.at("conv_out"), channels[0], config.out_channels, config.conv_out_kernel)?,
            backend: weights.backend(),
            config,
            dtype,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// # Shapes
    /// `x`: `[batch, in_channels, height, width]`; `timesteps`: `[batch]`; the conditioning's text:
    /// `[batch, tokens, cross_attention_dim]`; the result is `[batch, out_channels, height, width]` in the
    /// type of `x`.
    ///
    /// # Errors
    /// If the shapes do not fit, or the model needs conditioning that is not there.
    pub fn forward(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        control: Option<&ControlResiduals>,
    ) -> Result<Tensor> {
        self.run(x, timesteps, conditioning, control, 0)
    }

    fn run(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        control: Option<&ControlResiduals>,
        perturbed: usize,
    ) -> Result<Tensor> {
        let time = self.embed_time(timesteps, conditioning)?;
        let Some(text) = &conditioning.text else {
            return Err(Error::invalid(
                "the conditioning",
                "without a text",
                "this UNet looks at one; give its embedding",
            ));
        };
        let text = text.to_dtype(self.dtype)?;
        let step = Step { time: &time, text: &text, perturbed };
        let attend = |transformer: &Transformer, h: &FeatureMap| transformer.forward(h, &text, 0);
        let input = x.to_dtype(self.dtype)?;
        let input = if self.config.center_input_sample { input.affine(2.0, -1.0)? } else { input };

        let mut h = self.conv_in.forward(&FeatureMap::from_nchw(&input, self.backend)?)?;
        let mut skips = vec![h.clone()];
        for block in &self.down_blocks {
            h = block.forward(h, &time, &mut skips, attend)?;
        }
        if let Some(mid_block) = &self.mid_block {
            h = mid_block.forward(h, &step)?;
        }
        if let Some(control) = control {
            (h, skips) = self.controlled(h, skips, control)?;
        }
        for block in &self.up_blocks {
            h = block.forward(h, &time, &mut skips, attend)?;
        }
        let out = self.conv_out.forward(&self.conv_norm_out.forward(&h)?)?;
        Ok(out.to_nchw()?.to_dtype(x.dtype())?)
    }

    /// The embedding of the timesteps, with those of guidance and of the added conditioning: `[batch, time_embed_dim]`.
    fn embed_time(&self, timesteps: &Tensor, conditioning: &Conditioning) -> Result<Tensor> {
        let mut time = self.time_proj.forward(timesteps)?.to_dtype(self.dtype)?;
        // Who gives no strength leaves its embedding out, as in diffusers.
        if let (Some(embedding), Some(guidance)) = (&self.guidance_embedding, &conditioning.guidance) {
            time = (time + embedding.forward(guidance, self.dtype)?)?;
        }
        let time = self.time_embedding.forward(&time)?;
        let (Some(projection), Some(embedding)) = (&self.add_time_proj, &self.add_embedding) else { return Ok(time) };
        let (Some(pooled), Some(ids)) = (&conditioning.pooled, &conditioning.time_ids) else {
            return Err(Error::invalid(
                "the conditioning",
                "text alone",
                "this UNet also takes a pooled text embedding and time_ids",
            ));
        };
        let batch = ids.dim(0)?;
        let ids = projection.forward(&ids.flatten_all()?)?.reshape((batch, ()))?;
        let added = Tensor::cat(&[&pooled.to_dtype(self.dtype)?, &ids.to_dtype(self.dtype)?], 1)?;
        Ok((time + embedding.forward(&added)?)?)
    }

    fn controlled(
        &self,
        h: FeatureMap,
        skips: Vec<FeatureMap>,
        control: &ControlResiduals,
    ) -> Result<(FeatureMap, Vec<FeatureMap>)> {
        if control.down.len() != skips.len() {
            return Err(Error::invalid(
                "the number of control residuals",
                control.down.len(),
                format!("the UNet has {} skip connections; take a ControlNet made for it", skips.len()),
            ));
        }
        let map = |x: &Tensor| FeatureMap::from_nchw(&x.to_dtype(self.dtype)?, self.backend);
        let skips = skips.iter().zip(&control.down).map(|(skip, x)| skip.add(&map(x)?)).collect::<Result<_>>()?;
        Ok((h.add(&map(&control.mid)?)?, skips))
    }
}

impl Network for UNet2DConditionModel {
    fn forward(&self, x: &Tensor, timestep: f64, conditioning: &Conditioning) -> Result<Tensor> {
        self.forward_perturbed(x, timestep, conditioning, 0)
    }
}

/// The self-attention of the middle block is perturbed, as the paper found best.
impl PerturbedNetwork for UNet2DConditionModel {
    fn forward_perturbed(
        &self,
        x: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        perturbed: usize,
    ) -> Result<Tensor> {
        let timesteps = Tensor::full(timestep as f32, x.dim(0)?, x.device())?;
        self.run(x, &timesteps, conditioning, None, perturbed)
    }
}
