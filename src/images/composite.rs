//! What a model painted, put into a photo.

use super::photo::check_crop;
use super::{ColorType, CropBox, Mask, Photo, Picture, Samples};
use crate::{Error, Result};
use rayon::prelude::*;

/// How much of each pixel is replaced: 0 keeps it, 1 replaces it. [`Mask::weights`] makes them.
#[derive(Debug, Clone, PartialEq)]
pub struct BlendWeights {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) values: Vec<f32>,
}

impl BlendWeights {
    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The weights, from 0 to 1, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

impl From<&Mask> for BlendWeights {
    /// The mask's values, divided by 255.
    fn from(mask: &Mask) -> Self {
        mask.weights(0)
    }
}

impl Photo {
    /// The photo with `painted`, of the same size, where `weights` are not zero. See [`paste`](Self::paste).
    ///
    /// # Errors
    /// If the sizes differ.
    pub fn composite(&self, painted: &Picture, weights: &BlendWeights) -> Result<Self> {
        self.paste(painted, weights, &CropBox::whole(self.width, self.height))
    }

    /// The photo with `painted`, of the size of `place`, put there where `weights`, of the photo's size, are not zero.
    ///
    /// Every sample of a pixel outside `place` or of weight 0 is the photo's, in all its bits, alpha included. The photo
    /// keeps its depth (a byte becomes sixteen bits by the factor 257), and a grey photo stays grey: what is painted
    /// enters it by its luma. What is painted is opaque: alpha rises to its largest value by the weight, and colours mix
    /// by what each side contributes to the result, so a transparent pixel's hidden colour does not show.
    ///
    /// # Errors
    /// If `place` is not within the photo, or a size is another than said.
    pub fn paste(&self, painted: &Picture, weights: &BlendWeights, place: &CropBox) -> Result<Self> {
        check_crop(place, self.width, self.height)?;
        let same = |what, found: (usize, usize), expected: (usize, usize), whose: &str| {
            let fix = format!("it must be {whose}, {}x{}", expected.0, expected.1);
            let value = format!("{}x{}", found.0, found.1);
            if found == expected { Ok(()) } else { Err(Error::invalid(what, value, fix)) }
        };
        let size = (place.width, place.height);
        same("the painted picture's size", (painted.width, painted.height), size, "that of its place")?;
        let size = (self.width, self.height);
        same("the blend weights' size", (weights.width, weights.height), size, "the photo's")?;
        let mut samples = self.samples.clone();
        match &mut samples {
            Samples::Eight(samples) => blend_rows(samples, self, painted, weights, place),
            Samples::Sixteen(samples) => blend_rows(samples, self, painted, weights, place),
        }
        Ok(self.with_samples(self.width, self.height, samples))
    }
}

/// A sample of either depth.
trait Depth: Copy + Send + Sync {
    /// What a painted byte is multiplied by; 255 of it is the largest value.
    const FACTOR: f32;
    fn value(self) -> f32;
    /// Rounded and limited to the range.
    fn rounded(value: f32) -> Self;
}

impl Depth for u8 {
    const FACTOR: f32 = 1.0;

    fn value(self) -> f32 {
        f32::from(self)
    }

    fn rounded(value: f32) -> Self {
        value.round() as u8
    }
}

impl Depth for u16 {
    const FACTOR: f32 = 257.0;

    fn value(self) -> f32 {
        f32::from(self)
    }

    fn rounded(value: f32) -> Self {
        value.round() as u16
    }
}

fn blend_rows<T: Depth>(samples: &mut [T], photo: &Photo, painted: &Picture, weights: &BlendWeights, place: &CropBox) {
    let (color, width) = (photo.color, photo.width);
    let channels = color.channels();
    let rows = samples.par_chunks_exact_mut(channels * width).zip(weights.values.par_chunks_exact(width));
    let rows = rows.skip(place.top).zip(painted.rgb.par_chunks_exact(3 * place.width));
    rows.for_each(|((row, weights), painted)| {
        let pixels = row.chunks_exact_mut(channels).zip(weights).skip(place.left);
        for ((pixel, &weight), rgb) in pixels.zip(painted.chunks_exact(3)) {
            if weight > 0.0 {
                blend_pixel(pixel, color, [rgb[0], rgb[1], rgb[2]], weight);
            }
        }
    });
}

fn blend_pixel<T: Depth>(pixel: &mut [T], color: ColorType, rgb: [u8; 3], weight: f32) {
    let painted = if color.is_grey() { [luma(rgb); 3] } else { rgb };
    let colors = if color.is_grey() { 1 } else { 3 };
    let max = 255.0 * T::FACTOR;
    // Of the result, the share that what is painted has: by alpha, where there is one.
    let share = match pixel.get(colors) {
        Some(alpha) => {
            let opacity = alpha.value() / max * (1.0 - weight) + weight;
            pixel[colors] = T::rounded(opacity * max);
            weight / opacity
        }
        None => weight,
    };
    for (sample, byte) in pixel.iter_mut().zip(painted).take(colors) {
        let byte = f32::from(byte) * T::FACTOR;
        *sample = T::rounded(byte * share + sample.value() * (1.0 - share));
    }
}

/// Grey of a colour by ITU-R BT.601, in sixteen fraction bits: PIL's `convert("L")`.
pub(super) fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}
