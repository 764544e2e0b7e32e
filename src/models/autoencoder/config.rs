//! `vae/config.json`.

use super::LatentSpace;
use crate::Result;
use crate::config::{ConfigFields, DIFFUSERS_VERSION, MOST_RESOLUTIONS, are_widths};
use serde_json::{Map, Value, json};

/// The configuration of an [`super::AutoencoderKl`], in diffusers' terms.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoencoderConfig {
    /// Channels of pictures on the way in.
    pub in_channels: usize,
    /// Channels of pictures on the way out.
    pub out_channels: usize,
    /// Channels of latents.
    pub latent_channels: usize,
    /// Channels at each resolution, the highest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at each resolution; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// What the encoder's latents are multiplied by for the diffusion model.
    pub scaling_factor: f64,
    /// What later families subtract before; Stable Diffusion's pipelines leave it alone, so in diffusers.
    pub shift_factor: f64,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle blocks have attention.
    pub mid_block_add_attention: bool,
    /// Whether half precision is said to overflow, so that f32 is wanted.
    pub force_upcast: bool,
}

impl AutoencoderConfig {
    /// From the fields of a `config.json`, with diffusers' defaults for those that are absent.
    ///
    /// # Errors
    /// If a field has an unusable value, or an option is set that is not supported.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        fields.ignore(&["sample_size"]);
        fields.only("act_fn", &[json!("silu"), json!("swish")])?;
        fields.only("latents_mean", &[])?;
        fields.only("latents_std", &[])?;
        let down = fields.choices("down_block_types", &[("DownEncoderBlock2D", ())], &[()])?;
        let up = fields.choices("up_block_types", &[("UpDecoderBlock2D", ())], &[()])?;
        let config = Self {
            in_channels: fields.usize("in_channels", 3)?,
            out_channels: fields.usize("out_channels", 3)?,
            latent_channels: fields.usize("latent_channels", 4)?,
            block_out_channels: fields.usize_list("block_out_channels", &[64])?,
            layers_per_block: fields.usize("layers_per_block", 1)?,
            norm_num_groups: fields.usize("norm_num_groups", 32)?,
            scaling_factor: fields.f64("scaling_factor", 0.18215)?,
            shift_factor: fields.f64("shift_factor", 0.0)?,
            use_quant_conv: fields.bool("use_quant_conv", true)?,
            use_post_quant_conv: fields.bool("use_post_quant_conv", true)?,
            mid_block_add_attention: fields.bool("mid_block_add_attention", true)?,
            force_upcast: fields.bool("force_upcast", true)?,
        };
        fields.reject_unread()?;
        if !are_widths([&config.in_channels, &config.out_channels, &config.latent_channels]) {
            return Err(fields.wrong("latent_channels", "neither it nor in_channels and out_channels can be 0"));
        }
        if config.layers_per_block > 100 || config.block_out_channels.len() > MOST_RESOLUTIONS {
            return Err(fields.wrong("layers_per_block", "at most 100 layers at each of at most 16 resolutions"));
        }
        let blocks = config.block_out_channels.len();
        for (name, count) in [("down_block_types", down.len()), ("up_block_types", up.len())] {
            if count != blocks {
                let expected = format!("block_out_channels has {blocks} resolutions, so there must be {blocks} blocks");
                return Err(fields.wrong(name, expected));
            }
        }
        if config.norm_num_groups == 0 || config.block_out_channels.iter().any(|c| c % config.norm_num_groups != 0) {
            return Err(fields.wrong("norm_num_groups", "it must divide every one of block_out_channels"));
        }
        Ok(config)
    }

    /// The fields of a `config.json`, which [`Self::from_fields`] and diffusers read.
    pub fn to_fields(&self) -> Map<String, Value> {
        let blocks = |name: &'static str| vec![name; self.block_out_channels.len()];
        let fields = json!({
            "_class_name": "AutoencoderKL",
            "_diffusers_version": DIFFUSERS_VERSION,
            "act_fn": "silu",
            "block_out_channels": self.block_out_channels,
            "down_block_types": blocks("DownEncoderBlock2D"),
            "force_upcast": self.force_upcast,
            "in_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers_per_block,
            "mid_block_add_attention": self.mid_block_add_attention,
            "norm_num_groups": self.norm_num_groups,
            "out_channels": self.out_channels,
            "scaling_factor": self.scaling_factor,
            "shift_factor": (self.shift_factor != 0.0).then_some(self.shift_factor),
            "up_block_types": blocks("UpDecoderBlock2D"),
            "use_post_quant_conv": self.use_post_quant_conv,
            "use_quant_conv": self.use_quant_conv,
        });
        fields.as_object().cloned().unwrap_or_default()
    }

    /// What pictures are encoded to.
    pub fn latent_space(&self) -> LatentSpace {
        LatentSpace {
            channels: self.latent_channels,
            factor: 1 << (self.block_out_channels.len() - 1),
            scaling_factor: self.scaling_factor,
        }
    }
}
