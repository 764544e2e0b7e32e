//! From a prompt to what the network is conditioned on.

mod tokenizer;
mod weighted;

pub use tokenizer::{Tokenizer, Tokens};
pub use weighted::{Piece, WeightedChunk, parse_weights, weighted_chunks};

use crate::Result;
use candle_core::Tensor;

/// What a network is conditioned on, one row per image.
#[derive(Debug, Clone)]
pub struct Conditioning {
    /// The text: `[batch, tokens, width]`.
    pub text: Tensor,
    /// The pooled text of models that have it: `[batch, width]`.
    pub pooled: Option<Tensor>,
    /// Original size, crop and target size of models that have them: `[batch, 6]`.
    pub time_ids: Option<Tensor>,
}

impl Conditioning {
    /// Text alone, `[batch, tokens, width]`.
    pub fn text(text: Tensor) -> Self {
        Self { text, pooled: None, time_ids: None }
    }

    /// Several batches after one another.
    ///
    /// # Errors
    /// If their shapes differ, or some have parts that others lack.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let text: Vec<_> = parts.iter().map(|part| &part.text).collect();
        let optional = |get: fn(&Self) -> Option<&Tensor>| -> Result<Option<Tensor>> {
            let tensors: Vec<_> = parts.iter().filter_map(|part| get(part)).collect();
            Ok(if tensors.len() == parts.len() { Some(Tensor::cat(&tensors, 0)?) } else { None })
        };
        Ok(Self {
            text: Tensor::cat(&text, 0)?,
            pooled: optional(|part| part.pooled.as_ref())?,
            time_ids: optional(|part| part.time_ids.as_ref())?,
        })
    }

    /// A batch of one repeated for `batch` images.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn repeat(&self, batch: usize) -> Result<Self> {
        let each = vec![self; batch];
        Self::cat(&each)
    }
}
