//! Eight-bit RGB pictures.

use super::average::averaged;
use super::photo::{check_crop, check_size};
use super::resample::{Filter, lanczos, resampled};
use super::{CropBox, Photo};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use std::path::Path;

/// An RGB picture, eight bits per channel, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) rgb: Vec<u8>,
}

/// How pictures are resized whose values are not rounded to bytes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatResizing {
    /// Pillow's `resize(size, BICUBIC)` of each channel as floats, in which every pixel counts. Values may go beyond 0 to 255.
    Bicubic,
    /// torch's `interpolate(mode="bilinear", align_corners=False)`, which looks at the four nearest pixels alone.
    Interpolation,
}

impl Picture {
    /// A picture from its bytes, three for each pixel.
    ///
    /// # Errors
    /// If there are more or fewer bytes than the size says.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        if rgb.len() != 3 * width * height {
            let fix = format!("a picture of {width}x{height} has {}", 3 * width * height);
            return Err(Error::invalid("the number of bytes", rgb.len(), fix));
        }
        Ok(Self { width, height, rgb })
    }

    /// From a decoder's output: `x / 2 + 0.5` limited to `[0, 1]`, times 255, rounded half to even. One
    /// channel becomes grey.
    ///
    /// # Shapes
    /// `[batch, 1 or 3, height, width]`; one picture for each of the batch.
    ///
    /// # Errors
    /// If the shape is another, or a value is not finite.
    pub fn from_tensor(x: &Tensor) -> Result<Vec<Self>> {
        let (batch, channels, height, width) = x.dims4()?;
        if channels != 1 && channels != 3 {
            return Err(Error::invalid("the number of channels", channels, "a picture has 1 or 3"));
        }
        let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let mut pictures = Vec::with_capacity(batch);
        for i in 0..batch {
            let pixels = x.get(i)?.permute((1, 2, 0))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
            let bad = pixels.iter().filter(|value| !value.is_finite()).count();
            if bad > 0 {
                return Err(Error::NotFinite {
                    stage: "the decoder".into(),
                    detail: format!("{bad} of {} values of image {i}", pixels.len()),
                    fix: "use `dtype` f32, or an autoencoder that does not overflow in half precision",
                });
            }
            let bytes =
                pixels.iter().map(|&value| ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8);
            let rgb = if channels == 3 { bytes.collect() } else { bytes.flat_map(|byte| [byte; 3]).collect() };
            pictures.push(Self::new(width, height, rgb)?);
        }
        Ok(pictures)
    }

    /// Reads a PNG, JPEG or WebP file as models see it: upright, eight bits, RGB, without alpha.
    ///
    /// # Errors
    /// As [`Photo::read`].
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Photo::read(path)?.to_picture())
    }

    /// What an encoder or a network gets: each byte as `2 * (byte / 255) - 1`, diffusers' `VaeImageProcessor`.
    ///
    /// # Shapes
    /// `[1, 3, height, width]`, f32, from -1 to 1.
    ///
    /// # Errors
    /// If it cannot be copied to the device.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        let values = (0..3).flat_map(|channel| self.rgb.iter().skip(channel).step_by(3));
        let values: Vec<f32> = values.map(|&byte| 2.0 * (f32::from(byte) / 255.0) - 1.0).collect();
        Ok(Tensor::from_vec(values, (1, 3, self.height, self.width), device)?)
    }

    /// In another size by Lanczos resampling, with the bytes of Pillow 13's `resize(size, LANCZOS)`.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn resized(&self, width: usize, height: usize) -> Result<Self> {
        check_size("the size to resize to", width, height)?;
        let rgb = lanczos(&self.rgb, 3, (self.width, self.height), (width, height));
        Ok(Self { width, height, rgb })
    }

    /// In another size by bicubic resampling, with the bytes of Pillow 13's `resize(size, BICUBIC)`.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn resized_bicubic(&self, width: usize, height: usize) -> Result<Self> {
        check_size("the size to resize to", width, height)?;
        let rgb = resampled(Filter::Bicubic, &self.rgb, 3, (self.width, self.height), (width, height));
        Ok(Self { width, height, rgb })
    }

    /// The bytes as floats in another size, three for each pixel, not rounded.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn resized_floats(&self, width: usize, height: usize, resizing: FloatResizing) -> Result<Vec<f32>> {
        check_size("the size to resize to", width, height)?;
        let floats: Vec<f32> = self.rgb.iter().map(|&byte| byte.into()).collect();
        let filter = match resizing {
            FloatResizing::Bicubic => Filter::Bicubic,
            FloatResizing::Interpolation => Filter::Interpolation,
        };
        Ok(resampled(filter, &floats, 3, (self.width, self.height), (width, height)))
    }

    /// In another size by area: each pixel is the mean of what it covers, so a half is the mean of each two by two.
    ///
    /// # Errors
    /// If the size is zero or too large.
    pub fn averaged(&self, width: usize, height: usize) -> Result<Self> {
        check_size("the size to resize to", width, height)?;
        let rgb = averaged(&self.rgb, 3, (self.width, self.height), (width, height));
        Ok(Self { width, height, rgb })
    }

    /// The pixels of a rectangle.
    ///
    /// # Errors
    /// If the rectangle is empty or reaches beyond the picture.
    pub fn crop(&self, part: &CropBox) -> Result<Self> {
        check_crop(part, self.width, self.height)?;
        Ok(Self { width: part.width, height: part.height, rgb: part.cut(&self.rgb, self.width, 3) })
    }

    /// Pictures of one size side by side in rows of `columns`, `gap` white pixels between.
    ///
    /// # Errors
    /// If there are none, or their sizes differ.
    pub fn grid(pictures: &[Self], columns: usize, gap: usize) -> Result<Self> {
        let Some(first) = pictures.first() else {
            return Err(Error::invalid("the number of pictures", 0, "a grid needs at least one"));
        };
        if let Some(other) = pictures.iter().find(|p| (p.width, p.height) != (first.width, first.height)) {
            let fix = format!("all pictures of a grid have one size, here {}x{}", first.width, first.height);
            return Err(Error::invalid("a picture's size", format!("{}x{}", other.width, other.height), fix));
        }
        let columns = columns.clamp(1, pictures.len());
        let rows = pictures.len().div_ceil(columns);
        let (width, height) = (columns * (first.width + gap) - gap, rows * (first.height + gap) - gap);
        let mut rgb = vec![255; 3 * width * height];
        for (i, picture) in pictures.iter().enumerate() {
            let (left, top) = (i % columns * (first.width + gap), i / columns * (first.height + gap));
            for (y, row) in picture.rgb.chunks_exact(3 * first.width).enumerate() {
                let start = 3 * ((top + y) * width + left);
                rgb[start..start + row.len()].copy_from_slice(row);
            }
        }
        Self::new(width, height, rgb)
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The bytes, three for each pixel, row by row.
    pub fn rgb(&self) -> &[u8] {
        &self.rgb
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_bytes_by_clamping_and_rounding_half_to_even() -> Result<()> {
        // Zero is halfway between levels 127 and 128.
        let level = |v: f32| v / 255.0 * 2.0 - 1.0;
        let x = Tensor::new(&[-3.0f32, level(41.6), 0.0, 3.0], &Device::Cpu)?.reshape((1, 1, 2, 2))?;
        let pictures = Picture::from_tensor(&x)?;
        let grey: Vec<u8> = pictures[0].rgb().chunks_exact(3).map(|pixel| pixel[0]).collect();
        assert_eq!(grey, [0, 42, 128, 255]);
        Ok(())
    }

    #[test]
    fn not_a_number_is_an_error() -> Result<()> {
        let x = Tensor::new(&[f32::NAN, 0.0, 0.0, 0.0], &Device::Cpu)?.reshape((1, 1, 2, 2))?;
        assert!(Picture::from_tensor(&x).is_err_and(|e| e.to_string().contains("1 of 4 values")));
        Ok(())
    }

    #[test]
    fn a_grid_keeps_every_picture() -> Result<()> {
        let picture = |value| Picture::new(2, 1, vec![value; 6]);
        let grid = Picture::grid(&[picture(1)?, picture(2)?, picture(3)?], 2, 1)?;
        assert_eq!((grid.width(), grid.height()), (5, 3));
        let at = |x: usize, y: usize| grid.rgb()[3 * (y * 5 + x)];
        assert_eq!([at(0, 0), at(2, 0), at(3, 0), at(0, 2), at(3, 2)], [1, 255, 2, 3, 255]);
        Ok(())
    }
}
