//! Picture files that are written: PNG, and for who needs them JPEG and WebP; and the texts in all of them.

use super::exif;
use super::photo_file::exif_of;
use super::{ColorType, Photo, Picture, Samples, TextChunk, read_png_text};
use crate::files::replace_file;
use crate::{Error, ErrorKind, Result};
use image::codecs::{jpeg::JpegEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};
use std::path::Path;

/// JPEG's quality, at which its losses are hardly seen.
const JPEG_QUALITY: u8 = 95;

/// The longest EXIF data of a JPEG file, whose segments have 16 bits of length.
const LONGEST_JPEG_EXIF: usize = 65_000;

/// The formats of picture files that are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureFormat {
    /// Exact, with every depth and transparency, and text of any length.
    Png,
    /// Small, of 8 bits without transparency, and not exact.
    Jpeg,
    /// Exact here, of 8 bits.
    WebP,
}

impl PictureFormat {
    /// The format of a file with such a name.
    ///
    /// # Errors
    /// If its ending is none of a format that is written.
    pub fn of_path(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        match ending.as_deref() {
            Some("png") => Ok(Self::Png),
            Some("jpg" | "jpeg") => Ok(Self::Jpeg),
            Some("webp") => Ok(Self::WebP),
            _ => Err(Error::invalid("the name of the picture", path.display(), "let it end in .png, .webp or .jpg")),
        }
    }

    /// That a photo's depth and transparency can be saved so.
    ///
    /// # Errors
    /// If they would be lost.
    pub fn check(self, photo: &Photo) -> Result<()> {
        let why = match self {
            Self::Jpeg if photo.color().has_alpha() => "JPEG has no transparency",
            Self::Jpeg | Self::WebP if photo.bit_depth() > 8 => "JPEG and WebP have 8 bits a sample",
            _ => return Ok(()),
        };
        let form = format!("of {} channels with {} bits", photo.color().channels(), photo.bit_depth());
        Err(Error::invalid("the picture", form, format!("{why}; save it as .png")))
    }
}

impl Photo {
    /// The photo as the bytes of a file, with its colour profile and with texts. JPEG and WebP have them as A1111's web UI
    /// writes them: `parameters` as the EXIF field `UserComment`; and `tweedie` as `ImageDescription`.
    ///
    /// # Errors
    /// If the format has not the photo's depth or transparency, or a text is too long for it.
    ///
    /// # Examples
    /// ```
    /// use std::path::Path;
    /// use tweedie::images::{ColorType, Photo, PictureFormat, Samples, TextChunk, read_picture_text};
    ///
    /// let photo = Photo::new(16, 16, ColorType::Rgb, Samples::Eight(vec![200; 768]))?;
    /// let texts = [TextChunk::new("parameters", "a fox\nSteps: 25")];
    /// let bytes = photo.encode(PictureFormat::WebP, &texts)?;
    /// assert_eq!(read_picture_text(&bytes, Path::new("fox.webp"))?, texts);
    /// # Ok::<(), tweedie::Error>(())
    /// ```
    pub fn encode(&self, format: PictureFormat, texts: &[TextChunk]) -> Result<Vec<u8>> {
        format.check(self)?;
        let samples = match self.samples() {
            Samples::Eight(samples) if format != PictureFormat::Png => samples,
            _ => return self.encode_png(texts),
        };
        let color = match self.color() {
            ColorType::Grey => ExtendedColorType::L8,
            ColorType::GreyAlpha => ExtendedColorType::La8,
            ColorType::Rgb => ExtendedColorType::Rgb8,
            ColorType::Rgba => ExtendedColorType::Rgba8,
        };
        let exif = exif::encode(texts);
        if format == PictureFormat::Jpeg && exif.len() > LONGEST_JPEG_EXIF {
            let fix = format!("JPEG files hold {LONGEST_JPEG_EXIF} bytes of settings; save it as .png or .webp");
            return Err(Error::invalid("the length of the picture's settings", exif.len(), fix));
        }
        let mut bytes = Vec::new();
        let (width, height) = (self.width() as u32, self.height() as u32);
        let (size, profile) = ((width, height), self.icc_profile());
        match format {
            PictureFormat::Jpeg => {
                let encoder = JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY);
                write(encoder, exif, profile, samples, size, color)?;
            }
            _ => write(WebPEncoder::new_lossless(&mut bytes), exif, profile, samples, size, color)?,
        }
        Ok(bytes)
    }

    /// Writes the photo into a file of the format that its name ends in, with its colour profile and with texts. What has the name
    /// gives way in one step.
    ///
    /// # Errors
    /// If the name ends otherwise, as [`Self::encode`], or if the file cannot be written.
    pub fn save(&self, path: &Path, texts: &[TextChunk]) -> Result<()> {
        replace_file(path, &self.encode(PictureFormat::of_path(path)?, texts)?)
    }
}

impl Picture {
    /// Writes the picture into a file, as [`Photo::save`].
    ///
    /// # Errors
    /// As there.
    pub fn save(&self, path: &Path, texts: &[TextChunk]) -> Result<()> {
        Photo::from(self).save(path, texts)
    }
}

fn write(
    mut encoder: impl ImageEncoder,
    exif: Vec<u8>,
    profile: Option<&[u8]>,
    samples: &[u8],
    (width, height): (u32, u32),
    color: ExtendedColorType,
) -> Result<()> {
    if !exif.is_empty() {
        encoder.set_exif_metadata(exif).map_err(|error| unwritable(&error))?;
    }
    if let Some(profile) = profile {
        encoder.set_icc_profile(profile.to_vec()).map_err(|error| unwritable(&error))?;
    }
    encoder.write_image(samples, width, height, color).map_err(|error| unwritable(&error))
}

fn unwritable(reason: &dyn std::fmt::Display) -> Error {
    Error::invalid("the picture", "unwritable", reason.to_string())
}

/// The texts in a picture's file: a PNG file's chunks, or what the EXIF data of a JPEG or WebP file have in their place.
///
/// # Errors
/// If the file is of no format that is read, or damaged where texts are; `path` is named in the message.
pub fn read_picture_text(bytes: &[u8], path: &Path) -> Result<Vec<TextChunk>> {
    match exif_of(bytes) {
        Ok(None) => read_png_text(bytes, path),
        Ok(Some(data)) => Ok(exif::decode(&data)),
        Err(reason) => Err(Error::malformed(ErrorKind::File, "picture", path, reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photo(color: ColorType) -> Result<Photo> {
        let count = 20 * 10 * color.channels();
        Photo::new(20, 10, color, Samples::Eight((0..count).map(|i| (i * 7 % 256) as u8).collect()))
    }

    #[test]
    fn texts_come_back_from_every_format() -> Result<()> {
        let texts =
            [TextChunk::new("parameters", "ein Fuchs, 日本 🦊\nSteps: 25"), TextChunk::new("tweedie", "{\"日\":1}")];
        for (format, name) in
            [(PictureFormat::Png, "a.png"), (PictureFormat::Jpeg, "a.JPG"), (PictureFormat::WebP, "a.webp")]
        {
            assert_eq!(PictureFormat::of_path(Path::new(name))?, format);
            let bytes = photo(ColorType::Rgb)?.encode(format, &texts)?;
            assert_eq!(read_picture_text(&bytes, Path::new(name))?, texts, "{name}");
            assert_eq!(read_picture_text(&photo(ColorType::Rgb)?.encode(format, &[])?, Path::new(name))?, [], "{name}");
            let back = Photo::decode(&bytes, Path::new(name))?;
            assert_eq!((back.width(), back.height()), (20, 10));
            assert!(format == PictureFormat::Jpeg || back.samples() == photo(ColorType::Rgb)?.samples(), "{name}");
        }
        assert!(PictureFormat::of_path(Path::new("a.gif")).is_err_and(|error| error.to_string().contains(".webp")));
        Ok(())
    }

    #[test]
    fn a_saved_picture_is_read_back_and_what_was_there_gives_way() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let picture = Picture::new(20, 10, (0..600).map(|i| (i % 251) as u8).collect())?;
        let texts = [TextChunk::new("parameters", "a fox")];
        for name in ["a.png", "a.WebP"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "old").map_err(Error::io("write", &path))?;
            picture.save(&path, &texts)?;
            assert_eq!(Picture::read(&path)?, picture, "{name}");
            let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
            assert_eq!(read_picture_text(&bytes, &path)?, texts, "{name}");
        }
        assert!(picture.save(&folder.path().join("a.gif"), &[]).is_err() && !folder.path().join("a.gif").exists());
        Ok(())
    }

    #[test]
    fn what_a_format_cannot_hold_is_refused() -> Result<()> {
        assert!(photo(ColorType::Rgba)?.encode(PictureFormat::Jpeg, &[]).is_err());
        assert!(photo(ColorType::Rgba)?.encode(PictureFormat::WebP, &[]).is_ok());
        let deep = Photo::new(1, 1, ColorType::Rgb, Samples::Sixteen(vec![1, 2, 3]))?;
        assert!(deep.encode(PictureFormat::WebP, &[]).is_err() && deep.encode(PictureFormat::Png, &[]).is_ok());
        let long = [TextChunk::new("parameters", "x".repeat(40_000))];
        assert!(
            photo(ColorType::Rgb)?.encode(PictureFormat::Jpeg, &long).is_err_and(|e| e.to_string().contains(".png"))
        );
        Ok(())
    }
}
