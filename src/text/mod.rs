//! From a text to conditioning: tokens, weights in prompts, and what a model's text encoder is.

mod byte_pair_training;
mod byte_pairs;
mod foreign_syntax;
mod known_words;
mod text_encoder;
mod tokenizer;
mod tokenizer_files;
mod tokenizer_json;
mod weighted;

pub use byte_pair_training::train_tokenizer;
pub use foreign_syntax::ForeignSyntax;
pub use known_words::{KnownWords, UnknownWord};
pub use text_encoder::{Prompt, TextEncoder, TextNetwork};
pub use tokenizer::{Tokenizer, Tokens, clip_vocabulary, unpacked_merges};
pub use tokenizer_files::TokenizerFiles;
pub use weighted::{Piece, WeightedChunk, parse_weights, weighted_chunks};
