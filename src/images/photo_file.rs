//! Reading picture files.
//!
//! PNG, JPEG and WebP, told apart by content; grey, grey and alpha, RGB, RGBA and palette, of up to 16 bits. The size is
//! checked by the file's header before any memory is spent on pixels. An animated file gives the still picture that it
//! offers to programs without animation: its first frame, or an APNG's default picture. Decoders run under a
//! [guard](crate::files::guarded): whatever they make of damaged bytes, it is an error.

use super::{ColorType, Photo, PictureFormat, Samples};
use crate::files::guarded;
use crate::{Error, ErrorKind, Result};
use image::codecs::{jpeg::JpegDecoder, png::PngDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageResult, Limits};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

/// The longest side of a picture, in pixels.
pub const MAX_SIDE: usize = 16384;
/// The most pixels that a picture has: 128 Mi, 1 GiB at the most bytes a pixel.
pub const MAX_PIXELS: usize = 1 << 27;
/// The most by which a picture that is read may be longer on one side than on the other.
pub const MAX_ASPECT: usize = 32;

/// The longest file that is read: one that holds the most pixels uncompressed.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Memory for what a PNG file says beside its pixels, such as its colour profile.
const MAX_METADATA_BYTES: u64 = 64 << 20;
/// Bytes of a file that tell its format.
const MAGIC_BYTES: u64 = 12;

impl Photo {
    /// Reads a PNG, JPEG or WebP file, told apart by content. The orientation that its EXIF data states is applied, its
    /// colour profile is kept.
    ///
    /// # Errors
    /// If the file is missing, empty, truncated, damaged or of another format; if a side is longer than [`MAX_SIDE`], if
    /// there are more than [`MAX_PIXELS`], or one side is more than [`MAX_ASPECT`] times the other.
    pub fn read(path: &Path) -> Result<Self> {
        Self::decode(&picture_bytes(path)?, path)
    }

    /// The width and height that a file in memory states, of the picture as its pixels are stored; nothing is unpacked. `path` is
    /// named in messages.
    ///
    /// # Errors
    /// If the file is empty, of another format, or has no such header.
    pub fn size(bytes: &[u8], path: &Path) -> Result<(usize, usize)> {
        let fail = |reason| malformed(path, reason);
        let format = PictureFormat::of(bytes).map_err(fail)?;
        if let Some(size) = format.stated_size(bytes) {
            return Ok(size);
        }
        let size = guarded(|| format.decoder(bytes).map(|decoder| decoder.dimensions())).map_err(damaged);
        let (width, height) = size.and_then(|size| size.map_err(damaged)).map_err(fail)?;
        Ok((width as usize, height as usize))
    }

    /// Reads a file that is in memory; `path` is named in messages.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self> {
        let fail = |reason| malformed(path, reason);
        let format = PictureFormat::of(bytes).map_err(fail)?;
        let decoded = guarded(|| format.decode(bytes)).map_err(damaged).and_then(|decoded| decoded);
        let Decoded { image, icc_profile } = decoded.map_err(fail)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (color, samples) = samples_of(image).map_err(fail)?;
        let icc_profile = icc_profile.filter(|profile| is_profile_of(profile, color));
        Ok(Self { icc_profile, ..Self::new(width, height, color, samples)? })
    }
}

/// The bytes of a picture's file, of which no more than those that tell the format are read if it is none.
///
/// # Errors
/// If the file is missing, empty, or of a format that is not read.
pub fn picture_bytes(path: &Path) -> Result<Vec<u8>> {
    let fail = || Error::io("read", path);
    let mut file = File::open(path).map_err(fail())?;
    let mut bytes = Vec::new();
    (&mut file).take(MAGIC_BYTES).read_to_end(&mut bytes).map_err(fail())?;
    PictureFormat::of(&bytes).map_err(|reason| malformed(path, reason))?;
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(fail())?;
    Ok(bytes)
}

/// The EXIF data of a JPEG or WebP file, empty where it has none; nothing for PNG, which has texts of its own.
///
/// # Errors
/// Why the file is not read.
pub(super) fn exif_of(bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let format = PictureFormat::of(bytes)?;
    if matches!(format, PictureFormat::Png) {
        return Ok(None);
    }
    let exif = guarded(|| format.decoder(bytes).and_then(|mut decoder| decoder.exif_metadata()));
    let exif = exif.map_err(damaged)?.map_err(damaged)?.unwrap_or_default();
    Ok(Some(exif))
}

/// What a decoder gives, turned as its file says.
struct Decoded {
    image: DynamicImage,
    icc_profile: Option<Vec<u8>>,
}

/// Why a picture is not read whose decoder says so.
fn damaged(reason: impl std::fmt::Display) -> String {
    format!("it is truncated or damaged ({reason})")
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::malformed(ErrorKind::File, "picture", path, reason)
}

impl PictureFormat {
    /// The format of a file that starts so, if it is one of them.
    pub fn of_bytes(start: &[u8]) -> Option<Self> {
        Self::of(start).ok()
    }

    /// The format of a file that starts so, or why it is not read.
    fn of(bytes: &[u8]) -> Result<Self, String> {
        let brand = bytes.get(4..12).unwrap_or_default();
        let other = match bytes {
            [] => return Err("it is empty (0 bytes)".into()),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => return Ok(Self::Png),
            [0xff, 0xd8, 0xff, ..] => return Ok(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => return Ok(Self::WebP),
            [b'G', b'I', b'F', b'8', ..] => "it is a GIF file",
            [b'B', b'M', ..] => "it is a BMP file",
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "it is a TIFF file",
            [b'8', b'B', b'P', b'S', ..] => "it is a Photoshop file",
            _ if brand == b"ftypavif" => "it is an AVIF file",
            _ if brand.starts_with(b"ftyp") => "it is a HEIC picture or a film",
            _ => "its first bytes are those of no picture format that is read",
        };
        Err(format!("{other}; save it as PNG, JPEG or WebP"))
    }

    /// The size by a PNG file's header, which its decoder refuses without saying it where it is enormous.
    fn stated_size(self, bytes: &[u8]) -> Option<(usize, usize)> {
        let side = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        matches!(self, Self::Png).then(|| Some((side(16)?, side(20)?)))?
    }

    fn decode(self, bytes: &[u8]) -> Result<Decoded, String> {
        if let Some((width, height)) = self.stated_size(bytes) {
            check_readable(width, height)?;
        }
        let mut decoder = self.decoder(bytes).map_err(damaged)?;
        let (width, height) = decoder.dimensions();
        check_readable(width as usize, height as usize)?;
        let pixels = u64::from(width) * u64::from(height);
        if !self.is_complete(bytes) || self.least_bytes(bytes, pixels) > bytes.len() as u64 {
            return Err("it is truncated: its data end before the picture does".into());
        }
        // What is said beside the pixels may be damaged without harm.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let icc_profile = decoder.icc_profile().ok().flatten();
        let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
        image.apply_orientation(orientation);
        Ok(Decoded { image, icc_profile })
    }

    /// The fewest bytes in which a file that starts so can hold this many pixels: no memory is spent on more than are there.
    fn least_bytes(self, bytes: &[u8], pixels: u64) -> u64 {
        match self {
            // DEFLATE's shortest code, of two bits for a length and a distance, stands for 258 bytes.
            Self::Png => {
                let depth = bytes.get(24).copied().map_or(1, u64::from);
                let channels = match bytes.get(25) {
                    Some(2) => 3,
                    Some(4) => 2,
                    Some(6) => 4,
                    _ => 1,
                };
                pixels * channels * depth / 8 / 1032
            }
            // A bit for each block of 8x8 pixels is the least that a grey picture has, colours have more; twice as many pixels are
            // let pass.
            Self::Jpeg => pixels / 1024,
            // Lossy, the choice of a prediction for each 16x16 pixels takes a bit at least, and twice as many pixels are let pass;
            // lossless, one colour takes no bits however often.
            Self::WebP => match bytes.get(12..16) {
                Some(b"VP8 ") => pixels / 4096,
                _ => 0,
            },
        }
    }

    fn decoder(self, bytes: &[u8]) -> ImageResult<Box<dyn ImageDecoder + '_>> {
        if matches!(self, Self::WebP) && !has_whole_chunks(bytes) {
            return Err(ImageError::IoError(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let bytes = Cursor::new(bytes);
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(MAX_METADATA_BYTES);
        Ok(match self {
            Self::Png => Box::new(PngDecoder::with_limits(bytes, limits)?),
            Self::Jpeg => Box::new(JpegDecoder::new(bytes)?),
            Self::WebP => Box::new(WebPDecoder::new(bytes)?),
        })
    }

    /// Whether the file is as long as it says, for the formats whose decoders fill in what is missing.
    fn is_complete(self, bytes: &[u8]) -> bool {
        match self {
            Self::Png => true,
            Self::Jpeg => has_end_of_image(bytes),
            Self::WebP => match bytes {
                [_, _, _, _, a, b, c, d, rest @ ..] => {
                    rest.len() as u64 >= u64::from(u32::from_le_bytes([*a, *b, *c, *d]))
                }
                _ => false,
            },
        }
    }
}

/// Whether the chunks of a WebP file that are no pixels end where the file does or before: the decoder takes the memory that
/// their lengths state.
fn has_whole_chunks(file: &[u8]) -> bool {
    let mut at = MAGIC_BYTES as usize;
    while let Some([a, b, c, d, length @ ..]) = file.get(at..at + 8) {
        let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
        let end = (at + 8).saturating_add(length);
        if end > file.len() {
            return !matches!(&[*a, *b, *c, *d], b"EXIF" | b"ICCP" | b"XMP ");
        }
        at = end + length % 2;
    }
    true
}

/// Whether the markers of a JPEG file lead to the one that ends it.
fn has_end_of_image(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            // Compressed data: an 0xff of its own, and the markers for restarts.
            (Some(0xff), Some(0x00 | 0x01 | 0xd0..=0xd8)) => at += 2,
            (Some(0xff), Some(0xff)) => at += 1,
            (Some(0xff), Some(0xd9)) => return true,
            // A segment, which may hold a smaller picture with an end of its own.
            (Some(0xff), Some(_)) => match bytes.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
            (Some(_), Some(_)) => at += 1,
            _ => return false,
        }
    }
}

/// That a file's header states a size that is read.
fn check_readable(width: usize, height: usize) -> Result<(), String> {
    let (long, short) = (width.max(height), width.min(height));
    if long > MAX_SIDE || width * height > MAX_PIXELS {
        return Err(format!(
            "it has {width}x{height} pixels, and the limits are {MAX_SIDE} a side and {MAX_PIXELS} in all; make it \
             smaller first"
        ));
    }
    if long > MAX_ASPECT * short {
        return Err(format!(
            "it has {width}x{height} pixels, and the longer side may be at most {MAX_ASPECT} times the shorter; cut it \
             into parts"
        ));
    }
    Ok(())
}

fn samples_of(image: DynamicImage) -> Result<(ColorType, Samples), String> {
    Ok(match image {
        DynamicImage::ImageLuma8(image) => (ColorType::Grey, Samples::Eight(image.into_raw())),
        DynamicImage::ImageLumaA8(image) => (ColorType::GreyAlpha, Samples::Eight(image.into_raw())),
        DynamicImage::ImageRgb8(image) => (ColorType::Rgb, Samples::Eight(image.into_raw())),
        DynamicImage::ImageRgba8(image) => (ColorType::Rgba, Samples::Eight(image.into_raw())),
        DynamicImage::ImageLuma16(image) => (ColorType::Grey, Samples::Sixteen(image.into_raw())),
        DynamicImage::ImageLumaA16(image) => (ColorType::GreyAlpha, Samples::Sixteen(image.into_raw())),
        DynamicImage::ImageRgb16(image) => (ColorType::Rgb, Samples::Sixteen(image.into_raw())),
        DynamicImage::ImageRgba16(image) => (ColorType::Rgba, Samples::Sixteen(image.into_raw())),
        other => return Err(format!("its samples are {:?}; save it with 8 or 16 bits a sample", other.color())),
    })
}

/// Whether an ICC profile describes such colours: a CMYK file's does not, once its pixels are RGB.
fn is_profile_of(profile: &[u8], color: ColorType) -> bool {
    let space: &[u8] = if color.is_grey() { b"GRAY" } else { b"RGB " };
    profile.len() >= 128 && &profile[16..20] == space
}
