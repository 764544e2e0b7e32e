//! Where a photo may change.

use super::composite::luma;
use super::distance::squared_distances;
use super::photo::{check_crop, check_size};
use super::resample::lanczos;
use super::{BlendWeights, CropBox, Photo, blur};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::path::Path;

/// The least value of a mask that is repainted: half of 255, as diffusers' `value / 255 >= 0.5`.
const HALF: u8 = 128;

/// How a mask gets another size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskResize {
    /// As diffusers: by Lanczos resampling, half and above is white; to latent size by the nearest pixel. A line thinner
    /// than the step vanishes.
    #[default]
    Lanczos,
    /// A pixel is white if any part of it was: thin lines survive, and edges move outwards by less than a pixel.
    Max,
}

/// Where a photo may change: for each pixel a value from 0 (keep) to 255 (repaint).
///
/// For a model a value of 128 and above says repaint ([`binarised`](Self::binarised)); for the result, values between
/// mix the photo with what was painted, and only 0 keeps a pixel as it is. A mask from a JPEG file has noise where it
/// looks black, so it should be binarised before anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) values: Vec<u8>,
}

impl Mask {
    /// A mask from its values, row by row.
    ///
    /// # Errors
    /// If the size is zero or too large, or the number of values another.
    pub fn new(width: usize, height: usize, values: Vec<u8>) -> Result<Self> {
        check_size("the mask's size", width, height)?;
        if values.len() != width * height {
            let fix = format!("a mask of {width}x{height} has {}", width * height);
            return Err(Error::invalid("the number of values", values.len(), fix));
        }
        Ok(Self { width, height, values })
    }

    /// Reads a mask from a PNG, JPEG or WebP file, as [`from_photo`](Self::from_photo) does.
    ///
    /// # Errors
    /// As [`Photo::read`].
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self::from_photo(&Photo::read(path)?))
    }

    /// A picture as a mask. If it has alpha that is not the same everywhere, alpha is the mask: opaque is repainted,
    /// transparent is kept, whatever the colours. Otherwise its grey is (white is repainted), colours by ITU-R BT.601 as
    /// in PIL's `convert("L")`. Editors that erase what is to be repainted make the opposite of the first: use
    /// [`inverted`](Self::inverted).
    pub fn from_photo(photo: &Photo) -> Self {
        let varies = |alpha: &Vec<u8>| alpha.iter().any(|&value| value != alpha[0]);
        let values = match photo.alpha().filter(varies) {
            Some(alpha) => alpha,
            // Equal values have exactly that luma: a grey picture's are kept.
            None => photo.to_picture().rgb.chunks_exact(3).map(|rgb| luma([rgb[0], rgb[1], rgb[2]])).collect(),
        };
        Self { width: photo.width, height: photo.height, values }
    }

    /// Where a photo is transparent, which is what an editor's eraser leaves: the less opaque, the more is repainted. None
    /// if it is opaque all over.
    pub fn of_hole(photo: &Photo) -> Option<Self> {
        let alpha = photo.alpha().filter(|_| photo.is_transparent_somewhere())?;
        Some(Self { width: photo.width, height: photo.height, values: alpha }.inverted())
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The values, row by row.
    pub fn values(&self) -> &[u8] {
        &self.values
    }

    /// What was kept is repainted, and the other way round.
    pub fn inverted(&self) -> Self {
        self.map(|value| 255 - value)
    }

    /// 255 where the value is at least 128 (half, as in diffusers), else 0.
    pub fn binarised(&self) -> Self {
        self.map(|value| if value >= HALF { 255 } else { 0 })
    }

    fn map(&self, f: impl Fn(u8) -> u8) -> Self {
        Self { values: self.values.iter().map(|&value| f(value)).collect(), ..*self }
    }

    /// In another size by Lanczos resampling, with the bytes of Pillow's `resize`.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn resized(&self, width: usize, height: usize) -> Result<Self> {
        check_size("the size to resize to", width, height)?;
        let values = lanczos(&self.values, 1, (self.width, self.height), (width, height));
        Ok(Self { width, height, values })
    }

    /// In another size, each pixel the largest of those that it covers, whole or in part: nothing vanishes.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn resized_max(&self, width: usize, height: usize) -> Result<Self> {
        check_size("the size to resize to", width, height)?;
        let covered = |i: usize, from: usize, to: usize| i * from / to..((i + 1) * from).div_ceil(to);
        let mut values = vec![0; width * height];
        values.par_chunks_exact_mut(width).enumerate().for_each_init(
            || vec![0; self.width],
            |line, (y, out)| {
                line.fill(0);
                for row in covered(y, self.height, height) {
                    for (most, &value) in line.iter_mut().zip(&self.values[row * self.width..]) {
                        *most = value.max(*most);
                    }
                }
                for (x, out) in out.iter_mut().enumerate() {
                    *out = line[covered(x, self.width, width)].iter().copied().max().unwrap_or(0);
                }
            },
        );
        Ok(Self { width, height, values })
    }

    /// Black and white at the size of the picture that a model works on.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn fitted(&self, width: usize, height: usize, how: MaskResize) -> Result<Self> {
        Ok(match how {
            MaskResize::Lanczos => self.resized(width, height)?.binarised(),
            // Black and white first: faint values would be drawn out like strong ones.
            MaskResize::Max => self.binarised().resized_max(width, height)?,
        })
    }

    /// At latent size, from a mask that was [`fitted`](Self::fitted): by the nearest pixel, which is the one at the top
    /// left of those that a latent covers, as in `torch.nn.functional.interpolate`; or the largest.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn to_latent(&self, width: usize, height: usize, how: MaskResize) -> Result<Self> {
        if how == MaskResize::Max {
            return self.resized_max(width, height);
        }
        check_size("the latent's size", width, height)?;
        let nearest = |from: usize, to: usize| -> Vec<usize> {
            // Torch computes in single precision, which shows only where the factor is no integer.
            let scale = from as f32 / to as f32;
            (0..to).map(|i| ((i as f32 * scale) as usize).min(from - 1)).collect()
        };
        let (columns, rows) = (nearest(self.width, width), nearest(self.height, height));
        let pixels = rows.iter().flat_map(|y| columns.iter().map(move |x| y * self.width + x));
        Ok(Self { width, height, values: pixels.map(|i| self.values[i]).collect() })
    }

    /// As a tensor of values from 0 to 1.
    ///
    /// # Shapes
    /// `[1, 1, height, width]`, f32.
    ///
    /// # Errors
    /// If it cannot be copied to the device.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        let values: Vec<f32> = self.values.iter().map(|&value| f32::from(value) / 255.0).collect();
        Ok(Tensor::from_vec(values, (1, 1, self.height, self.width), device)?)
    }

    /// White also within `radius` pixels (Euclidean, between pixel centres) of every pixel of at least 128; other pixels
    /// keep their values.
    pub fn grown(&self, radius: usize) -> Self {
        let distances = squared_distances(self.width, self.height, |i| self.values[i] >= HALF);
        let limit = (radius as u64).saturating_pow(2);
        // u32::MAX says that there is nothing to grow.
        let reached = |distance: u32| distance != u32::MAX && u64::from(distance) <= limit;
        let pixels = self.values.iter().zip(distances);
        let values = pixels.map(|(&value, distance)| if reached(distance) { 255 } else { value }).collect();
        Self { values, ..*self }
    }

    /// Blurred by a Gaussian with a standard deviation of `sigma` pixels, with the bytes of Pillow's `GaussianBlur`,
    /// which diffusers' `blur` uses. The mask then reaches a little outside of what it was.
    pub fn blurred(&self, sigma: f32) -> Self {
        // Wider than any picture, every value is the same; not a number counts as 0.
        let sigma = sigma.max(0.0).min(super::MAX_SIDE as f32);
        Self { values: blur::gaussian(&self.values, self.width, self.height, sigma), ..*self }
    }

    /// Weights to composite by: the values divided by 255 and, inside the mask only, faded in over `feather` pixels from
    /// its edge: a pixel at Euclidean distance d from the nearest that is kept gets the factor `d / (feather + 1)`, at
    /// most 1. The picture's own border is no edge. With `feather` 0 a black and white mask gives 0 and 1.
    pub fn weights(&self, feather: usize) -> BlendWeights {
        let values = if feather == 0 {
            self.values.iter().map(|&value| f32::from(value) / 255.0).collect()
        } else {
            let distances = squared_distances(self.width, self.height, |i| self.values[i] == 0);
            let fade = |distance: u32| (f64::from(distance).sqrt() / (feather as f64 + 1.0)).min(1.0) as f32;
            let fade = |distance: u32| if distance == u32::MAX { 1.0 } else { fade(distance) };
            self.values.iter().zip(distances).map(|(&value, d)| f32::from(value) / 255.0 * fade(d)).collect()
        };
        BlendWeights { width: self.width, height: self.height, values }
    }

    /// The smallest rectangle that holds every pixel that is not 0; `None` if there is none.
    pub fn bounding_box(&self) -> Option<CropBox> {
        let (mut left, mut right, mut top, mut bottom) = (self.width, 0, self.height, 0);
        for (y, row) in self.values.chunks_exact(self.width).enumerate() {
            if let Some(first) = row.iter().position(|&value| value != 0) {
                let last = row.iter().rposition(|&value| value != 0).unwrap_or(first);
                (left, right) = (left.min(first), right.max(last + 1));
                (top, bottom) = (top.min(y), y + 1);
            }
        }
        (left < right).then(|| CropBox { left, top, width: right - left, height: bottom - top })
    }

    /// Whether every pixel is 0: nothing is repainted.
    pub fn is_empty(&self) -> bool {
        self.values.iter().all(|&value| value == 0)
    }

    /// Whether every pixel is 255: all is repainted.
    pub fn is_full(&self) -> bool {
        self.values.iter().all(|&value| value == 255)
    }

    /// The share of pixels that are not 0, from 0 to 1.
    pub fn covered_share(&self) -> f64 {
        self.values.iter().filter(|&&value| value != 0).count() as f64 / self.values.len() as f64
    }

    /// The values of a rectangle.
    ///
    /// # Errors
    /// If the rectangle is empty or reaches beyond the mask.
    pub fn crop(&self, part: &CropBox) -> Result<Self> {
        check_crop(part, self.width, self.height)?;
        Ok(Self { width: part.width, height: part.height, values: part.cut(&self.values, self.width, 1) })
    }
}
