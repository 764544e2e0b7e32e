//! Prompt to conditioning.

use crate::request::Settings;
use candle_core::Tensor;
use tweedie::conditioning::{Conditioning, Tokenizer};
use tweedie::models::ClipTextModel;
use tweedie::{Device, Result};

/// The tokenizer and the text encoder.
#[derive(Debug)]
pub struct Encode {
    tokenizer: Tokenizer,
    text_encoder: ClipTextModel,
    device: Device,
}

/// The conditioning of one image.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Of the prompt.
    pub positive: Conditioning,
    /// Of the negative prompt, if there is guidance.
    pub negative: Option<Conditioning>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Encode {
    /// From its parts.
    pub fn new(tokenizer: Tokenizer, text_encoder: ClipTextModel, device: Device) -> Self {
        Self { tokenizer, text_encoder, device }
    }

    /// The text encoder.
    pub fn text_encoder(&self) -> &ClipTextModel {
        &self.text_encoder
    }

    /// Encodes a request's texts, each once.
    ///
    /// # Errors
    /// If a text cannot be tokenized, or tokenizer and text encoder do not belong together.
    pub fn run(&self, settings: &Settings) -> Result<Encoded> {
        let mut warnings = Vec::new();
        let positive = self.text(&settings.prompt, "prompt", settings.clip_skip, &mut warnings)?;
        let negative = settings
            .guided()
            .then(|| self.text(&settings.negative_prompt, "negative prompt", 0, &mut warnings))
            .transpose()?;
        Ok(Encoded { positive, negative, warnings })
    }

    fn text(&self, text: &str, what: &str, clip_skip: usize, warnings: &mut Vec<String>) -> Result<Conditioning> {
        let tokens = self.tokenizer.encode(text)?;
        if let Some(cut) = &tokens.cut {
            let room = self.tokenizer.max_length() - 2;
            warnings.push(format!("the {what} is longer than {room} tokens; this part has no effect: {cut:?}"));
        }
        let ids = Tensor::from_vec(tokens.ids, (1, self.tokenizer.max_length()), &self.device)?;
        let output = self.text_encoder.forward(&ids)?;
        let hidden = match clip_skip {
            0 => output.last_hidden_state,
            skip => self.text_encoder.skipped(&output.hidden_states, skip)?,
        };
        Ok(Conditioning { text: hidden, pooled: Some(output.pooled), time_ids: None })
    }
}
