//! What both of CLIP's encoders are made of.

use crate::Result;
use crate::config::ConfigFields;
use crate::layers::{Activation, Backend, LayerNorm, Linear, Weights, scaled_dot_product_attention};
use candle_core::Tensor;

/// The perceptrons' activations by their names.
pub(super) const ACTIVATIONS: [(&str, Activation); 3] =
    [("quick_gelu", Activation::QuickGelu), ("gelu", Activation::Gelu), ("silu", Activation::Silu)];

/// More than any published encoder has.
const MOST_LAYERS: usize = 1000;

/// Sizes of an encoder's layers, which are alike.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerConfig {
    pub layers: usize,
    pub width: usize,
    pub inner_width: usize,
    pub heads: usize,
    pub activation: Activation,
    pub epsilon: f64,
    /// Whether a token sees those before it alone.
    pub causal: bool,
}

/// Whether layers of these sizes, which a `config.json` says, can be built.
pub(super) fn check_layers(fields: &ConfigFields, config: &LayerConfig) -> Result<()> {
    if config.heads == 0 || !config.width.is_multiple_of(config.heads) {
        return Err(fields.wrong("num_attention_heads", format!("it must divide hidden_size, {}", config.width)));
    }
    if config.layers > MOST_LAYERS {
        return Err(fields.wrong("num_hidden_layers", format!("it must be {MOST_LAYERS} at most")));
    }
    Ok(())
}

/// A transformer layer with the norm before each part.
#[derive(Debug)]
pub(super) struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    config: LayerConfig,
    backend: Backend,
}

impl EncoderLayer {
    /// All layers of an encoder.
    pub fn all(weights: &Weights<'_>, config: &LayerConfig) -> Result<Vec<Self>> {
        (0..config.layers).map(|i| Self::new(&weights.at(i), config)).collect()
    }

    fn new(weights: &Weights<'_>, config: &LayerConfig) -> Result<Self> {
        let width = config.width;
        let attention = weights.at("self_attn");
        Ok(Self {
            layer_norm1: LayerNorm::new(&weights.at("layer_norm1"), width, config.epsilon)?,
            q_proj: Linear::new(&attention.at("q_proj"), width, width)?,
            k_proj: Linear::new(&attention.at("k_proj"), width, width)?,
            v_proj: Linear::new(&attention.at("v_proj"), width, width)?,
            out_proj: Linear::new(&attention.at("out_proj"), width, width)?,
            layer_norm2: LayerNorm::new(&weights.at("layer_norm2"), width, config.epsilon)?,
            fc1: Linear::new(&weights.at("mlp.fc1"), width, config.inner_width)?,
            fc2: Linear::new(&weights.at("mlp.fc2"), config.inner_width, width)?,
            config: *config,
            backend: weights.backend(),
        })
    }

    /// # Shapes
    /// `x` and the result: `[batch, tokens, width]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let LayerConfig { heads, causal, activation, .. } = self.config;
        let h = self.layer_norm1.forward(x)?;
        let (q, k, v) = (self.q_proj.forward(&h)?, self.k_proj.forward(&h)?, self.v_proj.forward(&h)?);
        let mixed = scaled_dot_product_attention(&q, &k, &v, heads, causal, self.q_proj.products(), self.backend)?;
        let x = self.out_proj.forward_plus_residual(&mixed, x)?;
        let h = self.fc1.forward(&self.layer_norm2.forward(&x)?)?;
        self.fc2.forward_plus_residual(&activation.forward(&h)?, &x)
    }
}
