//! `unet/config.json` of a network in pixel space.

use crate::config::{ConfigFields, MOST_RESOLUTIONS};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Which kind of block stands at a resolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// Residual blocks alone.
    Plain,
    /// Each residual block is followed by self-attention.
    Attention,
}

/// How the timestep is embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeEmbedding {
    /// Sines and cosines of geometrically spaced frequencies.
    Positional,
    /// Of random frequencies of the noise level's logarithm; the output is divided by the noise level
    /// (Song et al. 2021).
    Fourier,
}

/// What a class label is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassEmbedding {
    /// There are no classes.
    None,
    /// One of so many, each with a learned vector; `num_class_embeds`.
    Table(usize),
    /// A number, embedded as timesteps are.
    Timestep,
    /// The embedding itself.
    Identity,
}

/// The configuration of a [`super::UNet2DModel`], in diffusers' terms.
#[derive(Debug, Clone, PartialEq)]
pub struct UNet2DConfig {
    /// Height and width of the images that the model was trained on, if it says so.
    pub sample_size: Option<(usize, usize)>,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output: those of the input, or twice as many if the variance is learned.
    pub out_channels: usize,
    /// Whether the input is taken as `2 x - 1`.
    pub center_input_sample: bool,
    /// How the timestep is embedded.
    pub time_embedding: TimeEmbedding,
    /// Width of the time embedding, if not four times the first resolution's channels.
    pub time_embedding_dim: Option<usize>,
    /// Shift of the timestep embedding's frequencies.
    pub freq_shift: f64,
    /// Whether the cosines come first in the timestep embedding.
    pub flip_sin_to_cos: bool,
    /// The blocks on the way down.
    pub down_blocks: Vec<BlockKind>,
    /// Whether there is a block in the middle.
    pub mid_block: bool,
    /// The blocks on the way up.
    pub up_blocks: Vec<BlockKind>,
    /// Channels at each resolution.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// The middle block's sums are divided by this.
    pub mid_block_scale_factor: f64,
    /// Padding of the downsampling convolutions; 0 pads right and bottom only.
    pub downsample_padding: usize,
    /// Channels of an attention head, its *size*; without it there is one head.
    pub attention_head_dim: Option<usize>,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Groups of the norm before the middle block's attention, if not [`Self::norm_num_groups`].
    pub attn_norm_num_groups: Option<usize>,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Whether the time embedding scales and shifts after the norm, `resnet_time_scale_shift: "scale_shift"`, instead
    /// of being added before it.
    pub time_scale_shift: bool,
    /// Whether the middle block has attention.
    pub add_attention: bool,
    /// What a class label is.
    pub class_embedding: ClassEmbedding,
    /// The class that stands for none, `_null_class`; see [`crate::conditioning`].
    pub null_class: Option<usize>,
}

/// Layers at one resolution.
const MOST_LAYERS: usize = 100;

const DOWN: [(&str, BlockKind); 2] = [("DownBlock2D", BlockKind::Plain), ("AttnDownBlock2D", BlockKind::Attention)];
const UP: [(&str, BlockKind); 2] = [("UpBlock2D", BlockKind::Plain), ("AttnUpBlock2D", BlockKind::Attention)];
const TIME: [(&str, TimeEmbedding); 2] =
    [("positional", TimeEmbedding::Positional), ("fourier", TimeEmbedding::Fourier)];

impl Default for UNet2DConfig {
    /// diffusers' defaults.
    fn default() -> Self {
        use BlockKind::{Attention as Attn, Plain};
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding: TimeEmbedding::Positional,
            time_embedding_dim: None,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            down_blocks: vec![Plain, Attn, Attn, Attn],
            mid_block: true,
            up_blocks: vec![Attn, Attn, Attn, Plain],
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            attention_head_dim: Some(8),
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            time_scale_shift: false,
            add_attention: true,
            class_embedding: ClassEmbedding::None,
            null_class: None,
        }
    }
}

impl UNet2DConfig {
    /// From the fields of a `config.json`, with diffusers' defaults for those that are absent.
    ///
    /// # Errors
    /// If a field has an unusable value, or an option is set that is not supported.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        fields.ignore(&["dropout", "num_train_timesteps"]);
        fields.only("act_fn", &[json!("silu"), json!("swish")])?;
        fields.only("downsample_type", &[json!("conv")])?;
        fields.only("upsample_type", &[json!("conv")])?;
        let default = Self::default();
        let absent_or = |name: &str, value| if fields.is_null(name) { None } else { value };
        let config = Self {
            sample_size: sample_size(fields)?,
            in_channels: fields.usize("in_channels", default.in_channels)?,
            out_channels: fields.usize("out_channels", default.out_channels)?,
            center_input_sample: fields.bool("center_input_sample", default.center_input_sample)?,
            time_embedding: fields.choice("time_embedding_type", &TIME, default.time_embedding)?,
            time_embedding_dim: fields.optional_usize("time_embedding_dim")?,
            freq_shift: fields.f64("freq_shift", default.freq_shift)?,
            flip_sin_to_cos: fields.bool("flip_sin_to_cos", default.flip_sin_to_cos)?,
            down_blocks: fields.choices("down_block_types", &DOWN, &default.down_blocks)?,
            mid_block: {
                fields.only("mid_block_type", &[json!("UNetMidBlock2D")])?;
                !fields.is_null("mid_block_type")
            },
            up_blocks: fields.choices("up_block_types", &UP, &default.up_blocks)?,
            block_out_channels: fields.usize_list("block_out_channels", &default.block_out_channels)?,
            layers_per_block: fields.usize("layers_per_block", default.layers_per_block)?,
            mid_block_scale_factor: fields.f64("mid_block_scale_factor", default.mid_block_scale_factor)?,
            downsample_padding: fields.usize("downsample_padding", default.downsample_padding)?,
            attention_head_dim: absent_or(
                "attention_head_dim",
                fields.optional_usize("attention_head_dim")?.or(default.attention_head_dim),
            ),
            norm_num_groups: fields.usize("norm_num_groups", default.norm_num_groups)?,
            attn_norm_num_groups: fields.optional_usize("attn_norm_num_groups")?,
            norm_eps: fields.f64("norm_eps", default.norm_eps)?,
            time_scale_shift: fields.choice(
                "resnet_time_scale_shift",
                &[("default", false), ("scale_shift", true)],
                default.time_scale_shift,
            )?,
            add_attention: fields.bool("add_attention", default.add_attention)?,
            class_embedding: class_embedding(fields)?,
            null_class: fields.optional_usize("_null_class")?,
        };
        fields.reject_unread()?;
        config.check()?;
        Ok(config)
    }

    /// From the text of a `config.json`; `path` is named in errors.
    ///
    /// # Errors
    /// As [`Self::from_fields`], or if the text is not one JSON object.
    pub fn from_json(text: &str, path: &Path) -> Result<Self> {
        Self::from_fields(&ConfigFields::from_json("unet", text, path)?)
    }

    /// The fields of diffusers' `config.json`, all of them, with its class name.
    pub fn to_fields(&self) -> Map<String, Value> {
        let (class_embed_type, num_class_embeds) = match self.class_embedding {
            ClassEmbedding::None => (None, None),
            ClassEmbedding::Table(classes) => (None, Some(classes)),
            ClassEmbedding::Timestep => (Some("timestep"), None),
            ClassEmbedding::Identity => (Some("identity"), None),
        };
        let fields = json!({
            "_class_name": "UNet2DModel",
            "_null_class": self.null_class,
            "act_fn": "silu",
            "add_attention": self.add_attention,
            "attention_head_dim": self.attention_head_dim,
            "attn_norm_num_groups": self.attn_norm_num_groups,
            "block_out_channels": self.block_out_channels,
            "center_input_sample": self.center_input_sample,
            "class_embed_type": class_embed_type,
            "down_block_types": self.down_blocks.iter().map(|kind| name(&DOWN, *kind)).collect::<Vec<_>>(),
            "downsample_padding": self.downsample_padding,
            "downsample_type": "conv",
            "dropout": 0.0,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "freq_shift": self.freq_shift,
            "in_channels": self.in_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_scale_factor": self.mid_block_scale_factor,
            "mid_block_type": self.mid_block.then_some("UNetMidBlock2D"),
            "norm_eps": self.norm_eps,
            "norm_num_groups": self.norm_num_groups,
            "num_class_embeds": num_class_embeds,
            "num_train_timesteps": null,
            "out_channels": self.out_channels,
            "resnet_time_scale_shift": if self.time_scale_shift { "scale_shift" } else { "default" },
            "sample_size": match self.sample_size {
                None => Value::Null,
                Some((height, width)) if height == width => json!(height),
                Some((height, width)) => json!([height, width]),
            },
            "time_embedding_dim": self.time_embedding_dim,
            "time_embedding_type": name(&TIME, self.time_embedding),
            "up_block_types": self.up_blocks.iter().map(|kind| name(&UP, *kind)).collect::<Vec<_>>(),
            "upsample_type": "conv",
        });
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// Width of the time embedding.
    pub fn time_embed_dim(&self) -> usize {
        self.time_embedding_dim.unwrap_or(4 * self.block_out_channels[0])
    }

    /// The classes that can be asked for, without the null class; 0 if there are none to choose from.
    pub fn num_classes(&self) -> usize {
        match self.class_embedding {
            ClassEmbedding::Table(classes) => classes - usize::from(self.null_class.is_some()),
            _ => 0,
        }
    }

    /// Whether the parts fit together. [`Self::from_fields`] has asked; a configuration made in code is asked by
    /// [`super::UNet2DModel::new`].
    ///
    /// # Errors
    /// If they do not; the message names the field.
    pub fn check(&self) -> Result<()> {
        self.check_blocks()?;
        if self.downsample_padding > 1 {
            return Err(self.wrong("downsample_padding", "it must be 0 or 1"));
        }
        let channels = &self.block_out_channels;
        if self.norm_num_groups == 0 || channels.iter().any(|c| c % self.norm_num_groups != 0) {
            return Err(self.wrong("norm_num_groups", "it must divide every one of block_out_channels"));
        }
        let last = channels[channels.len() - 1];
        if self.attn_norm_num_groups.is_some_and(|groups| groups == 0 || !last.is_multiple_of(groups)) {
            return Err(self.wrong("attn_norm_num_groups", "it must divide the last of block_out_channels"));
        }
        let attends = |i: usize| {
            let middle = self.mid_block && self.add_attention && i + 1 == channels.len();
            let [down, up] = [self.down_blocks[i], self.up_blocks[channels.len() - 1 - i]];
            middle || down == BlockKind::Attention || up == BlockKind::Attention
        };
        if let Some(size) = self.attention_head_dim
            && (0..channels.len()).any(|i| attends(i) && (size == 0 || !channels[i].is_multiple_of(size)))
        {
            let expected = "it is the size of a head, and must divide the channels where there is attention; \
                            null makes one head";
            return Err(self.wrong("attention_head_dim", expected));
        }
        match (self.null_class, self.class_embedding) {
            (Some(null), ClassEmbedding::Table(classes)) if null + 1 == classes => Ok(()),
            (Some(_), _) => Err(self.wrong("_null_class", "it must be the last class, num_class_embeds - 1")),
            (None, ClassEmbedding::Table(0)) => Err(self.wrong("num_class_embeds", "it must be 1 at least, or null")),
            _ => Ok(()),
        }
    }

    fn check_blocks(&self) -> Result<()> {
        let blocks = self.block_out_channels.len();
        if blocks == 0 || blocks > MOST_RESOLUTIONS || self.block_out_channels.contains(&0) {
            return Err(self.wrong("block_out_channels", format!("give 1 to {MOST_RESOLUTIONS} widths above 0")));
        }
        for (name, count) in [("down_block_types", self.down_blocks.len()), ("up_block_types", self.up_blocks.len())] {
            if count != blocks {
                let expected = format!("block_out_channels has {blocks} resolutions, so there must be {blocks} blocks");
                return Err(self.wrong(name, expected));
            }
        }
        if !(1..=MOST_LAYERS).contains(&self.layers_per_block) {
            return Err(self.wrong("layers_per_block", format!("it must be 1 to {MOST_LAYERS}")));
        }
        if self.in_channels == 0 || self.out_channels == 0 {
            return Err(self.wrong("in_channels", "neither it nor out_channels can be 0"));
        }
        if self.mid_block_scale_factor == 0.0 {
            return Err(self.wrong("mid_block_scale_factor", "it cannot be 0"));
        }
        Ok(())
    }

    fn wrong(&self, field: &str, expected: impl Into<String>) -> Error {
        ConfigFields::from_fields("unet", self.to_fields()).wrong(field, expected)
    }
}

fn name<T: PartialEq>(names: &[(&'static str, T)], value: T) -> &'static str {
    names.iter().find(|(_, named)| *named == value).map_or("", |(name, _)| name)
}

/// `sample_size`: one number for a square, or height and width.
fn sample_size(fields: &ConfigFields) -> Result<Option<(usize, usize)>> {
    let sides = fields.usize_per_block("sample_size", 2, 0)?;
    match (fields.fields().get("sample_size").is_some_and(|size| !size.is_null()), sides.contains(&0)) {
        (false, _) => Ok(None),
        (true, true) => Err(fields.wrong("sample_size", "it must be above 0")),
        (true, false) => Ok(Some((sides[0], sides[1]))),
    }
}

fn class_embedding(fields: &ConfigFields) -> Result<ClassEmbedding> {
    let kinds = [("timestep", ClassEmbedding::Timestep), ("identity", ClassEmbedding::Identity)];
    let table = fields.optional_usize("num_class_embeds")?.map(ClassEmbedding::Table);
    fields.choice("class_embed_type", &kinds, table.unwrap_or(ClassEmbedding::None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(changes: Value) -> ConfigFields {
        let mut fields = UNet2DConfig::default().to_fields();
        fields.extend(changes.as_object().cloned().unwrap_or_default());
        ConfigFields::from_fields("unet", fields)
    }

    #[test]
    fn what_is_written_is_what_is_read() -> Result<()> {
        let config = UNet2DConfig {
            sample_size: Some((28, 32)),
            time_embedding: TimeEmbedding::Fourier,
            attention_head_dim: None,
            mid_block: false,
            class_embedding: ClassEmbedding::Table(11),
            null_class: Some(10),
            time_scale_shift: true,
            ..UNet2DConfig::default()
        };
        for config in [config, UNet2DConfig::default()] {
            assert_eq!(UNet2DConfig::from_fields(&ConfigFields::from_fields("unet", config.to_fields()))?, config);
        }
        // An empty file means diffusers' defaults.
        let empty = ConfigFields::from_fields("unet", Map::new());
        assert_eq!(UNet2DConfig::from_fields(&empty)?, UNet2DConfig::default());
        Ok(())
    }

    #[test]
    fn what_does_not_fit_is_named_with_its_value() {
        for (changes, parts) in [
            (json!({"attention_head_dim": 9}), ["`attention_head_dim` is 9", "size of a head"]),
            (json!({"norm_num_groups": 33}), ["`norm_num_groups` is 33", "divide"]),
            (json!({"down_block_types": ["DownBlock2D"]}), ["`down_block_types` is", "4 blocks"]),
            (json!({"down_block_types": ["ResnetDownsampleBlock2D"]}), ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]),
            (json!({"downsample_type": "resnet"}), ["`downsample_type` is \"resnet\"", "\"conv\""]),
            (json!({"time_embedding_type": "learned"}), ["`time_embedding_type` is \"learned\"", "fourier"]),
            (json!({"num_class_embeds": 10, "_null_class": 3}), ["`_null_class` is 3", "last class"]),
            (json!({"_null_class": 3}), ["`_null_class` is 3", "last class"]),
            (json!({"sample_size": 0}), ["`sample_size` is 0", "above 0"]),
            (json!({"a_new_option": true}), ["`a_new_option` is true", "not supported"]),
        ] {
            let message = UNet2DConfig::from_fields(&fields(changes)).map_or_else(|e| e.to_string(), |_| String::new());
            assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} in: {message}");
        }
    }
}
