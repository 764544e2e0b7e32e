//! The text encoder, as transformers' `CLIPTextModel` and `CLIPTextModelWithProjection` have it.

use super::encoder_layer::{ACTIVATIONS, EncoderLayer, LayerConfig, check_layers};
use crate::config::ConfigFields;
use crate::layers::{Activation, Embedding, LayerNorm, Linear, Weights};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Tensor};

/// `text_encoder/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipTextConfig {
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the perceptrons.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Length of the context in tokens.
    pub max_position_embeddings: usize,
    /// The perceptrons' activation.
    pub hidden_act: Activation,
    /// Epsilon of the normalisations.
    pub layer_norm_eps: f64,
    /// The token whose position is pooled; 2 stands, as in transformers, for the largest id.
    pub eos_token_id: u32,
    /// Width of the projected pooled output, if the checkpoint has a projection.
    pub projection_dim: usize,
}

impl ClipTextConfig {
    /// From the fields of a `config.json`; what concerns training or generation is passed over.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        fields.only("use_attention_mask", &[false.into()])?;
        let config = Self {
            vocab_size: fields.usize("vocab_size", 49408)?,
            hidden_size: fields.usize("hidden_size", 512)?,
            intermediate_size: fields.usize("intermediate_size", 2048)?,
            num_hidden_layers: fields.usize("num_hidden_layers", 12)?,
            num_attention_heads: fields.usize("num_attention_heads", 8)?,
            max_position_embeddings: fields.usize("max_position_embeddings", 77)?,
            hidden_act: fields.choice("hidden_act", &ACTIVATIONS, Activation::QuickGelu)?,
            layer_norm_eps: fields.f64("layer_norm_eps", 1e-5)?,
            eos_token_id: fields.usize("eos_token_id", 49407)? as u32,
            projection_dim: fields.usize("projection_dim", 512)?,
        };
        check_layers(fields, &config.layer())?;
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
            causal: true,
        }
    }
}

/// What the encoder gives for a batch of token sequences.
#[derive(Debug, Clone)]
pub struct ClipTextOutput {
    /// The embeddings and the state after each layer, `num_hidden_layers + 1` of `[batch, tokens, hidden]`.
    pub hidden_states: Vec<Tensor>,
    /// The last state after the final norm, `[batch, tokens, hidden]`.
    pub last_hidden_state: Tensor,
    /// `last_hidden_state` at the end-of-text token, `[batch, hidden]`.
    pub pooled: Tensor,
    /// The pooled output projected, `[batch, projection_dim]`, if the checkpoint has the projection.
    pub text_embeds: Option<Tensor>,
}

/// The encoder.
#[derive(Debug)]
pub struct ClipTextModel {
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
}

impl ClipTextModel {
    /// Builds the encoder. Names may start with `text_model.`, as checkpoints have it, or not.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: ClipTextConfig) -> Result<Self> {
        let bare = weights.contains("embeddings.token_embedding.weight");
        let text = if bare { weights.clone() } else { weights.at("text_model") };
        let embeddings = text.at("embeddings");
        let projection = weights.contains("text_projection.weight").then(|| {
            Linear::with_bias(&weights.at("text_projection"), config.hidden_size, config.projection_dim, false)
        });
        Ok(Self {
            token_embedding: Embedding::new(&embeddings.at("token_embedding"), config.vocab_size, config.hidden_size)?,
            position_embedding: Embedding::new(
                &embeddings.at("position_embedding"),
                config.max_position_embeddings,
                config.hidden_size,
            )?,
            layers: EncoderLayer::all(&text.at("encoder.layers"), &config.layer())?,
            final_layer_norm: LayerNorm::new(&text.at("final_layer_norm"), config.hidden_size, config.layer_norm_eps)?,
            text_projection: projection.transpose()?,
            config,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// The embeddings of its own tokens, `[vocab_size, hidden]`, without those that were added.
    pub fn token_embeddings(&self) -> &Tensor {
        self.token_embedding.table()
    }

    /// Gives the tokens from id `first` on these embeddings, those of a textual inversion. What the model says is differentiable in
    /// them, and follows them where they are a variable.
    ///
    /// # Shapes
    /// `vectors`: `[count, hidden]`.
    ///
    /// # Errors
    /// If the vocabulary ends before `first`, or the width is another.
    pub fn add_embeddings(&mut self, first: u32, vectors: &Tensor) -> Result<()> {
        if first as usize > self.config.vocab_size {
            let fix = format!("the text encoder knows {} tokens; take its own tokenizer", self.config.vocab_size);
            return Err(Error::unusable(ErrorKind::Model, "the id of a new token", first, fix));
        }
        self.token_embedding = self.token_embedding.with_rows(first as usize, vectors)?;
        self.config.vocab_size = self.token_embedding.rows();
        Ok(())
    }

    /// # Shapes
    /// `ids`: `[batch, tokens]` of u32.
    ///
    /// # Errors
    /// If there are more tokens than the context has, or an id is not in the vocabulary.
    pub fn forward(&self, ids: &Tensor) -> Result<ClipTextOutput> {
        let (_, tokens) = ids.dims2()?;
        let rows = ids.to_dtype(DType::U32)?.to_vec2::<u32>()?;
        if tokens > self.config.max_position_embeddings {
            let context = self.config.max_position_embeddings;
            return Err(Error::invalid("the number of tokens", tokens, format!("the text encoder takes {context}")));
        }
        if let Some(id) = rows.iter().flatten().find(|&&id| id as usize >= self.config.vocab_size) {
            let fix =
                format!("the text encoder knows {} tokens; take the tokenizer it came with", self.config.vocab_size);
            return Err(Error::unusable(ErrorKind::Model, "a token id", id, fix));
        }

        let positions = self.position_embedding.first(tokens)?;
        let mut hidden_states = vec![self.token_embedding.forward(ids)?.broadcast_add(&positions)?];
        for layer in &self.layers {
            let next = layer.forward(&hidden_states[hidden_states.len() - 1])?;
            hidden_states.push(next);
        }
        let last_hidden_state = self.skipped(&hidden_states, 0)?;
        let ends = rows.iter().map(|row| self.end_of_text(row)).enumerate();
        let pooled: Vec<_> = ends.map(|(i, end)| last_hidden_state.get(i)?.get(end)).collect::<Result<_, _>>()?;
        let pooled = Tensor::stack(&pooled, 0)?;
        let text_embeds = self.text_projection.as_ref().map(|projection| projection.forward(&pooled)).transpose()?;
        Ok(ClipTextOutput { hidden_states, last_hidden_state, pooled, text_embeds })
    }

    /// The state `skip` layers before the last, through the final norm: diffusers' `clip_skip`.
    ///
    /// # Errors
    /// If there are not so many layers.
    pub fn skipped(&self, hidden_states: &[Tensor], skip: usize) -> Result<Tensor> {
        let state = hidden_states.len().checked_sub(skip + 1).map(|i| &hidden_states[i]).ok_or_else(|| {
            Error::invalid("clip_skip", skip, format!("the text encoder has {} layers", self.config.num_hidden_layers))
        })?;
        self.final_layer_norm.forward(state)
    }

    /// Where a row is pooled. Old configurations say end-of-text is 2, which it never was: then, as in
    /// transformers, it is the largest id.
    fn end_of_text(&self, ids: &[u32]) -> usize {
        let wanted = match self.config.eos_token_id {
            2 => ids.iter().copied().max().unwrap_or(0),
            id => id,
        };
        ids.iter().position(|&id| id == wanted).unwrap_or(0)
    }
}
