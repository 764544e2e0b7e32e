//! The networks of a latent diffusion model in training, as their configuration files have them.

use super::{LatentTrainingData, LatentTrainingSettings};
use serde_json::{Map, Value, json};
use tweedie::config::DIFFUSERS_VERSION;
use tweedie::text::Tokenizer;
use tweedie::{Error, Result};

impl LatentTrainingSettings {
    /// `unet/config.json`: that of the model to go on from, the given one, or one made of channels and blocks.
    ///
    /// # Errors
    /// If it cannot be read or made.
    pub(super) fn unet(&self, data: &LatentTrainingData) -> Result<Map<String, Value>> {
        match (data.unet(), &self.unet_config) {
            (Some(unet), _) => Ok(unet.fields().fields().clone()),
            (None, Some(fields)) => Ok(fields.clone()),
            (None, None) => self.small_unet(data),
        }
    }

    fn small_unet(&self, data: &LatentTrainingData) -> Result<Map<String, Value>> {
        let count = self.channels.len();
        if count == 0 || count > 8 || self.channels.contains(&0) {
            return Err(Error::invalid("`channels`", format!("{:?}", self.channels), "give 1 to 8 widths above 0"));
        }
        let attention = self.attention.clone().unwrap_or_else(|| match count {
            2 => vec![1],
            _ => (1..count.saturating_sub(1)).collect(),
        });
        if let Some(beyond) = attention.iter().find(|&&resolution| resolution >= count) {
            let fix = format!("there are {count} resolutions, counted from 0");
            return Err(Error::invalid("a resolution of `attention`", beyond, fix));
        }
        if let Some(channels) = self.channels.iter().find(|&channels| self.heads == 0 || channels % self.heads != 0) {
            let fix = format!("it must divide each of `channels`, of which one is {channels}");
            return Err(Error::invalid("`heads`", self.heads, fix));
        }
        let kind = |resolution: usize, plain: &str, attending: &str| {
            if attention.contains(&resolution) { attending.to_owned() } else { plain.to_owned() }
        };
        let down = (0..count).map(|i| kind(i, "DownBlock2D", "CrossAttnDownBlock2D"));
        let up = (0..count).rev().map(|i| kind(i, "UpBlock2D", "CrossAttnUpBlock2D"));
        let divides = |groups: &usize| self.channels.iter().all(|channels| channels % groups == 0);
        let groups = (1..=32).rev().find(divides).unwrap_or(1);
        let space = data.latent_space();
        let (height, width) = (data.size().0 / space.factor, data.size().1 / space.factor);
        let text_width = self.text_encoder_fields(data)?.get("hidden_size").cloned().unwrap_or(512.into());
        let fields = json!({
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": DIFFUSERS_VERSION,
            "act_fn": "silu",
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": self.text_heads,
            "attention_head_dim": self.heads,
            "block_out_channels": self.channels,
            "cross_attention_dim": text_width,
            "down_block_types": down.collect::<Vec<_>>(),
            "in_channels": space.channels,
            "layers_per_block": self.blocks,
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "norm_num_groups": groups,
            "out_channels": space.channels,
            "resnet_time_scale_shift": "scale_shift",
            "sample_size": if height == width { json!(height) } else { json!([height, width]) },
            "up_block_types": up.collect::<Vec<_>>(),
        });
        Ok(fields.as_object().cloned().unwrap_or_default())
    }

    /// `text_encoder/config.json`: that of the model that it is taken from, the given one, or one made of width and layers.
    ///
    /// # Errors
    /// If it cannot be read or made.
    pub(super) fn text_encoder_fields(&self, data: &LatentTrainingData) -> Result<Map<String, Value>> {
        if let Some(text_encoder) = data.text_encoder() {
            return Ok(text_encoder.fields().fields().clone());
        }
        let tokenizer = Tokenizer::from_memory(data.tokenizer())?;
        if let Some(fields) = &self.text_config {
            return Ok(fields.clone());
        }
        let (width, heads) = (self.text_width, self.text_heads);
        if width == 0 || heads == 0 || !width.is_multiple_of(heads) {
            let fix = format!("it must divide `text_width`, which is {width}, and neither can be 0");
            return Err(Error::invalid("`text_heads`", heads, fix));
        }
        let (end, pad) = tokenizer.end_and_padding();
        let fields = json!({
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "bos_token_id": tokenizer.start(),
            "dtype": "float32",
            "eos_token_id": end,
            "hidden_act": "quick_gelu",
            "hidden_size": width,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 4 * width,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": tokenizer.max_length(),
            "model_type": "clip_text_model",
            "num_attention_heads": heads,
            "num_hidden_layers": self.text_layers,
            "pad_token_id": pad,
            "projection_dim": width,
            "vocab_size": tokenizer.vocabulary_size(),
        });
        Ok(fields.as_object().cloned().unwrap_or_default())
    }
}
