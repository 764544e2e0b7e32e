//! CLIP text encoders side by side, as Stable Diffusion has one and Stable Diffusion XL two.

use super::{Component, Loader};
use crate::checkpoints::ComponentKind;
use crate::conditioning::Conditioning;
use crate::models::{ClipTextConfig, ClipTextModel, ClipTextOutput};
use crate::text::{
    KnownWords, Piece, Prompt, TextEncoder, TextNetwork, Tokenizer, UnknownWord, WeightedChunk, parse_weights,
    weighted_chunks,
};
use crate::{Device, Error, Result};
use candle_core::Tensor;
use std::collections::BTreeSet;

/// Which states of its text encoders a model's network sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClipStates {
    /// The last one through the final norm, and the pooled text as it is: Stable Diffusion 1.x and 2.x.
    Last,
    /// The last one but one as it is, and the projected pooled text: Stable Diffusion XL.
    LastButOne,
}

/// Text encoders, at least one, and how what they say is joined.
#[derive(Debug)]
pub(super) struct ClipEncoders {
    encoders: Vec<ClipEncoder>,
    states: ClipStates,
    device: Device,
    /// Tokens that were added.
    added: Vec<String>,
}

/// A text encoder and the tokenizer that it was trained with.
#[derive(Debug)]
struct ClipEncoder {
    tokenizer: Tokenizer,
    model: ClipTextModel,
}

/// For each encoder, a text's chunks.
type Chunks = Vec<Vec<WeightedChunk>>;

impl ClipEncoders {
    /// Loads those among a model's components, and gives the names of their files.
    pub fn load(loader: &Loader<'_>, components: &[Component], states: ClipStates) -> Result<(Self, Vec<String>)> {
        let (mut encoders, mut names) = (Vec::new(), Vec::new());
        for component in components.iter().filter(|component| component.kind == ComponentKind::TextEncoder) {
            let tokenizer = Tokenizer::from_files(loader.files, component.tokenizer.unwrap_or("tokenizer"))?;
            let config = ClipTextConfig::from_fields(&loader.files.config(component.folder, "config.json")?)?;
            let (model, files) = loader.load(component.folder, &[], |weights| ClipTextModel::new(weights, config))?;
            encoders.push(ClipEncoder { tokenizer, model });
            names.extend(files);
        }
        Ok((Self { encoders, states, device: loader.device.clone(), added: Vec::new() }, names))
    }

    /// The chunks of a text for each encoder; the second encoder reads the second text.
    fn chunks(&self, prompt: &Prompt<'_>, weighted: bool, warnings: &mut Vec<String>) -> Result<Chunks> {
        let each = self.encoders.iter().zip(prompt.texts).map(|(encoder, text)| {
            encoder.warn_of_unknown_words(text, weighted, prompt.what, warnings);
            match weighted {
                false => Ok(vec![encoder.plain(text, prompt.what, warnings)?]),
                true => weighted_chunks(&encoder.tokenizer, text),
            }
        });
        each.collect()
    }

    fn conditioning(&self, chunks: &Chunks, clip_skip: usize) -> Result<Conditioning> {
        let mut beside = Vec::with_capacity(self.encoders.len());
        let mut pooled = None;
        for (encoder, chunks) in self.encoders.iter().zip(chunks) {
            let mut hidden = Vec::with_capacity(chunks.len());
            let mut first = None;
            for chunk in chunks {
                let ids = Tensor::from_slice(&chunk.ids, (1, chunk.ids.len()), &self.device)?;
                let output = encoder.model.forward(&ids)?;
                hidden.push(chunk.apply(&self.states.of(&encoder.model, &output, clip_skip)?)?);
                first.get_or_insert(self.states.pooled(output));
            }
            beside.push(Tensor::cat(&hidden, 1)?);
            // Of two encoders the second gives the pooled text.
            pooled = first.flatten();
        }
        Ok(Conditioning { pooled, ..Conditioning::text(Tensor::cat(&beside, 2)?) })
    }
}

impl TextEncoder for ClipEncoders {
    fn encode(&self, prompts: &[Prompt<'_>], weighted: bool, warnings: &mut Vec<String>) -> Result<Vec<Conditioning>> {
        let chunks = prompts.iter().map(|prompt| self.chunks(prompt, weighted, warnings));
        let mut chunks = chunks.collect::<Result<Vec<_>>>()?;
        // Encoders stand side by side and both branches run in one batch, so a shorter text gets empty chunks.
        let longest = chunks.iter().flatten().map(Vec::len).max().unwrap_or(1);
        for (chunks, encoder) in chunks.iter_mut().flat_map(|chunks| chunks.iter_mut().zip(&self.encoders)) {
            chunks.resize(longest, encoder.empty());
        }
        chunks.iter().zip(prompts).map(|(chunks, prompt)| self.conditioning(chunks, prompt.clip_skip)).collect()
    }

    fn skippable_layers(&self) -> usize {
        let layers = self.encoders.iter().map(|encoder| encoder.model.config().num_hidden_layers);
        layers.min().unwrap_or(0).saturating_sub(usize::from(self.states == ClipStates::LastButOne))
    }

    fn embedding_widths(&self) -> Vec<usize> {
        self.encoders.iter().map(|encoder| encoder.model.config().hidden_size).collect()
    }

    fn token_embeddings(&self) -> Vec<Tensor> {
        self.encoders.iter().map(|encoder| encoder.model.token_embeddings().clone()).collect()
    }

    fn token_ids(&self, text: &str) -> Result<Vec<Vec<u32>>> {
        let read = |encoder: &ClipEncoder| {
            let mut ids = encoder.tokenizer.encode_text(text)?;
            ids.truncate(encoder.tokenizer.max_length() - 2);
            Ok(ids)
        };
        self.encoders.iter().map(read).collect()
    }

    fn add_token(&mut self, token: &str, vectors: &[Tensor]) -> Result<()> {
        for (encoder, vectors) in self.encoders.iter_mut().zip(vectors) {
            let ids = encoder.tokenizer.add_token(token, vectors.dims()[0])?;
            encoder.model.add_embeddings(ids[0], vectors)?;
        }
        self.added.push(token.into());
        Ok(())
    }

    fn unused_tokens(&self, prompts: &[Prompt<'_>], weighted: bool) -> Result<Vec<String>> {
        let mut read = BTreeSet::new();
        for (encoder, text) in prompts.iter().flat_map(|prompt| self.encoders.iter().zip(prompt.texts)) {
            let pieces = if weighted { parse_weights(text) } else { vec![Piece::Text(text.into(), 1.0)] };
            for piece in pieces {
                let Piece::Text(text, _) = piece else { continue };
                let ids = encoder.tokenizer.encode_text(&text)?;
                let has = |token: &&String| encoder.tokenizer.token_id(token).is_some_and(|id| ids.contains(&id));
                read.extend(self.added.iter().filter(has));
            }
        }
        Ok(self.added.iter().filter(|token| !read.contains(token)).cloned().collect())
    }

    /// The last encoder's projection.
    fn pooled_width(&self) -> usize {
        self.encoders.last().map_or(0, |encoder| encoder.model.config().projection_dim)
    }
}

impl TextNetwork for ClipTextModel {
    fn max_length(&self) -> usize {
        self.config().max_position_embeddings
    }

    fn states(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(self.forward(ids)?.last_hidden_state)
    }
}

/// The network of a text encoder alone, without its tokenizer, from the folder `component` of a loader's files.
///
/// # Errors
/// If the weights cannot be had.
pub fn text_network(loader: &Loader<'_>, component: &'static str) -> Result<Box<dyn TextNetwork>> {
    let config = ClipTextConfig::from_fields(&loader.files.config(component, "config.json")?)?;
    Ok(Box::new(loader.load(component, &[], |weights| ClipTextModel::new(weights, config))?.0))
}

impl ClipEncoder {
    /// Names words that mean nothing to a model that was trained on few, with those that were perhaps meant.
    fn warn_of_unknown_words(&self, text: &str, weighted: bool, what: &str, warnings: &mut Vec<String>) {
        let unknown = if weighted {
            let pieces = parse_weights(text).into_iter().filter_map(|piece| match piece {
                Piece::Text(text, _) => Some(text),
                // It ends a chunk.
                Piece::Break => None,
            });
            self.tokenizer.unknown_words(&pieces.collect::<Vec<_>>().join(" "))
        } else {
            self.tokenizer.unknown_words(text)
        };
        if unknown.is_empty() {
            return;
        }
        let words: Vec<String> = unknown
            .iter()
            .map(|UnknownWord { word, nearest }| match &nearest[..] {
                [] => format!("{word:?}"),
                nearest => format!("{word:?} (perhaps {})", nearest.join(" or ")),
            })
            .collect();
        let count = self.tokenizer.known_words().map_or(0, KnownWords::len);
        warnings.push(format!(
            "the model was not trained on words of the {what}: {}; it knows {count} words (`tweedie model info` lists them, with an \
             example), and nothing else has an effect. Another model knows more: `model` sd15, or owner/name of one on the hub",
            words.join(", ")
        ));
    }

    /// One chunk; what finds no room in it is named in a warning.
    fn plain(&self, text: &str, what: &str, warnings: &mut Vec<String>) -> Result<WeightedChunk> {
        let tokens = self.tokenizer.encode(text)?;
        if let Some(cut) = &tokens.cut {
            let room = self.tokenizer.max_length() - 2;
            let warning = format!(
                "the {what} is longer than {room} tokens; this part has no effect: {cut:?} \
                 (`prompt_syntax` weighted takes prompts of any length)"
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

impl ClipStates {
    /// The state that the network sees; `clip_skip` counts back from there.
    fn of(self, model: &ClipTextModel, output: &ClipTextOutput, clip_skip: usize) -> Result<Tensor> {
        match (self, clip_skip) {
            (Self::Last, 0) => Ok(output.last_hidden_state.clone()),
            (Self::Last, skip) => model.skipped(&output.hidden_states, skip),
            (Self::LastButOne, skip) => {
                let states = &output.hidden_states;
                let wanted = states.len().checked_sub(skip + 2).map(|i| states[i].clone());
                wanted.ok_or_else(|| {
                    Error::invalid("clip_skip", skip, format!("the text encoder has {} layers", states.len() - 1))
                })
            }
        }
    }

    fn pooled(self, output: ClipTextOutput) -> Option<Tensor> {
        match self {
            Self::Last => Some(output.pooled),
            Self::LastButOne => output.text_embeds,
        }
    }
}
