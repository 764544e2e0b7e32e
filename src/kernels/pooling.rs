//! Maxima and means of the pixels under a window that moves over channels-last images.

use super::{ConvGeometry, Kernel, Needed, Real, apply_1, zeros};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// What is taken of the pixels under a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The largest value, of those inside the image.
    Max,
    /// The mean of those inside the image: torch's `count_include_pad=False`.
    Mean,
    /// The mean of all, where padding is zeros: torch's `count_include_pad=True`.
    PaddedMean,
}

/// Pooling: the size, step and padding of the window are those of a convolution's kernel.
///
/// # Shapes
/// `x`: `[batch, height, width, channels]`; the result is `[batch, height', width', channels]`.
///
/// # Errors
/// If `x` has another rank or is smaller than the window, the padding is as large as the window, or the element type is neither f32
/// nor f64.
pub fn pool2d(x: &Tensor, pooling: Pooling, window: ConvGeometry) -> Result<Tensor> {
    apply_1(Pool { pooling, window }, x)
}

/// The same in candle's operations, along two axes one after the other. Maxima are compared in pairs, since candle's reduction gives
/// the whole gradient to each of several equal values.
///
/// # Shapes
/// `x`: any, with height and width at `axes`.
///
/// # Errors
/// If a side is smaller than the window.
pub fn pool2d_definition(x: &Tensor, pooling: Pooling, window: ConvGeometry, axes: [usize; 2]) -> Result<Tensor> {
    let sides = [x.dim(axes[0])?, x.dim(axes[1])?];
    if !window.fits(sides) {
        candle_core::bail!("pool: a window of {window:?} does not fit into {sides:?}");
    }
    let outputs = window.output_sides(sides);
    (0..2).try_fold(x.clone(), |x, i| {
        let (axis, side, before, after) = (axes[i], sides[i], window.pad_before[i], window.pad_after[i]);
        let padded = match pooling {
            // The edge again changes no maximum.
            Pooling::Max => x.pad_with_same(axis, before, after)?,
            Pooling::Mean | Pooling::PaddedMean => x.pad_with_zeros(axis, before, after)?,
        };
        let tap = |tap: usize| {
            let seen = Tensor::from_iter((0..outputs[i]).map(|at| (at * window.stride + tap) as u32), x.device())?;
            padded.index_select(&seen, axis)
        };
        let pooled = (1..window.kernel[i]).try_fold(tap(0)?, |pooled, at| match pooling {
            Pooling::Max => pooled.maximum(&tap(at)?),
            Pooling::Mean | Pooling::PaddedMean => pooled + tap(at)?,
        })?;
        let share = |at: usize| match pooling {
            Pooling::Max => 1.0,
            Pooling::Mean => 1.0 / inside(window, i, at, side).len() as f64,
            Pooling::PaddedMean => 1.0 / window.kernel[i] as f64,
        };
        let mut shape = vec![1; x.rank()];
        shape[axis] = outputs[i];
        let shares = Tensor::from_iter((0..outputs[i]).map(share), x.device())?;
        pooled.broadcast_mul(&shares.to_dtype(x.dtype())?.reshape(shape)?)
    })
}

/// Which pixels of a side a window sees along an axis.
fn inside(window: ConvGeometry, axis: usize, at: usize, side: usize) -> Range<usize> {
    let (start, before) = (at * window.stride, window.pad_before[axis]);
    start.saturating_sub(before)..(start + window.kernel[axis]).saturating_sub(before).min(side)
}

/// Output pixels that one task makes at least.
const MIN_PIXELS: usize = 64;

struct Pool {
    pooling: Pooling,
    window: ConvGeometry,
}

impl Pool {
    /// The pixels of an image `[height, width]` that each output pixel sees, in the order of these.
    fn windows(&self, sides: [usize; 2]) -> impl Iterator<Item = [Range<usize>; 2]> + use<> {
        let (window, [rows, columns]) = (self.window, self.window.output_sides(sides));
        (0..rows * columns)
            .map(move |at| [inside(window, 0, at / columns, sides[0]), inside(window, 1, at % columns, sides[1])])
    }

    /// What each of so many pixels counts for in a mean.
    fn share<T: Real>(&self, count: usize) -> T {
        let [height, width] = self.window.kernel;
        T::from_f64(1.0 / (if self.pooling == Pooling::PaddedMean { height * width } else { count }) as f64)
    }
}

/// The pixels of a window in an image.
fn pixels(window: [Range<usize>; 2], width: usize, channels: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let [rows, columns] = window;
    let of_row = move |y: usize| columns.clone().map(move |x| (y * width + x) * channels);
    rows.flat_map(of_row).map(move |start| start..start + channels)
}

impl Kernel<1> for Pool {
    const NAME: &'static str = "pool";

    fn shape(&self, [x]: [&[usize]; 1]) -> Option<Vec<usize>> {
        let &[batch, height, width, channels] = x else { return None };
        let ConvGeometry { kernel, pad_before, pad_after, .. } = self.window;
        let seen = (0..2).all(|axis| pad_before[axis].max(pad_after[axis]) < kernel[axis]);
        let [rows, columns] = self.window.output_sides([height, width]);
        (seen && self.window.fits([height, width]) && channels > 0).then(|| vec![batch, rows, columns, channels])
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1], [shape]: [&[usize]; 1]) -> Vec<T> {
        let [batch, height, width, channels] = [shape[0], shape[1], shape[2], shape[3]];
        let windows: Vec<_> = self.windows([height, width]).collect();
        let mut out = zeros::<T>(batch * windows.len() * channels);
        out.par_chunks_exact_mut(channels).with_min_len(MIN_PIXELS).enumerate().for_each(|(i, out)| {
            let image = &x[i / windows.len() * height * width * channels..][..height * width * channels];
            let seen = pixels(windows[i % windows.len()].clone(), width, channels).map(|pixel| &image[pixel]);
            match self.pooling {
                Pooling::Max => {
                    out.fill(T::NEG_INFINITY);
                    for pixel in seen {
                        out.iter_mut()
                            .zip(pixel)
                            .for_each(|(out, &value)| *out = if value > *out { value } else { *out });
                    }
                }
                Pooling::Mean | Pooling::PaddedMean => {
                    let share = self.share::<T>(seen.clone().count());
                    for pixel in seen {
                        out.iter_mut().zip(pixel).for_each(|(out, &value)| *out += value);
                    }
                    out.iter_mut().for_each(|out| *out *= share);
                }
            }
        });
        out
    }

    fn backward<T: Real>(
        &self,
        [x]: [&[T]; 1],
        [shape]: [&[usize]; 1],
        result: &[T],
        grad: &[T],
        _: Needed<1>,
    ) -> [Vec<T>; 1] {
        let [height, width, channels] = [shape[1], shape[2], shape[3]];
        let windows: Vec<_> = self.windows([height, width]).collect();
        let (image, pooled) = (height * width * channels, windows.len() * channels);
        let mut grad_x = zeros::<T>(x.len());
        let images = grad_x.par_chunks_exact_mut(image).zip(x.par_chunks_exact(image));
        let results = result.par_chunks_exact(pooled).zip(grad.par_chunks_exact(pooled));
        images.zip(results).for_each(|((grad_x, x), (result, grad))| {
            let of_windows = result.chunks_exact(channels).zip(grad.chunks_exact(channels));
            for (window, (largest, grad)) in windows.iter().zip(of_windows) {
                let seen = pixels(window.clone(), width, channels);
                let mut shares = vec![self.share::<T>(seen.clone().count()); channels];
                if self.pooling == Pooling::Max {
                    for (channel, share) in shares.iter_mut().enumerate() {
                        let equal = seen.clone().filter(|pixel| x[pixel.start + channel] == largest[channel]).count();
                        *share = self.share::<T>(equal.max(1));
                    }
                }
                for pixel in seen {
                    for channel in 0..channels {
                        let at = pixel.start + channel;
                        if self.pooling != Pooling::Max || x[at] == largest[channel] {
                            grad_x[at] += shares[channel] * grad[channel];
                        }
                    }
                }
            }
        });
        [grad_x]
    }
}
