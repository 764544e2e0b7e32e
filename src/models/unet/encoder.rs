//! The UNet's way down and its middle, which a ControlNet has a copy of.

use super::blocks::{BlockContext, DownBlock, MidBlock};
use super::config::UNet2DConditionConfig;
use super::text_embedding::TextTimeEmbedding;
use super::transformer::Transformer;
use crate::conditioning::Conditioning;
use crate::layers::{
    Backend, Cache, Conv2d, FeatureMap, GuidanceEmbedding, LayerId, SinusoidalEmbedding, TimestepEmbedding, Weights,
};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// First convolution, timestep embedding, blocks on the way down, block in the middle.
#[derive(Debug)]
pub(in crate::models) struct Encoder {
    conv_in: Conv2d,
    time_proj: SinusoidalEmbedding,
    time_embedding: TimestepEmbedding,
    guidance_embedding: Option<GuidanceEmbedding>,
    add_time_proj: Option<SinusoidalEmbedding>,
    add_embedding: Option<TimestepEmbedding>,
    add_text_embedding: Option<TextTimeEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    center_input_sample: bool,
    backend: Backend,
    /// The element type of activations.
    dtype: DType,
    /// Under which a run keeps the text in that type, and what the text adds to the time embedding.
    ids: [LayerId; 2],
}

/// What is added to the encoder's states from outside; nothing by default.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::models) struct Additions<'a> {
    /// After the first convolution: the picture that a ControlNet is shown.
    pub first: Option<&'a FeatureMap>,
    /// At each resolution, and in the middle if one is left: what a T2I-Adapter gives.
    pub resolutions: &'a [FeatureMap],
}

impl Encoder {
    pub fn new(weights: &Weights<'_>, config: &UNet2DConditionConfig, dtype: DType) -> Result<Self> {
        let channels = &config.block_out_channels;
        let sinusoidal = |width| SinusoidalEmbedding {
            width,
            flip_sin_to_cos: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        };
        let time_width = config.time_embed_dim();
        let sizes = config.block_sizes();
        let down_blocks = (0..channels.len()).map(|i| {
            let transformer = |weights: &Weights<'_>| config.transformer(weights, config.down_blocks[i], i);
            DownBlock::new(&weights.at("down_blocks").at(i), &sizes, i, transformer)
        });
        let mid_block = config.mid_block.map(|kind| MidBlock::new(&weights.at("mid_block"), config, kind));
        let additional = config.addition.map(|addition| {
            let embedding = TimestepEmbedding::new(&weights.at("add_embedding"), addition.embedding_input, time_width)?;
            Ok::<_, Error>((sinusoidal(addition.time_width), embedding))
        });
        let (add_time_proj, add_embedding) = additional.transpose()?.unzip();
        let add_text_embedding = config.text_pooling_heads.map(|heads| {
            TextTimeEmbedding::new(&weights.at("add_embedding"), config.cross_attention_dim[0], time_width, heads)
        });
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
            add_text_embedding: add_text_embedding.transpose()?,
            down_blocks: down_blocks.collect::<Result<_>>()?,
            mid_block: mid_block.transpose()?,
            center_input_sample: config.center_input_sample,
            backend: weights.backend(),
            dtype,
            ids: [LayerId::unique(), LayerId::unique()],
        })
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The embedding of the timesteps, with those of guidance and of the added conditioning: `[batch, time_embed_dim]`. `text`
    /// is that of [`Self::text`].
    pub fn embed_time(
        &self,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        text: &Tensor,
        cache: &Cache,
    ) -> Result<Tensor> {
        let mut time = self.time_proj.forward(timesteps)?.to_dtype(self.dtype)?;
        // Who gives no strength leaves its embedding out, as in diffusers.
        if let (Some(embedding), Some(guidance)) = (&self.guidance_embedding, &conditioning.guidance) {
            time = (time + embedding.forward(guidance, self.dtype)?)?;
        }
        let mut time = self.time_embedding.forward(&time)?;
        if let Some(embedding) = &self.add_text_embedding {
            let kept = cache.of(self.ids[1], text, || Ok(vec![embedding.forward(text)?]))?;
            time = (time + only(kept)?)?;
        }
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

    /// The text of a conditioning in the type of activations; in a run the same tensor in every step, by which attention
    /// knows it again.
    pub fn text(&self, conditioning: &Conditioning, cache: &Cache) -> Result<Tensor> {
        let Some(text) = &conditioning.text else {
            let fix = "this UNet looks at one; give its embedding";
            return Err(Error::invalid("the conditioning", "without a text", fix));
        };
        if text.dtype() == self.dtype {
            return Ok(text.clone());
        }
        only(cache.of(self.ids[0], text, || Ok(vec![text.to_dtype(self.dtype)?]))?)
    }

    /// `x`: `[batch, in_channels, height, width]`; the state after the middle, and all states on the way there.
    pub fn forward(
        &self,
        x: &Tensor,
        context: &BlockContext<'_>,
        additions: Additions<'_>,
    ) -> Result<(FeatureMap, Vec<FeatureMap>)> {
        let attend = |transformer: &Transformer, h: &FeatureMap| transformer.forward(h, context, &(0..0));
        let mut h = self.enter(x)?;
        if let Some(first) = additions.first {
            h = h.add(first)?;
        }
        let mut skips = vec![h.clone()];
        let mut resolutions = additions.resolutions.iter();
        for block in &self.down_blocks {
            h = block.forward(h, context.time, &mut skips, attend, resolutions.next())?;
        }
        if let Some(mid_block) = &self.mid_block {
            h = mid_block.forward(h, context)?;
        }
        match resolutions.next() {
            Some(rest) if rest.dims() == h.dims() => Ok((h.add(rest)?, skips)),
            _ => Ok((h, skips)),
        }
    }

    /// The first of these states alone: that of the first convolution, and those of so many layers of the highest
    /// resolution, to which a T2I-Adapter may add.
    pub fn shallow(
        &self,
        x: &Tensor,
        context: &BlockContext<'_>,
        layers: usize,
        added: Option<&FeatureMap>,
    ) -> Result<Vec<FeatureMap>> {
        let attend = |transformer: &Transformer, h: &FeatureMap| transformer.forward(h, context, &(0..0));
        let h = self.enter(x)?;
        let mut skips = vec![h.clone()];
        if let Some(block) = self.down_blocks.first() {
            block.first_layers(layers, h, context.time, &mut skips, attend, added)?;
        }
        Ok(skips)
    }

    /// How many layers the highest resolution has on the way down.
    pub fn highest_layers(&self) -> usize {
        self.down_blocks.first().map_or(0, DownBlock::layers)
    }

    /// The first convolution of `[batch, in_channels, height, width]`.
    fn enter(&self, x: &Tensor) -> Result<FeatureMap> {
        let input = x.to_dtype(self.dtype)?;
        let input = if self.center_input_sample { input.affine(2.0, -1.0)? } else { input };
        self.conv_in.forward(&FeatureMap::from_nchw(&input, self.backend)?)
    }

    /// From `[batch, channels, height, width]`.
    pub fn map(&self, x: &Tensor) -> Result<FeatureMap> {
        FeatureMap::from_nchw(&x.to_dtype(self.dtype)?, self.backend)
    }
}

/// The one tensor that is kept.
fn only(mut kept: Vec<Tensor>) -> Result<Tensor> {
    kept.pop().ok_or_else(|| Error::invalid("the cache of a text", "empty", "it holds one tensor"))
}
