//! The blocks of the UNet in pixel space: residual blocks with self-attention, and the middle.

use super::config::{BlockKind, UNet2DConfig};
use crate::Result;
use crate::layers::{FeatureMap, Weights};
use crate::models::attention_block::{AttentionBlock, AttentionBlockConfig};
use crate::models::resnet::{ResnetBlock, ResnetConfig};
use crate::models::unet_blocks::{self, BlockSizes, Layer};
use candle_core::Tensor;

pub(super) type DownBlock = unet_blocks::DownBlock<AttentionBlock>;
pub(super) type UpBlock = unet_blocks::UpBlock<AttentionBlock>;

impl UNet2DConfig {
    /// `layers` is the number of layers at each resolution.
    pub(super) fn block_sizes<'a>(&'a self, layers: &'a [usize]) -> BlockSizes<'a> {
        let resnet = ResnetConfig {
            inputs: 0,
            outputs: 0,
            time_width: Some(self.time_embed_dim()),
            time_scale_shift: self.time_scale_shift,
            groups: self.norm_num_groups,
            epsilon: self.norm_eps,
            output_scale: 1.0,
        };
        let channels = &self.block_out_channels;
        BlockSizes { channels, layers, resnet, downsample_padding: self.downsample_padding }
    }

    fn attention_config(&self, channels: usize) -> AttentionBlockConfig {
        AttentionBlockConfig {
            channels,
            heads: channels / self.attention_head_dim.unwrap_or(channels),
            groups: Some(self.norm_num_groups),
            epsilon: self.norm_eps,
            output_scale: 1.0,
        }
    }

    /// The attention at resolution `i`, counted from the highest, if blocks of this kind have any.
    pub(super) fn attention(&self, weights: &Weights<'_>, kind: BlockKind, i: usize) -> Result<Option<AttentionBlock>> {
        let config = self.attention_config(self.block_out_channels[i]);
        (kind == BlockKind::Attention).then(|| AttentionBlock::new(weights, config)).transpose()
    }
}

/// The lowest resolution: residual block, attention, residual block.
#[derive(Debug)]
pub(super) struct MidBlock {
    first: Layer<AttentionBlock>,
    last: ResnetBlock,
}

impl MidBlock {
    pub fn new(weights: &Weights<'_>, config: &UNet2DConfig) -> Result<Self> {
        let channels = config.block_out_channels[config.block_out_channels.len() - 1];
        let output_scale = config.mid_block_scale_factor;
        let resnet =
            ResnetConfig { inputs: channels, outputs: channels, output_scale, ..config.block_sizes(&[]).resnet };
        // Where the time embedding scales and shifts, diffusers gives this attention a norm only if told how many groups.
        let default_groups = (!config.time_scale_shift).then_some(config.norm_num_groups);
        let groups = config.attn_norm_num_groups.or(default_groups);
        let attention = AttentionBlockConfig { groups, output_scale, ..config.attention_config(channels) };
        let attention = config.add_attention.then(|| AttentionBlock::new(&weights.at("attentions.0"), attention));
        Ok(Self {
            first: Layer {
                resnet: ResnetBlock::new(&weights.at("resnets.0"), resnet)?,
                attention: attention.transpose()?,
            },
            last: ResnetBlock::new(&weights.at("resnets.1"), resnet)?,
        })
    }

    pub fn forward(&self, h: &FeatureMap, time: &Tensor) -> Result<FeatureMap> {
        let h = self.first.forward(h, time, AttentionBlock::forward)?;
        self.last.forward(&h, Some(time))
    }
}
