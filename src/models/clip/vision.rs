//! The picture encoder, a vision transformer (Dosovitskiy et al. 2020), as transformers' `CLIPVisionModelWithProjection` has it.

use super::encoder_layer::{ACTIVATIONS, EncoderLayer, LayerConfig, check_layers};
use crate::config::ConfigFields;
use crate::layers::{Activation, Embedding, LayerNorm, Linear, Weights};
use crate::{Error, Result};
use candle_core::Tensor;

/// `vision_config` in the `config.json` of a CLIP model.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipVisionConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the perceptrons.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Channels of pictures.
    pub num_channels: usize,
    /// Side of pictures in pixels.
    pub image_size: usize,
    /// Side of a patch, of which each becomes a token.
    pub patch_size: usize,
    /// The perceptrons' activation.
    pub hidden_act: Activation,
    /// Epsilon of the normalisations.
    pub layer_norm_eps: f64,
    /// Width of the output.
    pub projection_dim: usize,
}

impl ClipVisionConfig {
    /// From the fields of `vision_config`; `projection_dim` is the whole model's, which counts.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_fields(fields: &ConfigFields, projection_dim: usize) -> Result<Self> {
        let config = Self {
            hidden_size: fields.usize("hidden_size", 768)?,
            intermediate_size: fields.usize("intermediate_size", 3072)?,
            num_hidden_layers: fields.usize("num_hidden_layers", 12)?,
            num_attention_heads: fields.usize("num_attention_heads", 12)?,
            num_channels: fields.usize("num_channels", 3)?,
            image_size: fields.usize("image_size", 224)?,
            patch_size: fields.usize("patch_size", 32)?,
            hidden_act: fields.choice("hidden_act", &ACTIVATIONS, Activation::QuickGelu)?,
            layer_norm_eps: fields.f64("layer_norm_eps", 1e-5)?,
            projection_dim,
        };
        check_layers(fields, &config.layer())?;
        if config.patch_size == 0 || config.patch_size > config.image_size || config.image_size > LARGEST_SIDE {
            let expected =
                format!("it must be from 1 to image_size, {}, and that {LARGEST_SIDE} at most", config.image_size);
            return Err(fields.wrong("patch_size", expected));
        }
        if config.num_channels != 3 {
            return Err(fields.wrong("num_channels", "it must be 3: pictures are red, green and blue"));
        }
        Ok(config)
    }

    fn layer(&self) -> LayerConfig {
        LayerConfig {
            layers: self.num_hidden_layers,
            width: self.hidden_size,
            inner_width: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            epsilon: self.layer_norm_eps,
            causal: false,
        }
    }
}

/// More than any published model has.
const LARGEST_SIDE: usize = 4096;

/// The encoder.
#[derive(Debug)]
pub struct ClipVisionModel {
    class_embedding: Tensor,
    /// `[channels * patch * patch, width]`: a convolution whose steps are as wide as its kernel.
    patch_embedding: Tensor,
    position_embedding: Embedding,
    first_norm: LayerNorm,
    layers: Vec<EncoderLayer>,
    last_norm: LayerNorm,
    projection: Linear,
    config: ClipVisionConfig,
}

impl ClipVisionModel {
    /// Builds the encoder, under the names of a whole CLIP model.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: ClipVisionConfig) -> Result<Self> {
        let vision = weights.at("vision_model");
        let embeddings = vision.at("embeddings");
        let ClipVisionConfig { hidden_size: width, patch_size: patch, layer_norm_eps: epsilon, .. } = config;
        let patches = (config.image_size / patch).pow(2);
        let kernel = embeddings.at("patch_embedding").tensor("weight", &[width, config.num_channels, patch, patch])?;
        Ok(Self {
            class_embedding: embeddings.tensor("class_embedding", &[width])?,
            patch_embedding: kernel.flatten_from(1)?.t()?.contiguous()?,
            position_embedding: Embedding::new(&embeddings.at("position_embedding"), patches + 1, width)?,
            // The name has a slip of the pen that all checkpoints keep.
            first_norm: LayerNorm::new(&vision.at("pre_layrnorm"), width, epsilon)?,
            layers: EncoderLayer::all(&vision.at("encoder.layers"), &config.layer())?,
            last_norm: LayerNorm::new(&vision.at("post_layernorm"), width, epsilon)?,
            projection: Linear::with_bias(&weights.at("visual_projection"), width, config.projection_dim, false)?,
            config,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// What pictures are like, in the space of texts.
    ///
    /// # Shapes
    /// `pictures`: `[batch, 3, image_size, image_size]`, normalised; the result: `[batch, projection_dim]`.
    ///
    /// # Errors
    /// If they have another shape.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let ClipVisionConfig { hidden_size: width, image_size: side, patch_size: patch, num_channels, .. } =
            self.config;
        let batch = match *pictures.dims() {
            [batch, channels, height, width] if (channels, height, width) == (num_channels, side, side) => batch,
            _ => {
                let fix = format!("the picture encoder takes [batch, {num_channels}, {side}, {side}]");
                return Err(Error::invalid("the shape of pictures", format!("{:?}", pictures.dims()), fix));
            }
        };
        // Patches in rows, each as [channels, patch, patch]; pixels beyond the last whole patch are left out.
        let count = side / patch;
        let whole = pictures.narrow(2, 0, count * patch)?.narrow(3, 0, count * patch)?;
        let patches = whole.reshape((batch, num_channels, count, patch, count, patch))?.permute((0, 2, 4, 1, 3, 5))?;
        let patches = patches.contiguous()?.reshape((batch * count * count, num_channels * patch * patch))?;
        let patches = patches.matmul(&self.patch_embedding)?.reshape((batch, count * count, width))?;
        let class = self.class_embedding.broadcast_as((batch, 1, width))?.contiguous()?;
        let tokens = Tensor::cat(&[class, patches], 1)?;
        let positions = self.position_embedding.first(count * count + 1)?;
        let mut x = self.first_norm.forward(&tokens.broadcast_add(&positions)?)?;
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        // The class token has seen all patches.
        let class = x.narrow(1, 0, 1)?.contiguous()?.reshape((batch, width))?;
        self.projection.forward(&self.last_norm.forward(&class)?)
    }
}
