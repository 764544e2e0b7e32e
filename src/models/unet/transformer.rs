//! The spatial transformer: pixels as tokens that look at each other and at the text.

use super::blocks::BlockContext;
use super::token_merging::TokenMerging;
use crate::Result;
use crate::layers::{
    Attention, AttentionConfig, Cache, Conv2d, FeatureMap, GroupNorm, LayerNorm, Linear, Weights, add_residual,
    recomputed, recomputes,
};
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// The sizes of a [`Transformer`].
#[derive(Debug, Clone, Copy)]
pub(super) struct TransformerConfig {
    pub channels: usize,
    pub heads: usize,
    pub context_width: usize,
    pub layers: usize,
    pub groups: usize,
    pub linear_projection: bool,
    /// Whether tokens are merged here, where it is asked for.
    pub merges_tokens: bool,
}

/// The outer projections: 1x1 convolutions in older models, linear layers in newer ones.
#[derive(Debug)]
enum Projection {
    Conv(Conv2d),
    Linear(Linear),
}

impl Projection {
    fn new(weights: &Weights<'_>, channels: usize, linear: bool) -> Result<Self> {
        Ok(if linear {
            Self::Linear(Linear::new(weights, channels, channels)?)
        } else {
            Self::Conv(Conv2d::new(weights, channels, channels, 1)?)
        })
    }

    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::Linear(linear) => {
                let (_, _, height, width) = x.dims();
                FeatureMap::from_tokens(&linear.forward(&x.tokens()?)?, height, width, x.backend())
            }
        }
    }

    /// Of tokens, plus a map that they become.
    fn forward_plus_residual(&self, tokens: &Tensor, residual: &FeatureMap) -> Result<FeatureMap> {
        let ((_, _, height, width), backend) = (residual.dims(), residual.backend());
        let map = |tokens: &Tensor| FeatureMap::from_tokens(tokens, height, width, backend);
        match self {
            Self::Conv(conv) => conv.forward_plus_residual(&map(tokens)?, residual),
            Self::Linear(linear) => map(&linear.forward_plus_residual(tokens, &residual.tokens()?)?),
        }
    }
}

#[derive(Debug)]
pub(super) struct Transformer {
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<Arc<Block>>,
    proj_out: Projection,
    merges_tokens: bool,
}

impl Transformer {
    pub fn new(weights: &Weights<'_>, config: TransformerConfig) -> Result<Self> {
        let block = |k| Block::new(&weights.at("transformer_blocks").at(k), config).map(Arc::new);
        Ok(Self {
            norm: GroupNorm::new(&weights.at("norm"), config.groups, config.channels, 1e-6)?,
            proj_in: Projection::new(&weights.at("proj_in"), config.channels, config.linear_projection)?,
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            proj_out: Projection::new(&weights.at("proj_out"), config.channels, config.linear_projection)?,
            merges_tokens: config.merges_tokens,
        })
    }

    /// In the `perturbed` rows of the batch, self-attention is the identity.
    pub fn forward(&self, x: &FeatureMap, context: &BlockContext<'_>, perturbed: &Range<usize>) -> Result<FeatureMap> {
        let mut tokens = self.proj_in.forward(&self.norm.forward(x)?)?.tokens()?;
        let (_, _, height, width) = x.dims();
        let (share, backend) = (context.token_merging, x.backend());
        let merges = self.merges_tokens && share > 0.0;
        let merging = merges.then_some(TokenMerging { share, height, width, backend });
        for block in &self.blocks {
            tokens = block.forward(&tokens, context, perturbed, merging)?;
        }
        self.proj_out.forward_plus_residual(&tokens, x)
    }
}

/// Self-attention, cross-attention, gated perceptron, each with a norm before and a sum after.
#[derive(Debug)]
struct Block {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
}

impl Block {
    fn new(weights: &Weights<'_>, config: TransformerConfig) -> Result<Self> {
        let TransformerConfig { channels: width, heads, context_width, .. } = config;
        let norm = |name| LayerNorm::new(&weights.at(name), width, 1e-5);
        let attention = |name, context_width| {
            Attention::new(&weights.at(name), AttentionConfig { width, context_width, heads, bias: false })
        };
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention("attn1", width)?,
            norm2: norm("norm2")?,
            attn2: attention("attn2", context_width)?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(&weights.at("ff"), width)?,
        })
    }

    /// Where gradients are taken in [`recomputing`](crate::layers::recomputing), of this block nothing is kept but what goes in.
    fn forward(
        self: &Arc<Self>,
        x: &Tensor,
        context: &BlockContext<'_>,
        perturbed: &Range<usize>,
        merging: Option<TokenMerging>,
    ) -> Result<Tensor> {
        if !recomputes() {
            return self.compute(x, context.text, context.cache, perturbed, merging);
        }
        let (block, perturbed) = (self.clone(), perturbed.clone());
        // What is kept of a text is of one call.
        recomputed([x, context.text], move |[x, text]| block.compute(x, text, &Cache::default(), &perturbed, merging))
    }

    fn compute(
        &self,
        x: &Tensor,
        text: &Tensor,
        cache: &Cache,
        perturbed: &Range<usize>,
        merging: Option<TokenMerging>,
    ) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let x = match merging {
            Some(merging) => {
                let merged = merging.of(x)?;
                let h = merged.merge(&h)?;
                add_residual(&merged.unmerge(&self.attn1.forward_alone(&h, &h)?)?, x)?
            }
            None if perturbed.is_empty() => self.attn1.forward(&h, &h, x)?,
            None => self.attn1.forward_perturbed(&h, perturbed.clone(), x)?,
        };
        let x = self.attn2.forward_to_fixed(&self.norm2.forward(&x)?, text, &x, cache)?;
        self.ff.forward(&self.norm3.forward(&x)?, &x)
    }
}

/// GEGLU (Shazeer 2020): one half of the first projection gates the other.
#[derive(Debug)]
struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    fn new(weights: &Weights<'_>, width: usize) -> Result<Self> {
        let inner = 4 * width;
        Ok(Self {
            proj: Linear::new(&weights.at("net.0.proj"), width, 2 * inner)?,
            out: Linear::new(&weights.at("net.2"), inner, width)?,
        })
    }

    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.out.forward_plus_residual(&self.proj.forward_geglu(x)?, residual)
    }
}
