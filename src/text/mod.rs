//! From a text to conditioning: tokens, weights in prompts, and what a model's text encoder is.
//!
//! # Examples
//!
//! ```
//! use tweedie::text::{Piece, Tokenizer, parse_weights, train_tokenizer};
//!
//! let tokenizer = Tokenizer::from_memory(&train_tokenizer(["a red fox", "a red panda"].into_iter(), 100, 8)?)?;
//! let tokens = tokenizer.encode("a red fox")?;
//! assert_eq!((tokens.ids.len(), tokens.ids[0], tokens.cut), (8, tokenizer.start(), None));
//!
//! let pieces = parse_weights("a (fluffy:1.3) fox");
//! assert_eq!(pieces[1], Piece::Text("fluffy".into(), 1.3));
//! # Ok::<_, tweedie::Error>(())
//! ```

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
