//! From a text to conditioning: tokens, weights in prompts, and what a model's text encoder is.

mod text_encoder;
mod tokenizer;
mod weighted;

pub use text_encoder::{Prompt, TextEncoder, TextNetwork};
pub use tokenizer::{Tokenizer, Tokens, clip_vocabulary, unpacked_merges};
pub use weighted::{Piece, WeightedChunk, parse_weights, weighted_chunks};
