//! The UNet's blocks: residual blocks with transformers, and the middle.

use super::config::{BlockKind, UNet2DConditionConfig};
use super::transformer::{Transformer, TransformerConfig};
use crate::Result;
use crate::layers::{Cache, FeatureMap, Weights};
use crate::models::resnet::{ResnetBlock, ResnetConfig};
use crate::models::unet_blocks::{self, BlockSizes, Layer};
use candle_core::Tensor;
use std::ops::Range;

pub(super) type DownBlock = unet_blocks::DownBlock<Transformer>;
pub(super) type UpBlock = unet_blocks::UpBlock<Transformer>;

/// What all blocks of one call see.
pub(in crate::models) struct BlockContext<'a> {
    /// `[batch, time_embed_dim]`.
    pub time: &'a Tensor,
    /// `[batch, tokens, cross_attention_dim]`.
    pub text: &'a Tensor,
    /// The rows of the batch that have perturbed self-attention in the middle block.
    pub perturbed: Range<usize>,
    /// The share of tokens that self-attention merges at the highest resolution that has any.
    pub token_merging: f64,
    /// What attention keeps of the text.
    pub cache: &'a Cache,
}

impl UNet2DConditionConfig {
    pub(super) fn block_sizes(&self) -> BlockSizes<'_> {
        BlockSizes {
            channels: &self.block_out_channels,
            layers: &self.layers_per_block,
            resnet: ResnetConfig {
                inputs: 0,
                outputs: 0,
                time_width: Some(self.time_embed_dim()),
                time_scale_shift: self.time_scale_shift,
                groups: self.norm_num_groups,
                epsilon: self.norm_eps,
                output_scale: 1.0,
            },
            downsample_padding: self.downsample_padding,
        }
    }

    /// The highest resolution that has transformers on the way down or up.
    pub(crate) fn highest_attention(&self) -> Option<usize> {
        let of_ways = self.down_blocks.iter().zip(self.up_blocks.iter().rev());
        of_ways.into_iter().position(|(down, up)| [down, up].contains(&&BlockKind::CrossAttention))
    }

    /// The transformer at resolution `i`, counted from the highest, if blocks of this kind have one.
    pub(super) fn transformer(&self, weights: &Weights<'_>, kind: BlockKind, i: usize) -> Result<Option<Transformer>> {
        let config = TransformerConfig {
            channels: self.block_out_channels[i],
            heads: self.num_heads[i],
            context_width: self.cross_attention_dim[i],
            layers: self.transformer_layers_per_block[i],
            groups: self.norm_num_groups,
            linear_projection: self.use_linear_projection,
            merges_tokens: self.highest_attention() == Some(i),
        };
        (kind == BlockKind::CrossAttention).then(|| Transformer::new(weights, config)).transpose()
    }
}

/// The lowest resolution: residual block, transformer, residual block; without a transformer, one residual
/// block, as diffusers builds it.
#[derive(Debug)]
pub(super) struct MidBlock {
    first: Layer<Transformer>,
    last: Option<ResnetBlock>,
}

impl MidBlock {
    pub fn new(weights: &Weights<'_>, config: &UNet2DConditionConfig, kind: BlockKind) -> Result<Self> {
        let resolution = config.block_out_channels.len() - 1;
        let channels = config.block_out_channels[resolution];
        let resnet = ResnetConfig {
            inputs: channels,
            outputs: channels,
            output_scale: config.mid_block_scale_factor,
            ..config.block_sizes().resnet
        };
        let attends = kind == BlockKind::CrossAttention;
        Ok(Self {
            first: Layer {
                resnet: ResnetBlock::new(&weights.at("resnets.0"), resnet)?,
                attention: config.transformer(&weights.at("attentions.0"), kind, resolution)?,
            },
            last: attends.then(|| ResnetBlock::new(&weights.at("resnets.1"), resnet)).transpose()?,
        })
    }

    pub fn forward(&self, h: FeatureMap, context: &BlockContext<'_>) -> Result<FeatureMap> {
        // Its tokens are few, and are not merged.
        let BlockContext { time, text, perturbed, cache, .. } = context;
        let context = &BlockContext { time, text, perturbed: perturbed.clone(), token_merging: 0.0, cache };
        let attend = |transformer: &Transformer, h: &FeatureMap| transformer.forward(h, context, perturbed);
        let h = self.first.forward(&h, context.time, attend)?;
        match &self.last {
            Some(last) => last.forward(&h, Some(context.time)),
            None => Ok(h),
        }
    }
}
