//! What makes conditioning of texts.

use crate::Result;
use crate::conditioning::Conditioning;
use candle_core::Tensor;
use std::fmt;

/// A text, as a model's text encoder reads it.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// What the first of its networks reads, and what the second does if there are two.
    pub texts: [&'a str; 2],
    /// What messages call it: "prompt", "negative prompt".
    pub what: &'a str,
    /// How many of the last layers to skip.
    pub clip_skip: usize,
}

/// One of a text encoder's networks, without its tokenizer.
pub trait TextNetwork: fmt::Debug + Send + Sync {
    /// The most tokens of a text.
    fn max_length(&self) -> usize;

    /// The last state of each token.
    ///
    /// # Shapes
    /// `ids`: `[batch, tokens]` of u32; the result: `[batch, tokens, width]`.
    ///
    /// # Errors
    /// If there are more tokens than it takes, or an id is not in its vocabulary.
    fn states(&self, ids: &Tensor) -> Result<Tensor>;
}

/// Texts to conditioning: tokenizers and networks of a model, however many there are, and the rule by which their answers are
/// joined.
pub trait TextEncoder: fmt::Debug + Send + Sync {
    /// The conditioning of texts that are asked for in one batch, so all of one shape; what finds no room in it is named in a
    /// warning. With `weighted`, weights in brackets count and texts may be of any length: see [`super::parse_weights`].
    ///
    /// # Shapes
    /// Each: one row.
    ///
    /// # Errors
    /// If a text cannot be tokenized, tokenizer and network do not belong together, or as many layers cannot be skipped.
    fn encode(&self, prompts: &[Prompt<'_>], weighted: bool, warnings: &mut Vec<String>) -> Result<Vec<Conditioning>>;

    /// How many of the last layers can be skipped.
    fn skippable_layers(&self) -> usize {
        0
    }

    /// For each network the width of its token embeddings, by which a textual inversion tells what it was made for.
    fn embedding_widths(&self) -> Vec<usize>;

    /// For each network the embeddings of its own tokens, `[tokens, width]`, without those that were added; by default it has none,
    /// and nothing can be trained in their place.
    fn token_embeddings(&self) -> Vec<Tensor> {
        Vec::new()
    }

    /// For each network the ids of what it reads of a text, without what stands before and after it; by default of nothing.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    fn token_ids(&self, text: &str) -> Result<Vec<Vec<u32>>> {
        let _ = text;
        Ok(Vec::new())
    }

    /// Adds a token that stands for trained embeddings, `[vectors, width]` for each network; the widths are those of
    /// [`Self::embedding_widths`]. Conditioning is differentiable in them where they are variables, and follows them.
    ///
    /// # Errors
    /// If a tokenizer knows the token already.
    fn add_token(&mut self, token: &str, vectors: &[Tensor]) -> Result<()>;

    /// The tokens that were added and are in none of the texts, so that they have no effect on them; by default there are none.
    ///
    /// # Errors
    /// If a text cannot be tokenized.
    fn unused_tokens(&self, prompts: &[Prompt<'_>], weighted: bool) -> Result<Vec<String>> {
        let _ = (prompts, weighted);
        Ok(Vec::new())
    }

    /// The width of the pooled text; 0 if there is none.
    fn pooled_width(&self) -> usize {
        0
    }
}
