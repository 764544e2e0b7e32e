//! The UNet's blocks: down, middle, up.

use super::config::{BlockKind, UNet2DConditionConfig};
use super::transformer::{Transformer, TransformerConfig};
use crate::Result;
use crate::layers::{Conv2d, FeatureMap, Weights};
use crate::models::resnet::{ResnetBlock, ResnetConfig, Upsample, downsample};
use crate::{Error, layers};
use candle_core::Tensor;

/// What all blocks of one call see.
pub(super) struct Step<'a> {
    /// `[batch, time_embed_dim]`.
    pub time: &'a Tensor,
    /// `[batch, tokens, cross_attention_dim]`.
    pub text: &'a Tensor,
    /// So many of the batch's first rows have perturbed self-attention in the middle block.
    pub perturbed: usize,
}

/// A residual block and the transformer after it, if the block has one.
#[derive(Debug)]
struct Layer {
    resnet: ResnetBlock,
    transformer: Option<Transformer>,
}

impl Layer {
    fn forward(&self, x: &FeatureMap, step: &Step<'_>, perturbed: usize) -> Result<FeatureMap> {
        let h = self.resnet.forward(x, Some(step.time))?;
        match &self.transformer {
            Some(transformer) => transformer.forward(&h, step.text, perturbed),
            None => Ok(h),
        }
    }
}

fn resnet(config: &UNet2DConditionConfig, inputs: usize, outputs: usize) -> ResnetConfig {
    ResnetConfig {
        inputs,
        outputs,
        time_width: Some(config.time_embed_dim()),
        groups: config.norm_num_groups,
        epsilon: config.norm_eps,
        output_scale: 1.0,
    }
}

/// The transformer at resolution `i`, counted from the highest.
fn transformer(config: &UNet2DConditionConfig, i: usize) -> TransformerConfig {
    TransformerConfig {
        channels: config.block_out_channels[i],
        heads: config.num_heads[i],
        context_width: config.cross_attention_dim[i],
        layers: config.transformer_layers_per_block[i],
        groups: config.norm_num_groups,
        linear_projection: config.use_linear_projection,
    }
}

fn layer(
    weights: &Weights<'_>,
    config: &UNet2DConditionConfig,
    (j, kind, resolution): (usize, BlockKind, usize),
    (inputs, outputs): (usize, usize),
) -> Result<Layer> {
    let transformer = (kind == BlockKind::CrossAttention)
        .then(|| Transformer::new(&weights.at("attentions").at(j), transformer(config, resolution)));
    Ok(Layer {
        resnet: ResnetBlock::new(&weights.at("resnets").at(j), resnet(config, inputs, outputs))?,
        transformer: transformer.transpose()?,
    })
}

/// A resolution on the way down.
#[derive(Debug)]
pub(super) struct DownBlock {
    layers: Vec<Layer>,
    downsample: Option<Conv2d>,
}

impl DownBlock {
    pub fn new(weights: &Weights<'_>, config: &UNet2DConditionConfig, i: usize, inputs: usize) -> Result<Self> {
        let outputs = config.block_out_channels[i];
        let layers = (0..config.layers_per_block[i]).map(|j| {
            let inputs = if j == 0 { inputs } else { outputs };
            layer(weights, config, (j, config.down_blocks[i], i), (inputs, outputs))
        });
        let is_last = i + 1 == config.block_out_channels.len();
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            downsample: (!is_last).then(|| downsample(weights, outputs, config.downsample_padding)).transpose()?,
        })
    }

    /// Every intermediate result is also kept for the way up.
    pub fn forward(&self, mut h: FeatureMap, step: &Step<'_>, skips: &mut Vec<FeatureMap>) -> Result<FeatureMap> {
        for layer in &self.layers {
            h = layer.forward(&h, step, 0)?;
            skips.push(h.clone());
        }
        if let Some(downsample) = &self.downsample {
            h = downsample.forward(&h)?;
            skips.push(h.clone());
        }
        Ok(h)
    }
}

/// The lowest resolution: residual block, transformer, residual block; without a transformer, one residual
/// block, as diffusers builds it.
#[derive(Debug)]
pub(super) struct MidBlock {
    first: Layer,
    last: Option<ResnetBlock>,
}

impl MidBlock {
    pub fn new(weights: &Weights<'_>, config: &UNet2DConditionConfig, kind: BlockKind) -> Result<Self> {
        let resolution = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[resolution];
        let resnet = ResnetConfig { output_scale: config.mid_block_scale_factor, ..resnet(config, channels, channels) };
        let attends = kind == BlockKind::CrossAttention;
        let attention = attends.then(|| Transformer::new(&weights.at("attentions.0"), transformer(config, resolution)));
        Ok(Self {
            first: Layer {
                resnet: ResnetBlock::new(&weights.at("resnets.0"), resnet)?,
                transformer: attention.transpose()?,
            },
            last: attends.then(|| ResnetBlock::new(&weights.at("resnets.1"), resnet)).transpose()?,
        })
    }

    pub fn forward(&self, h: FeatureMap, step: &Step<'_>) -> Result<FeatureMap> {
        let h = self.first.forward(&h, step, step.perturbed)?;
        match &self.last {
            Some(last) => last.forward(&h, Some(step.time)),
            None => Ok(h),
        }
    }
}

/// A resolution on the way up; each layer takes one skip connection.
#[derive(Debug)]
pub(super) struct UpBlock {
    layers: Vec<Layer>,
    upsample: Option<Upsample>,
}

impl UpBlock {
    /// `i` counts from the lowest resolution.
    pub fn new(weights: &Weights<'_>, config: &UNet2DConditionConfig, i: usize) -> Result<Self> {
        let channels = &config.block_out_channels;
        let resolution = channels.len() - 1 - i;
        let outputs = channels[resolution];
        let before = channels[(resolution + 1).min(channels.len() - 1)];
        let higher = channels[resolution.saturating_sub(1)];
        let count = config.layers_per_block[resolution] + 1;
        let layers = (0..count).map(|j| {
            let input = if j == 0 { before } else { outputs };
            let skip = if j + 1 == count { higher } else { outputs };
            layer(weights, config, (j, config.up_blocks[i], resolution), (input + skip, outputs))
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            upsample: (resolution > 0).then(|| Upsample::new(weights, outputs)).transpose()?,
        })
    }

    /// Upsamples to the size of the next skip connection, which need not be twice the size.
    pub fn forward(&self, mut h: FeatureMap, step: &Step<'_>, skips: &mut Vec<FeatureMap>) -> Result<FeatureMap> {
        for layer in &self.layers {
            let skip = skips.pop().ok_or_else(no_skip)?;
            h = layer.forward(&h.concat(&skip)?, step, 0)?;
        }
        match (&self.upsample, skips.last()) {
            (Some(upsample), Some(next)) => {
                let (_, _, height, width) = next.dims();
                upsample.forward(&h, height, width)
            }
            _ => Ok(h),
        }
    }
}

fn no_skip() -> Error {
    Error::invalid("layers_per_block", "too small", "the way up has more layers than the way down has outputs")
}

const _: fn() = || {
    // Blocks are shared between threads by servers; keep them so.
    fn assert_sync<T: Send + Sync>() {}
    assert_sync::<UpBlock>();
    assert_sync::<layers::Conv2d>();
};
