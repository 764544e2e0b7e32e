//! Pictures: from the decoder's values to bytes, and PNG files with their settings inside.

mod picture;
mod png_file;

pub use picture::Picture;
pub use png_file::{TextChunk, encode_png, read_png_text};
