//! Self-attention of pixels, which the autoencoder and the UNet in pixel space share.

use crate::layers::{Attention, AttentionConfig, FeatureMap, GroupNorm, Weights};
use crate::{Error, Result};
use candle_core::Tensor;

/// The sizes of an [`AttentionBlock`].
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionBlockConfig {
    pub channels: usize,
    pub heads: usize,
    /// Of the norm; without it there is none.
    pub groups: Option<usize>,
    pub epsilon: f64,
    /// The output is divided by this.
    pub output_scale: f64,
}

/// Norm, attention of all pixels to all pixels, and the input added.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    group_norm: Option<GroupNorm>,
    attention: Attention,
    output_scale: f64,
}

impl AttentionBlock {
    pub fn new(weights: &Weights<'_>, config: AttentionBlockConfig) -> Result<Self> {
        let AttentionBlockConfig { channels, heads, groups, epsilon, output_scale } = config;
        let norm = groups.map(|groups| GroupNorm::new(&weights.at("group_norm"), groups, channels, epsilon));
        let attention = AttentionConfig { width: channels, context_width: channels, heads, bias: true };
        Ok(Self { group_norm: norm.transpose()?, attention: Attention::new(weights, attention)?, output_scale })
    }

    /// The same of one image, by the kernels and without a gradient, for so many tokens at a time. Keys, values and the sum are
    /// held whole.
    pub fn forward_in_parts(&self, x: &FeatureMap, tokens: usize) -> Result<FeatureMap> {
        let (_, _, height, width) = x.dims();
        let sums_of = |norm: &GroupNorm| {
            let mut sums = norm.sums();
            x.add_to(&mut sums)?;
            Ok::<_, Error>(sums)
        };
        let sums = self.group_norm.as_ref().map(sums_of).transpose()?;
        let normed = |part: &Tensor| match (&self.group_norm, &sums) {
            (Some(norm), Some(sums)) => {
                let in_a_line = FeatureMap::from_tokens(part, 1, part.dim(1)?, x.backend())?;
                norm.forward_part(&in_a_line, sums)?.tokens()
            }
            _ => Ok(part.clone()),
        };
        let sum = self.attention.forward_in_parts(&x.tokens()?, normed, tokens)?;
        FeatureMap::from_tokens(&sum, height, width, x.backend())?.scale(1.0 / self.output_scale)
    }

    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let (_, _, height, width) = x.dims();
        let residual = x.tokens()?;
        let tokens = match &self.group_norm {
            Some(norm) => norm.forward(x)?.tokens()?,
            None => residual.clone(),
        };
        let sum = self.attention.forward(&tokens, &tokens, &residual)?;
        FeatureMap::from_tokens(&sum, height, width, x.backend())?.scale(1.0 / self.output_scale)
    }
}
