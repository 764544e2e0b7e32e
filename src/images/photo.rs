//! A picture as its file holds it.

use super::resample::lanczos;
use super::{CropBox, MAX_PIXELS, MAX_SIDE, Picture};
use crate::{Error, Result};
use rayon::prelude::*;

/// What the samples of a pixel are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorType {
    /// One sample.
    Grey,
    /// Grey, then alpha.
    GreyAlpha,
    /// Red, green, blue.
    Rgb,
    /// Red, green, blue, then alpha, which the colours are not multiplied by.
    Rgba,
}

impl ColorType {
    /// Samples of a pixel.
    pub fn channels(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::GreyAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }

    /// Whether the last sample is alpha.
    pub fn has_alpha(self) -> bool {
        matches!(self, Self::GreyAlpha | Self::Rgba)
    }

    /// Whether there is no colour.
    pub fn is_grey(self) -> bool {
        matches!(self, Self::Grey | Self::GreyAlpha)
    }
}

/// The samples of a picture, pixel by pixel, row by row, in the depth of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Samples {
    /// Eight bits each.
    Eight(Vec<u8>),
    /// Sixteen bits each.
    Sixteen(Vec<u16>),
}

impl Samples {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Eight(samples) => samples.len(),
            Self::Sixteen(samples) => samples.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A picture as its file holds it: upright, in the file's depth and colours, with its alpha and its ICC profile.
///
/// [`to_picture`](Self::to_picture) is what a model sees of it; [`paste`](Self::paste) puts what a model made into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Photo {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) color: ColorType,
    pub(super) samples: Samples,
    pub(super) icc_profile: Option<Vec<u8>>,
}

impl Photo {
    /// A photo from its samples.
    ///
    /// # Errors
    /// If the size is not one that [`read`](Self::read) takes by side and area, or the number of samples is another.
    pub fn new(width: usize, height: usize, color: ColorType, samples: Samples) -> Result<Self> {
        check_size("the photo's size", width, height)?;
        let expected = color.channels() * width * height;
        if samples.len() != expected {
            let fix = format!("{width}x{height} pixels of {} samples have {expected}", color.channels());
            return Err(Error::invalid("the number of samples", samples.len(), fix));
        }
        Ok(Self { width, height, color, samples, icc_profile: None })
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// What the samples of a pixel are.
    pub fn color(&self) -> ColorType {
        self.color
    }

    /// Bits of a sample: 8 or 16.
    pub fn bit_depth(&self) -> usize {
        match self.samples {
            Samples::Eight(_) => 8,
            Samples::Sixteen(_) => 16,
        }
    }

    /// The samples.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// The colour profile that the file embeds, if it fits the photo's kind of colours. No value is converted by it: a
    /// model sees the numbers of the file, and the PNG file that is written carries the profile on.
    pub fn icc_profile(&self) -> Option<&[u8]> {
        self.icc_profile.as_deref()
    }

    /// The photo as models see it: eight bits, RGB. Alpha is dropped, as PIL's `convert("RGB")` does; sixteen bits are
    /// divided by 257 and rounded; grey becomes three equal values.
    pub fn to_picture(&self) -> Picture {
        let channels = self.color.channels();
        let rgb = match &self.samples {
            Samples::Eight(samples) => rgb_of(samples, channels, |sample| sample),
            Samples::Sixteen(samples) => rgb_of(samples, channels, to_byte),
        };
        Picture { width: self.width, height: self.height, rgb }
    }

    /// Whether a pixel is not opaque.
    pub fn is_transparent_somewhere(&self) -> bool {
        self.alpha().is_some_and(|alpha| alpha.iter().any(|&alpha| alpha < u8::MAX))
    }

    /// The alpha samples, as bytes; `None` if the photo has none.
    pub(super) fn alpha(&self) -> Option<Vec<u8>> {
        let channels = self.color.channels();
        self.color.has_alpha().then(|| match &self.samples {
            Samples::Eight(samples) => samples.iter().skip(channels - 1).step_by(channels).copied().collect(),
            Samples::Sixteen(samples) => {
                samples.iter().skip(channels - 1).step_by(channels).map(|&sample| to_byte(sample)).collect()
            }
        })
    }

    /// The pixels of a rectangle.
    ///
    /// # Errors
    /// If the rectangle is empty or reaches beyond the photo.
    pub fn crop(&self, part: &CropBox) -> Result<Self> {
        check_crop(part, self.width, self.height)?;
        let channels = self.color.channels();
        let samples = match &self.samples {
            Samples::Eight(samples) => Samples::Eight(part.cut(samples, self.width, channels)),
            Samples::Sixteen(samples) => Samples::Sixteen(part.cut(samples, self.width, channels)),
        };
        Ok(self.with_samples(part.width, part.height, samples))
    }

    /// In another size by Lanczos resampling, in its own depth. Colours are weighted by alpha, so that what is
    /// transparent does not bleed. Eight bits give the bytes of Pillow 13's `resize`; sixteen bits are resampled by the
    /// same filter in floating point and rounded once.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn resized(&self, width: usize, height: usize) -> Result<Self> {
        check_size("the size to resize to", width, height)?;
        if (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let (from, to) = ((self.width, self.height), (width, height));
        let channels = self.color.channels();
        let samples = match (&self.samples, self.color.has_alpha()) {
            (Samples::Eight(samples), false) => Samples::Eight(lanczos(samples, channels, from, to)),
            (Samples::Eight(samples), true) => {
                let mut resized = lanczos(&premultiplied(samples, channels), channels, from, to);
                unpremultiply(&mut resized, channels);
                Samples::Eight(resized)
            }
            (Samples::Sixteen(samples), has_alpha) => {
                Samples::Sixteen(resized_sixteen(samples, channels, has_alpha, from, to))
            }
        };
        Ok(self.with_samples(width, height, samples))
    }

    /// Other pixels of the same kind.
    pub(super) fn with_samples(&self, width: usize, height: usize, samples: Samples) -> Self {
        Self { width, height, color: self.color, samples, icc_profile: self.icc_profile.clone() }
    }
}

impl From<&Picture> for Photo {
    fn from(picture: &Picture) -> Self {
        let samples = Samples::Eight(picture.rgb.clone());
        Self { width: picture.width, height: picture.height, color: ColorType::Rgb, samples, icc_profile: None }
    }
}

/// The nearest of 256 levels.
fn to_byte(sample: u16) -> u8 {
    ((u32::from(sample) + 128) / 257) as u8
}

fn rgb_of<T: Copy>(samples: &[T], channels: usize, to_byte: impl Fn(T) -> u8) -> Vec<u8> {
    let rgb = |pixel: &[T]| if channels < 3 { [pixel[0]; 3] } else { [pixel[0], pixel[1], pixel[2]] };
    samples.chunks_exact(channels).flat_map(|pixel| rgb(pixel).map(&to_byte)).collect()
}

/// Calls `change` with the colours and the alpha of every pixel.
fn for_each_pixel<T: Copy + Send>(samples: &mut [T], channels: usize, change: impl Fn(&mut [T], T) + Sync) {
    // Some thousand pixels a task: one alone is too little work.
    samples.par_chunks_mut(channels * 4096).for_each(|pixels| {
        for pixel in pixels.chunks_exact_mut(channels) {
            if let Some((&mut alpha, colors)) = pixel.split_last_mut() {
                change(colors, alpha);
            }
        }
    });
}

/// Colours times alpha, rounded.
fn premultiplied(samples: &[u8], channels: usize) -> Vec<u8> {
    let mut out = samples.to_vec();
    for_each_pixel(&mut out, channels, |colors, alpha| {
        for color in colors {
            // Exactly (color * alpha / 255) rounded.
            let product = u32::from(*color) * u32::from(alpha) + 128;
            *color = ((product + (product >> 8)) >> 8) as u8;
        }
    });
    out
}

/// Colours divided by alpha, rounded down.
fn unpremultiply(samples: &mut [u8], channels: usize) {
    for_each_pixel(samples, channels, |colors, alpha| {
        for color in colors {
            *color =
                (255 * u32::from(*color)).checked_div(u32::from(alpha)).map_or(*color, |color| color.min(255) as u8);
        }
    });
}

fn resized_sixteen(
    samples: &[u16],
    channels: usize,
    has_alpha: bool,
    from: (usize, usize),
    to: (usize, usize),
) -> Vec<u16> {
    const MAX: f32 = 65535.0;
    let mut floats: Vec<f32> = samples.iter().map(|&sample| f32::from(sample)).collect();
    if has_alpha {
        for_each_pixel(&mut floats, channels, |colors, alpha| {
            colors.iter_mut().for_each(|color| *color *= alpha / MAX);
        });
    }
    let mut resized = lanczos(&floats, channels, from, to);
    if has_alpha {
        for_each_pixel(&mut resized, channels, |colors, alpha| {
            // Alpha that rounds to zero has no colour to divide out.
            if alpha >= 0.5 {
                colors.iter_mut().for_each(|color| *color *= MAX / alpha.min(MAX));
            }
        });
    }
    // Limited to the range by the cast.
    resized.into_iter().map(|value| (value + 0.5).floor() as u16).collect()
}

/// That a picture of this size may be made: it has pixels and is within the limits.
pub(super) fn check_size(what: &str, width: usize, height: usize) -> Result<()> {
    let fits = (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height) && width * height <= MAX_PIXELS;
    if fits {
        return Ok(());
    }
    let fix = format!("a picture has 1 to {MAX_SIDE} pixels a side and at most {MAX_PIXELS} in all");
    Err(Error::invalid(what, format!("{width}x{height}"), fix))
}

/// That a rectangle is within a picture.
pub(super) fn check_crop(part: &CropBox, width: usize, height: usize) -> Result<()> {
    if part.is_within(width, height) {
        return Ok(());
    }
    let value = format!("{}x{} at ({}, {})", part.width, part.height, part.left, part.top);
    Err(Error::invalid("the part of the picture", value, format!("it must lie within its {width}x{height} pixels")))
}
