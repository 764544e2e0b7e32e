//! Resampling with the numbers of Pillow 13's `Image.resize(size, Image.LANCZOS)`, the same with `Image.BICUBIC`, and of torch's
//! `interpolate`.
//!
//! The filter is separable: rows, then columns. Where an axis shrinks, Pillow's filters are stretched by the factor, so that
//! every source pixel counts. Bytes are summed in fixed point and limited to 0..=255 after each of the two passes;
//! floats are summed in `f64` and not limited.

use rayon::prelude::*;

/// How a target sample's weights fall off with the distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// A windowed sinc with three lobes on either side.
    Lanczos,
    /// Keys' cubic with `a = -0.5`.
    Bicubic,
    /// A triangle that is never stretched, so a straight line between the two nearest samples: torch's
    /// `interpolate(mode="bilinear", align_corners=False)`, but for the places of samples, which it rounds to f32.
    Interpolation,
}

impl Filter {
    /// Beyond this distance there is no weight.
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
            Self::Interpolation => 1.0,
        }
    }

    /// How far it is stretched where an axis shrinks by the factor `scale`.
    fn stretch(self, scale: f64) -> f64 {
        if self == Self::Interpolation { 1.0 } else { scale.max(1.0) }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (std::f64::consts::PI * x).sin() / (std::f64::consts::PI * x) };
        match self {
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
            Self::Bicubic => {
                const A: f64 = -0.5;
                match x.abs() {
                    x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
            Self::Interpolation => (1.0 - x.abs()).max(0.0),
        }
    }
}

/// Fraction bits of a byte's weights: 32, less 8 for the sample and 2 for sums beyond its range.
const FRACTION_BITS: u32 = 32 - 8 - 2;
/// Samples of a row summed at once in the pass over columns: the sums stay in the first-level cache.
const STRIP: usize = 512;

/// What can be resampled: bytes and floats.
pub(super) trait Sample: Copy + Default + Send + Sync {
    /// The type of weights and sums.
    type Sum: Copy + Send + Sync;
    /// A sum of nothing.
    const START: Self::Sum;
    fn weight(weight: f64) -> Self::Sum;
    fn add(self, weight: Self::Sum, sum: Self::Sum) -> Self::Sum;
    fn finish(sum: Self::Sum) -> Self;
}

impl Sample for u8 {
    type Sum = i32;
    const START: i32 = 1 << (FRACTION_BITS - 1);

    fn weight(weight: f64) -> i32 {
        // Half away from zero.
        (weight * f64::from(1 << FRACTION_BITS)).round() as i32
    }

    fn add(self, weight: i32, sum: i32) -> i32 {
        sum + i32::from(self) * weight
    }

    fn finish(sum: i32) -> u8 {
        (sum >> FRACTION_BITS).clamp(0, 255) as u8
    }
}

impl Sample for f32 {
    type Sum = f64;
    const START: f64 = 0.0;

    fn weight(weight: f64) -> f64 {
        weight
    }

    fn add(self, weight: f64, sum: f64) -> f64 {
        sum + f64::from(self) * weight
    }

    fn finish(sum: f64) -> f32 {
        sum as f32
    }
}

/// The source samples that make one target sample: the first of them, and their weights, which add up to one.
struct Taps<W> {
    first: usize,
    weights: Vec<W>,
}

fn taps<T: Sample>(filter: Filter, from: usize, to: usize) -> Vec<Taps<T::Sum>> {
    let scale = from as f64 / to as f64;
    let stretch = filter.stretch(scale);
    let support = filter.support() * stretch;
    let tap = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        // The casts take a negative start to the picture's edge: what lies outside has no weight.
        let first = (centre - support + 0.5) as usize;
        let last = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> =
            (first..last).map(|x| filter.weight((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = weights.iter().sum();
        Taps { first, weights: weights.iter().map(|weight| T::weight(weight / sum)).collect() }
    };
    (0..to).map(tap).collect()
}

/// `data`, rows of `channels` interleaved samples, in another size. An axis that keeps its length is left as it is.
///
/// Both sizes are (width, height), nothing is zero, and there are one to four channels.
pub(super) fn lanczos<T: Sample>(data: &[T], channels: usize, from: (usize, usize), to: (usize, usize)) -> Vec<T> {
    resampled(Filter::Lanczos, data, channels, from, to)
}

/// The same by any filter.
pub(super) fn resampled<T: Sample>(
    filter: Filter,
    data: &[T],
    channels: usize,
    from: (usize, usize),
    to: (usize, usize),
) -> Vec<T> {
    let ((width, height), (to_width, to_height)) = (from, to);
    match (width != to_width, height != to_height) {
        (false, false) => data.to_vec(),
        (true, false) => across(filter, data, channels, width, to_width),
        (false, true) => down(filter, data, channels * width, height, to_height),
        // Pillow 13 starts with the columns where that axis loses more than twice the pixels, which is less work. The
        // order shows, because bytes are limited between the passes.
        (true, true) if to_height < height && height - to_height > 2 * width.saturating_sub(to_width) => {
            across(filter, &down(filter, data, channels * width, height, to_height), channels, width, to_width)
        }
        (true, true) => {
            down(filter, &across(filter, data, channels, width, to_width), channels * to_width, height, to_height)
        }
    }
}

/// The pass along rows.
fn across<T: Sample>(filter: Filter, data: &[T], channels: usize, from: usize, to: usize) -> Vec<T> {
    let pass = match channels {
        1 => across_channels::<T, 1>,
        2 => across_channels::<T, 2>,
        3 => across_channels::<T, 3>,
        _ => across_channels::<T, 4>,
    };
    pass(filter, data, from, to)
}

fn across_channels<T: Sample, const C: usize>(filter: Filter, data: &[T], from: usize, to: usize) -> Vec<T> {
    let taps = taps::<T>(filter, from, to);
    let mut out = vec![T::default(); data.len() / from * to];
    out.par_chunks_exact_mut(C * to).zip(data.par_chunks_exact(C * from)).for_each(|(out, row)| {
        for (out, tap) in out.chunks_exact_mut(C).zip(&taps) {
            let mut sums = [T::START; C];
            for (pixel, &weight) in row[C * tap.first..].chunks_exact(C).zip(&tap.weights) {
                for (sum, &sample) in sums.iter_mut().zip(pixel) {
                    *sum = sample.add(weight, *sum);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = T::finish(sum);
            }
        }
    });
    out
}

/// The pass along columns, over rows of `stride` samples.
fn down<T: Sample>(filter: Filter, data: &[T], stride: usize, from: usize, to: usize) -> Vec<T> {
    let taps = taps::<T>(filter, from, to);
    let mut out = vec![T::default(); stride * to];
    out.par_chunks_exact_mut(stride).zip(&taps).for_each(|(out, tap)| {
        for (strip, out) in out.chunks_mut(STRIP).enumerate() {
            let mut sums = [T::START; STRIP];
            for (y, &weight) in tap.weights.iter().enumerate() {
                let start = (tap.first + y) * stride + strip * STRIP;
                for (sum, &sample) in sums.iter_mut().zip(&data[start..start + out.len()]) {
                    *sum = sample.add(weight, *sum);
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = T::finish(sum);
            }
        }
    });
    out
}
