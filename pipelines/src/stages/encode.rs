//! Prompt to conditioning.

use crate::adapters::has_word;
use crate::requests::text_to_image::PromptSyntax;
use crate::settings::Settings;
use crate::xl::Sizes;
use candle_core::Tensor;
use std::collections::BTreeSet;
use tweedie::adapters::TextualInversion;
use tweedie::conditioning::Conditioning;
use tweedie::text::{ForeignSyntax, Prompt, TextEncoder};
use tweedie::{Device, Error, ErrorKind, Result};

/// The text encoder.
#[derive(Debug)]
pub struct Encode {
    text_encoder: Box<dyn TextEncoder>,
    device: Device,
    /// Words that nobody asked for, which may be in no prompt.
    offered: BTreeSet<String>,
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
    /// From its text encoder.
    pub fn new(text_encoder: Box<dyn TextEncoder>, device: Device) -> Self {
        Self { text_encoder, device, offered: BTreeSet::new() }
    }

    /// The same, which says nothing of those of these embeddings that came with LoRAs and are in no prompt.
    #[must_use]
    pub fn offering(self, embeddings: &[TextualInversion]) -> Self {
        let bundled = embeddings.iter().filter(|embedding| embedding.is_bundled());
        Self { offered: bundled.map(|embedding| embedding.token().to_owned()).collect(), ..self }
    }

    /// The text encoder.
    pub fn text_encoder(&self) -> &dyn TextEncoder {
        self.text_encoder.as_ref()
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
        let positive = Prompt {
            texts: [&settings.request.prompt, second(|xl| &xl.prompt_2)],
            what: "prompt",
            clip_skip: settings.request.clip_skip,
        };
        let negative = Prompt {
            texts: [negative_prompt, second(|xl| &xl.negative_prompt_2)],
            what: "negative prompt",
            clip_skip: 0,
        };
        let zero_negative = xl.is_some_and(|xl| xl.zero_negative);
        let prompts = if settings.guided() && !zero_negative { vec![positive, negative] } else { vec![positive] };
        let weighted = settings.request.prompt_syntax == PromptSyntax::Weighted;
        warn_of_foreign_syntax(&prompts, weighted, &mut warnings);
        let unused = self.text_encoder.unused_tokens(&prompts, weighted)?;
        for token in unused.into_iter().filter(|token| !self.offered.contains(token)) {
            let unread = !settings.guided() && has_word(negative_prompt, &token);
            let why = if unread { " that has an effect, as there is no guidance" } else { "" };
            warnings.push(format!(
                "the embedding {token:?} has no effect: the word is in no prompt{why}; put it where it is meant, or give the \
                 `embedding` another word"
            ));
        }
        let mut each = self.text_encoder.encode(&prompts, weighted, &mut warnings)?.into_iter();
        let (Some(mut positive), negative) = (each.next(), each.next()) else {
            return Err(Error::unusable(ErrorKind::Model, "the conditioning of the text encoder", "empty", NOTHING));
        };
        let mut negative = match negative {
            None if settings.guided() => Some(positive.without_text()?),
            negative => negative,
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

    fn time_ids(&self, sizes: &Sizes) -> Result<Tensor> {
        let ids = sizes.time_ids();
        Ok(Tensor::from_slice(&ids, (1, ids.len()), &self.device)?)
    }
}

/// Names what A1111's web UI would act on and is read as words: tags of networks in any prompt, weights in those that are read
/// as plain text, the rest in those that are otherwise read as it reads them.
fn warn_of_foreign_syntax(prompts: &[Prompt<'_>], weighted: bool, warnings: &mut Vec<String>) {
    for (prompt, text) in prompts.iter().flat_map(|prompt| prompt.texts.map(|text| (prompt, text))) {
        let ForeignSyntax { networks, schedules, weights } = ForeignSyntax::of(text);
        let of_loras = if networks.is_empty() { "" } else { "; LoRAs are given with `lora`" };
        let found: Vec<String> = networks.into_iter().chain(schedules.into_iter().filter(|_| weighted)).collect();
        let warning = format!(
            "the {} has {}, which A1111's web UI acts on and which are plain words here{of_loras}",
            prompt.what,
            found.join(", ")
        );
        let unread = weights.filter(|_| !weighted).map(|example| {
            format!(
                "the {} has weights in brackets, such as {example}, which are read as words; with `prompt_syntax` weighted they \
                 are weights",
                prompt.what
            )
        });
        // Both text encoders mostly read the same.
        for warning in (!found.is_empty()).then_some(warning).into_iter().chain(unread) {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
    }
}

/// What is wrong with a text encoder that says nothing.
const NOTHING: &str = "it gives one for each text; this is a fault of the model's family";
