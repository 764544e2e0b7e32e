//! Pictures: from the decoder's values to bytes, PNG files with their settings inside, and plots.

mod picture;
mod plot;
mod png_file;

pub use picture::Picture;
pub use plot::{Plot, Series};
pub use png_file::{TextChunk, encode_png, read_png_text};
