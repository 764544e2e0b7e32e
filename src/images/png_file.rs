//! PNG with text chunks.

use super::{ColorType, Photo, Picture, Samples};
use crate::files::guarded;
use crate::{Error, ErrorKind, Result};
use std::borrow::Cow;
use std::path::Path;

/// Bytes of all text of a file that is stored compressed; what this program writes is not.
const LONGEST_COMPRESSED_TEXT: usize = 16 << 20;

/// A keyword and its text, stored in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextChunk {
    /// The keyword, such as "parameters".
    pub keyword: String,
    /// The text.
    pub text: String,
}

impl TextChunk {
    /// The keyword of what A1111's web UI writes and reads.
    pub const PARAMETERS: &'static str = "parameters";
    /// The keyword of this program's own settings, as JSON.
    pub const SETTINGS: &'static str = "tweedie";

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
    let info = header(picture.width(), picture.height(), png::ColorType::Rgb, png::BitDepth::Eight);
    encode(info, picture.rgb(), chunks)
}

impl Photo {
    /// The photo as the bytes of a PNG file of its depth and colours, with its colour profile and with text chunks.
    ///
    /// # Errors
    /// If a keyword is not one that PNG allows.
    pub fn encode_png(&self, chunks: &[TextChunk]) -> Result<Vec<u8>> {
        let color = match self.color() {
            ColorType::Grey => png::ColorType::Grayscale,
            ColorType::GreyAlpha => png::ColorType::GrayscaleAlpha,
            ColorType::Rgb => png::ColorType::Rgb,
            ColorType::Rgba => png::ColorType::Rgba,
        };
        let with_depth = |depth| {
            let mut info = header(self.width(), self.height(), color, depth);
            info.icc_profile = self.icc_profile().map(Cow::Borrowed);
            info
        };
        match self.samples() {
            Samples::Eight(samples) => encode(with_depth(png::BitDepth::Eight), samples, chunks),
            Samples::Sixteen(samples) => {
                let bytes: Vec<u8> = samples.iter().flat_map(|sample| sample.to_be_bytes()).collect();
                encode(with_depth(png::BitDepth::Sixteen), &bytes, chunks)
            }
        }
    }
}

fn header<'a>(width: usize, height: usize, color_type: png::ColorType, bit_depth: png::BitDepth) -> png::Info<'a> {
    let mut info = png::Info::with_size(width as u32, height as u32);
    (info.color_type, info.bit_depth) = (color_type, bit_depth);
    info
}

fn encode(info: png::Info, samples: &[u8], chunks: &[TextChunk]) -> Result<Vec<u8>> {
    let fail = |e: png::EncodingError| Error::invalid("the PNG", "unwritable", e.to_string());
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::with_info(&mut bytes, info).map_err(fail)?;
    for chunk in chunks {
        let latin = chunk.text.chars().all(|c| (c as u32) < 256 && c != '\0');
        if latin {
            encoder.add_text_chunk(chunk.keyword.clone(), chunk.text.clone()).map_err(fail)?;
        } else {
            encoder.add_itxt_chunk(chunk.keyword.clone(), chunk.text.replace('\0', "")).map_err(fail)?;
        }
    }
    let mut writer = encoder.write_header().map_err(fail)?;
    writer.write_image_data(samples).map_err(fail)?;
    writer.finish().map_err(fail)?;
    Ok(bytes)
}

/// The text chunks of a PNG file: `tEXt` and `iTXt`.
///
/// # Errors
/// If the bytes are no PNG file, or its compressed text is longer than any that is read; `path` is named in the message.
pub fn read_png_text(bytes: &[u8], path: &Path) -> Result<Vec<TextChunk>> {
    let read = guarded(|| text_chunks(bytes)).and_then(|chunks| chunks.map_err(|error| error.to_string()));
    read.map_err(|reason| Error::malformed(ErrorKind::File, "PNG file", path, reason))
}

fn text_chunks(bytes: &[u8]) -> Result<Vec<TextChunk>, png::DecodingError> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info()?;
    reader.finish()?;
    let info = reader.info();
    let mut chunks: Vec<_> =
        info.uncompressed_latin1_text.iter().map(|chunk| TextChunk::new(&chunk.keyword, &chunk.text)).collect();
    let mut room = LONGEST_COMPRESSED_TEXT;
    for chunk in &info.utf8_text {
        let mut chunk = chunk.clone();
        chunk.decompress_text_with_limit(room)?;
        let text = chunk.get_text()?;
        room = room.saturating_sub(text.len());
        chunks.push(TextChunk::new(&chunk.keyword, text));
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
