//! What a group norm sums over an image, which may come in parts.

use super::super::meter::{self, Pass};
use super::super::operation::{contiguous, for_real, on_cpu};
use super::super::simd::multiversion;
use super::super::{Real, is_dry_run};
use super::{GroupNorm, NAME, Statistics};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Pixels that one task sums; fixed, so that sums do not depend on the number of threads.
pub(super) const PIXELS_PER_TASK: usize = 256;

/// The sums and the sums of squares of an image's channels, in f64. The image may come in parts of any number of pixels, from
/// the first to the last: the sums are those of the whole to the bit, as they are taken over the same pixels in the same order.
#[derive(Debug, Clone)]
pub(crate) struct ChannelSums {
    /// Of the tasks' pixels that are complete: of the values of each channel, then of their squares.
    complete: Vec<f64>,
    /// Of those of the next task that there were.
    begun: Vec<f64>,
    pixels: usize,
}

impl ChannelSums {
    /// Of no pixels.
    pub fn new(channels: usize) -> Self {
        Self { complete: vec![0.0; 2 * channels], begun: vec![0.0; 2 * channels], pixels: 0 }
    }

    /// Adds the next pixels of the image.
    ///
    /// # Shapes
    /// `x`: `[1, ..., channels]`, contiguous.
    ///
    /// # Errors
    /// If the shape does not fit, or the element type is neither f32 nor f64.
    pub fn add(&mut self, x: &Tensor) -> Result<()> {
        let dims = x.dims();
        if dims.first() != Some(&1) || dims.last() != Some(&self.channels()) {
            candle_core::bail!("{NAME}: shape {dims:?} is not that of an image of {} channels", self.channels());
        }
        let (storage, layout) = x.storage_and_layout();
        for_real!(on_cpu(&storage, NAME)?, NAME, T => {
            let values = contiguous::<T>(on_cpu(&storage, NAME)?, layout, NAME)?;
            meter::measured((NAME, Pass::Forward), || 0, || self.add_pixels(values));
            Ok(())
        })
    }

    fn channels(&self) -> usize {
        self.complete.len() / 2
    }

    pub(super) fn add_pixels<T: Real>(&mut self, x: &[T]) {
        let channels = self.channels();
        let begun = self.pixels % PIXELS_PER_TASK;
        let missing = (begun.next_multiple_of(PIXELS_PER_TASK) - begun) * channels;
        let (first, rest) = x.split_at(missing.min(x.len()));
        self.pixels += x.len() / channels;
        if is_dry_run() {
            return;
        }
        add_to_sums(first, &mut self.begun);
        if first.len() == missing {
            self.complete_task();
        }
        let (tasks, last) = rest.split_at(rest.len() / (PIXELS_PER_TASK * channels) * PIXELS_PER_TASK * channels);
        let sums = |x: &[T]| {
            let mut sums = vec![0.0; 2 * channels];
            add_to_sums(x, &mut sums);
            sums
        };
        let parts: Vec<Vec<f64>> = tasks.par_chunks(PIXELS_PER_TASK * channels).map(sums).collect();
        for part in &parts {
            self.complete.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        add_to_sums(last, &mut self.begun);
    }

    fn complete_task(&mut self) {
        self.complete.iter_mut().zip(&mut self.begun).for_each(|(sum, part)| *sum += std::mem::take(part));
    }

    /// Mean and inverse standard deviation of the groups, over all pixels that there were.
    pub(super) fn statistics(mut self, norm: &GroupNorm) -> Statistics {
        self.complete_task();
        let channels = self.channels();
        let per_group = channels / norm.groups;
        let count = (self.pixels * per_group) as f64;
        let (plain, squared) = self.complete.split_at(channels);
        let (mut mean, mut inverse) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for (plain, squared) in plain.chunks_exact(per_group).zip(squared.chunks_exact(per_group)) {
            let average = plain.iter().sum::<f64>() / count;
            let variance = (squared.iter().sum::<f64>() / count - average * average).max(0.0);
            mean.resize(mean.len() + per_group, average);
            inverse.resize(inverse.len() + per_group, 1.0 / (variance + norm.epsilon).sqrt());
        }
        Statistics { mean, inverse }
    }
}

multiversion! {
    /// Adds the values of each channel and their squares, in f64: exact enough for the difference of the mean square and the
    /// squared mean.
    fn add_to_sums<T: Real>(pixels: &[T], sums: &mut [f64]) {
        let channels = sums.len() / 2;
        let (plain, squared) = sums.split_at_mut(channels);
        for pixel in pixels.chunks_exact(channels.max(1)) {
            for ((x, sum), squares) in pixel.iter().zip(plain.iter_mut()).zip(squared.iter_mut()) {
                let x = x.to_f64();
                *sum += x;
                *squares += x * x;
            }
        }
    }
}
