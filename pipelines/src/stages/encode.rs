//! Prompt to conditioning.

use crate::request::{PromptSyntax, Settings};
use candle_core::Tensor;
use tweedie::conditioning::{Conditioning, Tokenizer, WeightedChunk, weighted_chunks};
use tweedie::models::ClipTextModel;
use tweedie::{Device, Error, Result};

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
        let prompts =
            [(&settings.prompt, "prompt", settings.clip_skip), (&settings.negative_prompt, "negative prompt", 0)];
        let wanted = if settings.guided() { 2 } else { 1 };
        let chunks = prompts[..wanted]
            .iter()
            .map(|(text, what, _)| match settings.prompt_syntax {
                PromptSyntax::Plain => Ok(vec![self.plain(text, what, &mut warnings)?]),
                PromptSyntax::Weighted => weighted_chunks(&self.tokenizer, text),
            })
            .collect::<Result<Vec<_>>>()?;
        // Both branches run in one batch, so the shorter prompt gets empty chunks.
        let longest = chunks.iter().map(Vec::len).max().unwrap_or(1);
        let empty = WeightedChunk { ids: self.tokenizer.padded(&[]), weights: vec![1.0; self.tokenizer.max_length()] };
        let mut encoded = chunks.into_iter().zip(prompts).map(|(mut chunks, (_, _, clip_skip))| {
            chunks.resize(longest, empty.clone());
            self.conditioning(&chunks, clip_skip)
        });
        let positive = encoded.next().transpose()?;
        let negative = encoded.next().transpose()?;
        let positive = positive.ok_or_else(|| Error::invalid("the prompt", "missing", "give one"))?;
        Ok(Encoded { positive, negative, warnings })
    }

    /// One chunk; what finds no room in it is named in a warning.
    fn plain(&self, text: &str, what: &str, warnings: &mut Vec<String>) -> Result<WeightedChunk> {
        let tokens = self.tokenizer.encode(text)?;
        if let Some(cut) = &tokens.cut {
            let room = self.tokenizer.max_length() - 2;
            warnings.push(format!(
                "the {what} is longer than {room} tokens; this part has no effect: {cut:?} \
                 (--prompt-syntax weighted takes prompts of any length)"
            ));
        }
        Ok(WeightedChunk { ids: tokens.ids, weights: vec![1.0; self.tokenizer.max_length()] })
    }

    fn conditioning(&self, chunks: &[WeightedChunk], clip_skip: usize) -> Result<Conditioning> {
        let mut hidden = Vec::with_capacity(chunks.len());
        let mut pooled = None;
        for chunk in chunks {
            let ids = Tensor::from_slice(&chunk.ids, (1, chunk.ids.len()), &self.device)?;
            let output = self.text_encoder.forward(&ids)?;
            let state = match clip_skip {
                0 => output.last_hidden_state,
                skip => self.text_encoder.skipped(&output.hidden_states, skip)?,
            };
            hidden.push(chunk.apply(&state)?);
            pooled.get_or_insert(output.pooled);
        }
        Ok(Conditioning { pooled, ..Conditioning::text(Tensor::cat(&hidden, 1)?) })
    }
}
