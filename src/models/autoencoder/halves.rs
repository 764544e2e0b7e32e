//! The autoencoder's two halves, which share their middle.

use super::strips::{self, Entry, Resolution, Strips};
use super::{AutoencoderConfig, Watch, tell};
use crate::Result;
use crate::layers::{Conv2d, FeatureMap, GroupNorm, Weights};
use crate::models::attention_block::{AttentionBlock, AttentionBlockConfig};
use crate::models::resnet::{ResnetBlock, ResnetConfig, Upsample, downsample};

/// Epsilon of every norm in the autoencoder.
const EPSILON: f64 = 1e-6;

fn resnet(weights: &Weights<'_>, config: &AutoencoderConfig, inputs: usize, outputs: usize) -> Result<ResnetBlock> {
    let groups = config.norm_num_groups;
    let resnet = ResnetConfig {
        inputs,
        outputs,
        time_width: None,
        time_scale_shift: false,
        groups,
        epsilon: EPSILON,
        output_scale: 1.0,
    };
    ResnetBlock::new(weights, resnet)
}

fn norm(weights: &Weights<'_>, config: &AutoencoderConfig, channels: usize) -> Result<GroupNorm> {
    GroupNorm::new(weights, config.norm_num_groups, channels, EPSILON)
}

/// Residual block, attention of all pixels to all pixels, residual block.
#[derive(Debug)]
struct Middle {
    first: ResnetBlock,
    attention: Option<AttentionBlock>,
    last: ResnetBlock,
}

impl Middle {
    fn new(weights: &Weights<'_>, config: &AutoencoderConfig, channels: usize) -> Result<Self> {
        let groups = Some(config.norm_num_groups);
        let one_head = AttentionBlockConfig { channels, heads: 1, groups, epsilon: EPSILON, output_scale: 1.0 };
        let attention =
            config.mid_block_add_attention.then(|| AttentionBlock::new(&weights.at("attentions.0"), one_head));
        Ok(Self {
            first: resnet(&weights.at("resnets.0"), config, channels, channels)?,
            attention: attention.transpose()?,
            last: resnet(&weights.at("resnets.1"), config, channels, channels)?,
        })
    }

    fn forward(&self, x: &FeatureMap, strips: &Strips) -> Result<FeatureMap> {
        let mut h = self.first.forward(x, None)?;
        if let Some(attention) = &self.attention {
            let (_, _, _, width) = h.dims();
            h = match strips.have_room_for_attention(&h) {
                true => attention.forward(&h)?,
                false => attention.forward_in_parts(&h, strips.tokens(width))?,
            };
        }
        self.last.forward(&h, None)
    }
}

/// Pixels to moments.
#[derive(Debug)]
pub(super) struct Encoder {
    conv_in: Conv2d,
    blocks: Vec<(Vec<ResnetBlock>, Option<Conv2d>)>,
    middle: Middle,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub fn new(weights: &Weights<'_>, config: &AutoencoderConfig) -> Result<Self> {
        let channels = &config.block_out_channels;
        let last = channels[channels.len() - 1];
        let blocks = (0..channels.len()).map(|i| {
            let weights = weights.at("down_blocks").at(i);
            let (inputs, outputs) = (channels[i.saturating_sub(1)], channels[i]);
            let resnets = (0..config.layers_per_block).map(|j| {
                let inputs = if j == 0 { inputs } else { outputs };
                resnet(&weights.at("resnets").at(j), config, inputs, outputs)
            });
            let down = (i + 1 < channels.len()).then(|| downsample(&weights, outputs, 0)).transpose()?;
            Ok((resnets.collect::<Result<_>>()?, down))
        });
        Ok(Self {
            conv_in: Conv2d::new(&weights.at("conv_in"), config.in_channels, channels[0], 3)?,
            blocks: blocks.collect::<Result<_>>()?,
            middle: Middle::new(&weights.at("mid_block"), config, last)?,
            conv_norm_out: norm(&weights.at("conv_norm_out"), config, last)?.with_silu(),
            conv_out: Conv2d::new(&weights.at("conv_out"), last, 2 * config.latent_channels, 3)?,
        })
    }

    pub fn forward(&self, x: FeatureMap, strips: &Strips) -> Result<FeatureMap> {
        let mut entry = &self.conv_in;
        let mut resolutions = Vec::with_capacity(self.blocks.len());
        for (resnets, down) in &self.blocks {
            resolutions.push(Resolution { entry: Entry::Conv(entry), resnets });
            entry = down.as_ref().unwrap_or(entry);
        }
        let h = strips::forward(x, &resolutions, None, strips, &mut |_| Ok(()))?;
        let h = self.middle.forward(&h, strips)?;
        self.conv_out.forward(&self.conv_norm_out.forward(&h)?)
    }
}

/// Latents to pixels.
#[derive(Debug)]
pub(super) struct Decoder {
    conv_in: Conv2d,
    middle: Middle,
    blocks: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub fn new(weights: &Weights<'_>, config: &AutoencoderConfig) -> Result<Self> {
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let blocks = (0..channels.len()).map(|i| {
            let weights = weights.at("up_blocks").at(i);
            let (inputs, outputs) = (channels[i.saturating_sub(1)], channels[i]);
            let resnets = (0..=config.layers_per_block).map(|j| {
                let inputs = if j == 0 { inputs } else { outputs };
                resnet(&weights.at("resnets").at(j), config, inputs, outputs)
            });
            let up = (i + 1 < channels.len()).then(|| Upsample::new(&weights, outputs)).transpose()?;
            Ok((resnets.collect::<Result<_>>()?, up))
        });
        Ok(Self {
            conv_in: Conv2d::new(&weights.at("conv_in"), config.latent_channels, first, 3)?,
            middle: Middle::new(&weights.at("mid_block"), config, first)?,
            blocks: blocks.collect::<Result<_>>()?,
            conv_norm_out: norm(&weights.at("conv_norm_out"), config, last)?.with_silu(),
            conv_out: Conv2d::new(&weights.at("conv_out"), last, config.out_channels, 3)?,
        })
    }

    /// The parts that `watch` is told of are the middle, each resolution, and the last convolution.
    pub fn forward(&self, z: FeatureMap, strips: &Strips, watch: &mut Watch<'_>) -> Result<FeatureMap> {
        let parts = self.blocks.len() + 2;
        tell(watch, 0, parts)?;
        let h = self.middle.forward(&self.conv_in.forward(&z)?, strips)?;
        drop(z);
        let mut entry = Entry::Nothing;
        let mut resolutions = Vec::with_capacity(self.blocks.len());
        for (resnets, up) in &self.blocks {
            resolutions.push(Resolution { entry, resnets });
            entry = up.as_ref().map_or(entry, |up| Entry::Upsampling(up.conv()));
        }
        let end = Some((&self.conv_norm_out, &self.conv_out));
        let pixels = strips::forward(h, &resolutions, end, strips, &mut |i| tell(watch, i + 1, parts))?;
        tell(watch, parts, parts)?;
        Ok(pixels)
    }
}
