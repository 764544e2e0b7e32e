//! PNG with text chunks.

use super::Picture;
use crate::{Error, Result};
use std::path::Path;

/// A keyword and its text, stored in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk {
    /// The keyword, such as "parameters".
    pub keyword: String,
    /// The text.
    pub text: String,
}

impl TextChunk {
    /// A chunk from its parts.
    pub fn new(keyword: &str, text: impl Into<String>) -> Self {
        Self { keyword: keyword.into(), text: text.into() }
    }
}

/// A picture as the bytes of a PNG file, with text chunks. Text that is not Latin-1 goes into `iTXt`.
///
/// # Errors
/// If a keyword is not one that PNG allows.
pub fn encode_png(picture: &Picture, chunks: &[TextChunk]) -> Result<Vec<u8>> {
    let fail = |e: png::EncodingError| Error::invalid("the PNG", "unwritable", e.to_string());
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, picture.width() as u32, picture.height() as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for chunk in chunks {
        let latin = chunk.text.chars().all(|c| (c as u32) < 256 && c != '\0');
        if latin {
            encoder.add_text_chunk(chunk.keyword.clone(), chunk.text.clone()).map_err(fail)?;
        } else {
            encoder.add_itxt_chunk(chunk.keyword.clone(), chunk.text.replace('\0', "")).map_err(fail)?;
        }
    }
    let mut writer = encoder.write_header().map_err(fail)?;
    writer.write_image_data(picture.rgb()).map_err(fail)?;
    writer.finish().map_err(fail)?;
    Ok(bytes)
}

/// The text chunks of a PNG file.
///
/// # Errors
/// If the bytes are no PNG file; `path` is named in the message.
pub fn read_png_text(bytes: &[u8], path: &Path) -> Result<Vec<TextChunk>> {
    let fail = |e: png::DecodingError| Error::malformed("PNG file", path, e);
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().map_err(fail)?;
    reader.finish().map_err(fail)?;
    let info = reader.info();
    let mut chunks: Vec<_> =
        info.uncompressed_latin1_text.iter().map(|chunk| TextChunk::new(&chunk.keyword, &chunk.text)).collect();
    for chunk in &info.utf8_text {
        chunks.push(TextChunk::new(&chunk.keyword, chunk.get_text().map_err(fail)?));
    }
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_pixels_come_back() -> Result<()> {
        let picture = Picture::new(3, 2, (0..18).collect())?;
        let chunks =
            [TextChunk::new("parameters", "a fox\nSteps: 25"), TextChunk::new("tweedie", "日本 {\"seed\": 1}")];
        let bytes = encode_png(&picture, &chunks)?;
        assert_eq!(read_png_text(&bytes, Path::new("x.png"))?, chunks);
        let decoded = image::load_from_memory(&bytes).map(|image| image.to_rgb8().into_raw());
        assert_eq!(decoded.ok().as_deref(), Some(picture.rgb()));
        Ok(())
    }
}
