//! Nearest-neighbour resampling of channels-last images.

use super::{Kernel, Needed, Real, apply_1, copy_to, written, zeros};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The nearest neighbour's value at every pixel of a new size: source index `floor(i * source / target)`.
///
/// # Shapes
/// `x`: `[batch, h, w, channels]`; the result is `[batch, height, width, channels]`.
///
/// # Errors
/// If `x` has another rank, a side of it or of the result is zero, or the element type is neither f32 nor f64.
pub fn resize_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    apply_1(Nearest { height, width }, x)
}

struct Nearest {
    height: usize,
    width: usize,
}

impl Kernel<1> for Nearest {
    const NAME: &'static str = "resize-nearest";

    fn shape(&self, [x]: [&[usize]; 1]) -> Option<Vec<usize>> {
        let &[batch, h, w, channels] = x else { return None };
        let sides = [h, w, self.height, self.width];
        (!sides.contains(&0)).then(|| vec![batch, self.height, self.width, channels])
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1], [shape]: [&[usize]; 1]) -> Vec<T> {
        let [batch, h, w, channels] = [shape[0], shape[1], shape[2], shape[3]];
        let row_len = self.width * channels;
        let write = |at: Range<usize>, out: &mut [MaybeUninit<T>]| {
            let row = at.start / row_len;
            let (image, y) = (row / self.height, row % self.height * h / self.height);
            let source = &x[(image * h + y) * w * channels..][..w * channels];
            for (i, pixel) in out.chunks_exact_mut(channels).enumerate() {
                copy_to(pixel, &source[i * w / self.width * channels..][..channels]);
            }
        };
        // SAFETY: a part is a row, and all its pixels are set.
        unsafe { written(batch * self.height * row_len, row_len, write) }
    }

    fn backward<T: Real>(
        &self,
        [x]: [&[T]; 1],
        [shape]: [&[usize]; 1],
        _: &[T],
        grad: &[T],
        _: Needed<1>,
    ) -> [Vec<T>; 1] {
        let [h, w, channels] = [shape[1], shape[2], shape[3]];
        let mut grad_x = zeros::<T>(x.len());
        let images = grad.par_chunks_exact((self.height * self.width * channels).max(1));
        grad_x.par_chunks_exact_mut((h * w * channels).max(1)).zip(images).for_each(|(grad_x, grad)| {
            for (i, grad) in grad.chunks_exact(channels).enumerate() {
                let (y, x) = (i / self.width * h / self.height, i % self.width * w / self.width);
                let pixel = &mut grad_x[(y * w + x) * channels..][..channels];
                pixel.iter_mut().zip(grad).for_each(|(pixel, &grad)| *pixel += grad);
            }
        });
        [grad_x]
    }
}
