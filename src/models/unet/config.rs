//! `unet/config.json`.

use crate::Result;
use crate::config::{ConfigFields, Flaw, MOST_RESOLUTIONS, are_widths};
use serde_json::{Value, json};

/// Which kind of block stands at a resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Residual blocks alone.
    Plain,
    /// Each residual block is followed by a transformer that looks at the text.
    CrossAttention,
}

/// The conditioning that SDXL adds to the time embedding: pooled text and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddedConditioning {
    /// Width of the embedding of each of the six numbers; the refiner has five.
    pub time_width: usize,
    /// Width of all of it together, pooled text first.
    pub embedding_input: usize,
}

/// The configuration of a [`super::UNet2DConditionModel`], in diffusers' terms.
#[derive(Debug, Clone, PartialEq)]
pub struct UNet2DConditionConfig {
    /// Height and width of the latents that the model was trained on.
    pub sample_size: (usize, usize),
    /// Channels of the input; 4, or 9 for inpainting models.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Whether the input is taken as `2 x - 1`.
    pub center_input_sample: bool,
    /// Whether the cosines come first in the timestep embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the timestep embedding's frequencies.
    pub freq_shift: f64,
    /// The blocks on the way down.
    pub down_blocks: Vec<BlockKind>,
    /// The block in the middle, if there is one.
    pub mid_block: Option<BlockKind>,
    /// The blocks on the way up.
    pub up_blocks: Vec<BlockKind>,
    /// Channels at each resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution on the way down; one more on the way up.
    pub layers_per_block: Vec<usize>,
    /// Padding of the downsampling convolutions; 0 pads right and bottom only.
    pub downsample_padding: usize,
    /// The middle block's residual sums are divided by this.
    pub mid_block_scale_factor: f64,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Epsilon of the residual blocks' norms.
    pub norm_eps: f64,
    /// Width of the text conditioning at each resolution.
    pub cross_attention_dim: Vec<usize>,
    /// Transformer layers at each resolution.
    pub transformer_layers_per_block: Vec<usize>,
    /// Heads at each resolution; the file calls it `attention_head_dim`.
    pub num_heads: Vec<usize>,
    /// Whether the transformers' outer projections are linear layers instead of convolutions.
    pub use_linear_projection: bool,
    /// SDXL's added conditioning.
    pub addition: Option<AddedConditioning>,
    /// Heads with which the text is pooled and added to the time embedding, if it is.
    pub text_pooling_heads: Option<usize>,
    /// Whether the time embedding scales and shifts after the norm, `resnet_time_scale_shift: "scale_shift"`, instead
    /// of being added before it.
    pub time_scale_shift: bool,
    /// Width of the time embedding, if not four times the first resolution's channels.
    pub time_embedding_dim: Option<usize>,
    /// Width of the embedding of the guidance's strength, of networks that take it as an input.
    pub time_cond_proj_dim: Option<usize>,
    /// Size of the first convolution's kernel.
    pub conv_in_kernel: usize,
    /// Size of the last convolution's kernel.
    pub conv_out_kernel: usize,
}

/// Of residual blocks or transformer layers at one resolution.
const MOST_LAYERS: usize = 100;

const DOWN: [(&str, BlockKind); 2] =
    [("DownBlock2D", BlockKind::Plain), ("CrossAttnDownBlock2D", BlockKind::CrossAttention)];
const UP: [(&str, BlockKind); 2] = [("UpBlock2D", BlockKind::Plain), ("CrossAttnUpBlock2D", BlockKind::CrossAttention)];
const MID: [(&str, BlockKind); 2] =
    [("UNetMidBlock2D", BlockKind::Plain), ("UNetMidBlock2DCrossAttn", BlockKind::CrossAttention)];

impl UNet2DConditionConfig {
    /// From the fields of a `config.json`, with diffusers' defaults for those that are absent.
    ///
    /// # Errors
    /// If a field has an unusable value, or an option is set that is not supported.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        use BlockKind::{CrossAttention as Cross, Plain};
        reject_unsupported(fields)?;
        let block_out_channels = fields.usize_list("block_out_channels", &[320, 640, 1280, 1280])?;
        let blocks = block_out_channels.len();
        let config = Self {
            sample_size: sample_size(fields, 64)?,
            in_channels: fields.usize("in_channels", 4)?,
            out_channels: fields.usize("out_channels", 4)?,
            center_input_sample: fields.bool("center_input_sample", false)?,
            flip_sin_to_cos: fields.bool("flip_sin_to_cos", true)?,
            freq_shift: fields.f64("freq_shift", 0.0)?,
            down_blocks: fields.choices("down_block_types", &DOWN, &[Cross, Cross, Cross, Plain])?,
            mid_block: mid_block(fields)?,
            up_blocks: fields.choices("up_block_types", &UP, &[Plain, Cross, Cross, Cross])?,
            layers_per_block: fields.usize_per_block("layers_per_block", blocks, 2)?,
            downsample_padding: fields.usize("downsample_padding", 1)?,
            mid_block_scale_factor: fields.f64("mid_block_scale_factor", 1.0)?,
            norm_num_groups: fields.usize("norm_num_groups", 32)?,
            norm_eps: fields.f64("norm_eps", 1e-5)?,
            cross_attention_dim: fields.usize_per_block("cross_attention_dim", blocks, 1280)?,
            transformer_layers_per_block: fields.usize_per_block("transformer_layers_per_block", blocks, 1)?,
            num_heads: fields.usize_per_block("attention_head_dim", blocks, 8)?,
            use_linear_projection: fields.bool("use_linear_projection", false)?,
            addition: addition(fields)?,
            text_pooling_heads: text_pooling_heads(fields)?,
            time_scale_shift: fields.choice(
                "resnet_time_scale_shift",
                &[("default", false), ("scale_shift", true)],
                false,
            )?,
            time_embedding_dim: fields.optional_usize("time_embedding_dim")?,
            time_cond_proj_dim: fields.optional_usize("time_cond_proj_dim")?,
            conv_in_kernel: odd(fields, "conv_in_kernel")?,
            conv_out_kernel: odd(fields, "conv_out_kernel")?,
            block_out_channels,
        };
        fields.reject_unread()?;
        config.check().map_err(|(field, expected)| fields.wrong(field, expected))?;
        Ok(config)
    }

    /// Width of the time embedding.
    pub fn time_embed_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }

    /// How many values the skip connections hold together, for one row of this height and width.
    pub(crate) fn skip_values(&self, mut height: usize, mut width: usize) -> u64 {
        let values = |channels: usize, height: usize, width: usize| channels as u64 * height as u64 * width as u64;
        let channels = &self.block_out_channels;
        let mut sum = values(channels[0], height, width);
        for (i, (&channels_here, &layers)) in channels.iter().zip(&self.layers_per_block).enumerate() {
            sum += layers as u64 * values(channels_here, height, width);
            if i + 1 < channels.len() {
                // Padding on one side alone makes one less of an odd number.
                let half = |side: usize| (side + self.downsample_padding.min(1)) / 2;
                (height, width) = (half(height), half(width));
                sum += values(channels_here, height, width);
            }
        }
        sum
    }

    /// Whether block `i` on the way up looks at the text.
    pub(crate) fn attends_up(&self, i: usize) -> bool {
        self.up_blocks[i] == BlockKind::CrossAttention
    }

    /// Whether the parts fit together.
    pub(crate) fn check(&self) -> Result<(), Flaw> {
        self.check_widths()?;
        let blocks = self.block_out_channels.len();
        for (name, count) in [("down_block_types", self.down_blocks.len()), ("up_block_types", self.up_blocks.len())] {
            if count != blocks {
                let expected = format!("block_out_channels has {blocks} resolutions, so there must be {blocks} blocks");
                return Err((name, expected));
            }
        }
        for (name, layers) in [
            ("layers_per_block", &self.layers_per_block),
            ("transformer_layers_per_block", &self.transformer_layers_per_block),
        ] {
            if layers.iter().any(|&count| count > MOST_LAYERS) {
                return Err((name, format!("it must be {MOST_LAYERS} at most")));
            }
        }
        if self.downsample_padding > 1 {
            return Err(("downsample_padding", "it must be 0 or 1".into()));
        }
        if self.norm_num_groups == 0 || self.block_out_channels.iter().any(|c| c % self.norm_num_groups != 0) {
            return Err(("norm_num_groups", "it must divide every one of block_out_channels".into()));
        }
        if self.num_heads.iter().zip(&self.block_out_channels).any(|(&heads, c)| heads == 0 || c % heads != 0) {
            let expected = "it is the number of heads, and must divide the channels of its block";
            return Err(("attention_head_dim", expected.into()));
        }
        Ok(())
    }

    /// Whether every layer has something to take and to give.
    fn check_widths(&self) -> Result<(), Flaw> {
        if !are_widths([&self.in_channels, &self.out_channels]) {
            return Err(("in_channels", "neither it nor out_channels can be 0".into()));
        }
        if self.block_out_channels.is_empty() || !are_widths(&self.block_out_channels) {
            return Err(("block_out_channels", "none of them can be 0".into()));
        }
        if self.block_out_channels.len() > MOST_RESOLUTIONS {
            return Err(("block_out_channels", format!("it has those of {MOST_RESOLUTIONS} resolutions at most")));
        }
        if !are_widths(&self.cross_attention_dim) {
            return Err(("cross_attention_dim", "it cannot be 0".into()));
        }
        if !are_widths(&self.time_embedding_dim) {
            return Err(("time_embedding_dim", "it cannot be 0".into()));
        }
        if self.time_cond_proj_dim.is_some_and(|width| width < 4) {
            return Err(("time_cond_proj_dim", "it must be 4 or more".into()));
        }
        let width = self.cross_attention_dim[0];
        if self.text_pooling_heads.is_some_and(|heads| heads == 0 || !width.is_multiple_of(heads)) {
            let expected = format!("it must divide cross_attention_dim, which is {width}");
            return Err(("addition_embed_type_num_heads", expected));
        }
        match self.addition {
            Some(addition) if addition.embedding_input <= addition.time_width.saturating_mul(5) => Err((
                "projection_class_embeddings_input_dim",
                "it must be more than five times addition_time_embed_dim".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// Options that no Stable Diffusion 1.x, 2.x or XL checkpoint uses are refused by name; those without an effect on
/// the output are passed over.
fn reject_unsupported(fields: &ConfigFields) -> Result<()> {
    fields.ignore(&["dropout", "upcast_attention", "resnet_out_scale_factor"]);
    fields.only("act_fn", &[json!("silu"), json!("swish")])?;
    fields.only("time_embedding_type", &[json!("positional")])?;
    fields.only("attention_type", &[json!("default")])?;
    for name in [
        "only_cross_attention",
        "dual_cross_attention",
        "resnet_skip_time_act",
        "class_embeddings_concat",
        "mid_block_only_cross_attention",
    ] {
        fields.only(name, &[json!(false)])?;
    }
    for name in [
        "num_attention_heads",
        "reverse_transformer_layers_per_block",
        "encoder_hid_dim",
        "encoder_hid_dim_type",
        "class_embed_type",
        "num_class_embeds",
        "time_embedding_act_fn",
        "timestep_post_act",
        "cross_attention_norm",
    ] {
        fields.only(name, &[])?;
    }
    Ok(())
}

/// `mid_block_type`; null is no block, which absent is not.
fn mid_block(fields: &ConfigFields) -> Result<Option<BlockKind>> {
    let kind = fields.choice("mid_block_type", &MID, BlockKind::CrossAttention)?;
    Ok((!fields.is_null("mid_block_type")).then_some(kind))
}

/// `addition_embed_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AddedEmbedding {
    Text,
    TextAndSizes,
}

fn added_embedding(fields: &ConfigFields) -> Result<Option<AddedEmbedding>> {
    let kinds = [("text", Some(AddedEmbedding::Text)), ("text_time", Some(AddedEmbedding::TextAndSizes))];
    fields.choice("addition_embed_type", &kinds, None)
}

fn text_pooling_heads(fields: &ConfigFields) -> Result<Option<usize>> {
    let heads = fields.usize("addition_embed_type_num_heads", 64)?;
    Ok((added_embedding(fields)? == Some(AddedEmbedding::Text)).then_some(heads))
}

fn addition(fields: &ConfigFields) -> Result<Option<AddedConditioning>> {
    let time_width = fields.optional_usize("addition_time_embed_dim")?;
    let embedding_input = fields.optional_usize("projection_class_embeddings_input_dim")?;
    if added_embedding(fields)? != Some(AddedEmbedding::TextAndSizes) {
        return Ok(None);
    }
    match (time_width, embedding_input) {
        (Some(time_width), Some(embedding_input)) => Ok(Some(AddedConditioning { time_width, embedding_input })),
        _ => Err(fields.wrong(
            "addition_embed_type",
            "it needs addition_time_embed_dim and projection_class_embeddings_input_dim",
        )),
    }
}

/// `sample_size`: one number for a square, or height and width. One number below the default in a file that was written before
/// diffusers 0.9 is a default of that time, as diffusers' pipelines take it: those networks were trained on the larger latents.
fn sample_size(fields: &ConfigFields, default: usize) -> Result<(usize, usize)> {
    let sides = fields.usize_per_block("sample_size", 2, default)?;
    let one = fields.fields().get("sample_size").is_some_and(Value::is_u64);
    let least = if one && is_before_0_9(fields) { default } else { 0 };
    Ok((sides[0].max(least), sides[1].max(least)))
}

/// Whether the file says that diffusers before 0.9 wrote it.
fn is_before_0_9(fields: &ConfigFields) -> bool {
    let version = fields.fields().get("_diffusers_version").and_then(Value::as_str);
    let minor = version.and_then(|version| version.strip_prefix("0.")?.split('.').next()?.parse::<u32>().ok());
    minor.is_some_and(|minor| minor < 9)
}

fn odd(fields: &ConfigFields, name: &str) -> Result<usize> {
    match fields.usize(name, 3)? {
        size if size % 2 == 1 && size <= 31 => Ok(size),
        _ => Err(fields.wrong(name, "it must be an odd number, 31 at most")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stable Diffusion 1.5 at 512x512 has twelve of them: 3 of 320x64x64, 320x32x32, 2 of 640x32x32, 640x16x16, 2 of 1280x16x16 and 3 of
    /// 1280x8x8.
    #[test]
    fn skip_connections_are_counted() -> Result<()> {
        let fields =
            ConfigFields::from_json("unet", "{\"cross_attention_dim\": 768}", std::path::Path::new("config.json"))?;
        let config = UNet2DConditionConfig::from_fields(&fields)?;
        let values = 320 * (3 * 4096 + 1024) + 640 * (2 * 1024 + 256) + 1280 * (2 * 256 + 3 * 64);
        assert_eq!(config.skip_values(64, 64), values);
        assert!(config.skip_values(65, 64) > values);
        Ok(())
    }

    /// As diffusers' pipelines of Stable Diffusion 1 and 2, which compare with version 0.9.0 and take one number alone.
    #[test]
    fn old_files_state_a_size_that_is_none() -> Result<()> {
        let sides = |version: Value, size: Value| {
            let text = json!({"_diffusers_version": version, "sample_size": size}).to_string();
            let fields = ConfigFields::from_json("unet", &text, std::path::Path::new("config.json"))?;
            sample_size(&fields, 64)
        };
        for (version, size, expected) in [
            (json!("0.6.0"), json!(32), (64, 64)),
            (json!("0.8.1"), json!(96), (96, 96)),
            (json!("0.8.0"), json!([32, 48]), (32, 48)),
            (json!("0.9.0"), json!(32), (32, 32)),
            (json!("0.10.2"), json!(32), (32, 32)),
            (json!("0.42.1"), json!(16), (16, 16)),
            (json!("1.2"), json!(16), (16, 16)),
            (Value::Null, json!(16), (16, 16)),
        ] {
            assert_eq!(sides(version.clone(), size)?, expected, "{version}");
        }
        Ok(())
    }
}
