//! Prompt to conditioning.

use crate::requests::text_to_image::PromptSyntax;
use crate::settings::Settings;
use crate::xl::Sizes;
use candle_core::Tensor;
use tweedie::conditioning::{Conditioning, Tokenizer, WeightedChunk, weighted_chunks};
use tweedie::models::{ClipTextModel, ClipTextOutput};
use tweedie::{Device, Error, Result};

/// A text encoder and the tokenizer that it was trained with.
#[derive(Debug)]
pub struct TextEncoder {
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// Ids to states.
    pub model: ClipTextModel,
}

impl TextEncoder {
    /// One chunk; what finds no room in it is named in a warning.
    fn plain(&self, text: &str, what: &str, warnings: &mut Vec<String>) -> Result<WeightedChunk> {
        let tokens = self.tokenizer.encode(text)?;
        if let Some(cut) = &tokens.cut {
            let room = self.tokenizer.max_length() - 2;
            let warning = format!(
                "the {what} is longer than {room} tokens; this part has no effect: {cut:?} \
                 (--prompt-syntax weighted takes prompts of any length)"
            );
            // Two encoders that read the same text cut it alike.
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        Ok(WeightedChunk { ids: tokens.ids, weights: vec![1.0; self.tokenizer.max_length()] })
    }

    fn empty(&self) -> WeightedChunk {
        WeightedChunk { ids: self.tokenizer.padded(&[]), weights: vec![1.0; self.tokenizer.max_length()] }
    }
}

/// The text encoders: one, or the two of Stable Diffusion XL (of which its refiner has the second alone).
#[derive(Debug)]
pub struct Encode {
    encoders: Vec<TextEncoder>,
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

/// For each encoder, a text's chunks.
type Chunks = Vec<Vec<WeightedChunk>>;

impl Encode {
    /// From its parts, at least one.
    pub fn new(encoders: Vec<TextEncoder>, device: Device) -> Self {
        Self { encoders, device }
    }

    /// The text encoders.
    pub fn encoders(&self) -> &[TextEncoder] {
        &self.encoders
    }

    /// Encodes a request's texts, each once.
    ///
    /// # Errors
    /// If a text cannot be tokenized, or tokenizer and text encoder do not belong together.
    pub fn run(&self, settings: &Settings) -> Result<Encoded> {
        let mut warnings = Vec::new();
        let xl = settings.xl.as_ref();
        let negative_prompt = settings.request.negative_prompt.as_deref().unwrap_or_default();
        let second = |text: fn(&crate::XlSettings) -> &String| xl.map_or("", |xl| text(xl));
        let prompts = [&settings.request.prompt, second(|xl| &xl.prompt_2)];
        let negative_prompts = [negative_prompt, second(|xl| &xl.negative_prompt_2)];
        let zero_negative = xl.is_some_and(|xl| xl.zero_negative);

        let mut chunks = vec![self.chunks(prompts, "prompt", settings.request.prompt_syntax, &mut warnings)?];
        if settings.guided() && !zero_negative {
            let syntax = settings.request.prompt_syntax;
            chunks.push(self.chunks(negative_prompts, "negative prompt", syntax, &mut warnings)?);
        }
        // Encoders stand side by side and both branches run in one batch, so a shorter text gets empty chunks.
        let longest = chunks.iter().flatten().map(Vec::len).max().unwrap_or(1);
        for (chunks, encoder) in chunks.iter_mut().flat_map(|chunks| chunks.iter_mut().zip(&self.encoders)) {
            chunks.resize(longest, encoder.empty());
        }

        let mut positive = self.conditioning(&chunks[0], settings.request.clip_skip, xl.is_some())?;
        let mut negative = match chunks.get(1) {
            Some(chunks) => Some(self.conditioning(chunks, 0, xl.is_some())?),
            None => settings.guided().then(|| zeros(&positive)).transpose()?,
        };
        if settings.guidance_is_embedded {
            let guidance = (settings.guidance_scale - 1.0) as f32;
            positive.guidance = Some(Tensor::from_slice(&[guidance], 1, &self.device)?);
        }
        if let Some(xl) = xl {
            positive.time_ids = Some(self.time_ids(&xl.sizes)?);
            if let Some(negative) = &mut negative {
                negative.time_ids = Some(self.time_ids(&xl.negative_sizes)?);
            }
        }
        Ok(Encoded { positive, negative, warnings })
    }

    /// The chunks of a text for each encoder; the second encoder reads the second text.
    fn chunks(&self, texts: [&str; 2], what: &str, syntax: PromptSyntax, warnings: &mut Vec<String>) -> Result<Chunks> {
        let each = self.encoders.iter().zip(texts).map(|(encoder, text)| match syntax {
            PromptSyntax::Plain => Ok(vec![encoder.plain(text, what, warnings)?]),
            PromptSyntax::Weighted => weighted_chunks(&encoder.tokenizer, text),
        });
        each.collect()
    }

    fn conditioning(&self, chunks: &Chunks, clip_skip: usize, penultimate: bool) -> Result<Conditioning> {
        let mut beside = Vec::with_capacity(self.encoders.len());
        let mut pooled = None;
        for (encoder, chunks) in self.encoders.iter().zip(chunks) {
            let mut hidden = Vec::with_capacity(chunks.len());
            let mut first = None;
            for chunk in chunks {
                let ids = Tensor::from_slice(&chunk.ids, (1, chunk.ids.len()), &self.device)?;
                let output = encoder.model.forward(&ids)?;
                hidden.push(chunk.apply(&state(&encoder.model, &output, clip_skip, penultimate)?)?);
                first.get_or_insert(if penultimate { output.text_embeds } else { Some(output.pooled) });
            }
            beside.push(Tensor::cat(&hidden, 1)?);
            // Of two encoders the second gives the pooled text.
            pooled = first.flatten();
        }
        Ok(Conditioning { pooled, ..Conditioning::text(Tensor::cat(&beside, 2)?) })
    }

    fn time_ids(&self, sizes: &Sizes) -> Result<Tensor> {
        let ids = sizes.time_ids();
        Ok(Tensor::from_slice(&ids, (1, ids.len()), &self.device)?)
    }
}

/// The state that the network sees. Stable Diffusion 1.x and 2.x take the last one through the final norm; XL the last
/// but one as it is. `clip_skip` counts back from there.
fn state(model: &ClipTextModel, output: &ClipTextOutput, clip_skip: usize, penultimate: bool) -> Result<Tensor> {
    match (penultimate, clip_skip) {
        (false, 0) => Ok(output.last_hidden_state.clone()),
        (false, skip) => model.skipped(&output.hidden_states, skip),
        (true, skip) => {
            let states = &output.hidden_states;
            let wanted = states.len().checked_sub(skip + 2).map(|i| states[i].clone());
            wanted.ok_or_else(|| {
                Error::invalid("clip_skip", skip, format!("the text encoder has {} layers", states.len() - 1))
            })
        }
    }
}

/// The conditioning that Stable Diffusion XL was trained with where a picture had no caption.
fn zeros(like: &Conditioning) -> Result<Conditioning> {
    let zeros = |x: &Option<Tensor>| x.as_ref().map(Tensor::zeros_like).transpose();
    Ok(Conditioning { text: zeros(&like.text)?, pooled: zeros(&like.pooled)?, ..Conditioning::default() })
}
