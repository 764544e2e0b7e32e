//! Pictures as networks see them, channel by channel.

use super::image_set::scaled;
use crate::images::{Photo, Picture};
use crate::{Device, Result};
use candle_core::Tensor;

/// A picture's bytes, `[channel, row, column]`.
pub(super) struct Planes {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub values: Vec<u8>,
}

impl Planes {
    /// In one channel if the picture is grey or one is wanted, else in three.
    pub fn new(picture: &Picture, grey: bool, channels: Option<usize>) -> Self {
        let (rgb, count) = (picture.rgb(), picture.width() * picture.height());
        let mut values = Vec::with_capacity(3 * count);
        match (grey, channels) {
            (true, _) => values.extend(rgb.chunks_exact(3).map(|pixel| pixel[0])),
            (false, Some(1)) => values.extend(rgb.chunks_exact(3).map(luma)),
            (false, _) => (0..3).for_each(|c| values.extend(rgb.iter().skip(c).step_by(3))),
        }
        values.shrink_to_fit();
        Self { channels: values.len() / count, height: picture.height(), width: picture.width(), values }
    }
}

/// A photo as a network sees it, in 1 channel (its luma if it has colours) or in 3.
///
/// # Shapes
/// The result is `[1, channels, height, width]` in `[-1, 1]`, f32 on the CPU.
///
/// # Errors
/// If the tensor cannot be made.
pub fn network_input(photo: &Photo, channels: usize) -> Result<Tensor> {
    let planes = Planes::new(&photo.to_picture(), photo.color().is_grey(), Some(channels));
    let values: Vec<f32> = planes.values.iter().map(|&byte| scaled(byte)).collect();
    // One plane stands for three.
    let values = values.repeat(channels / planes.channels);
    Ok(Tensor::from_vec(values, (1, channels, planes.height, planes.width), &Device::Cpu)?)
}

/// The luma of ITU-R BT.601 in 16 fraction bits, which is Pillow's `convert("L")`.
fn luma(pixel: &[u8]) -> u8 {
    let weights = [19_595u32, 38_470, 7_471];
    let sum: u32 = pixel.iter().zip(weights).map(|(&value, weight)| u32::from(value) * weight).sum();
    ((sum + (1 << 15)) >> 16) as u8
}
