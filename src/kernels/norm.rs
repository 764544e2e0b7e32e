//! Group and layer normalisation, with an activation in the same pass.

use super::simd::multiversion;
use super::{Kernel, Real, apply, gradient_by_definition, zeros};
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

/// What follows a normalisation at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * sigmoid(x)`.
    Silu,
}

/// Rows that one task sums; fixed, so that sums do not depend on the number of threads.
const ROWS_PER_TASK: usize = 256;

/// Group normalisation over `[batch, pixels, channels]` (Wu and He 2018), then the activation.
///
/// # Shapes
/// `x`: `[batch, pixels, channels]`, `channels` a multiple of `groups`; `weight` and `bias`: `[channels]`;
/// the result is as `x`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn group_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    epsilon: f64,
    activation: Activation,
) -> Result<Tensor> {
    apply(GroupNorm { groups, epsilon, activation }, [x, weight, bias])
}

/// What [`group_norm`] computes, in candle's own operations.
///
/// # Errors
/// If the shapes do not fit.
pub fn group_norm_definition(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    epsilon: f64,
    activation: Activation,
) -> Result<Tensor> {
    let (batch, pixels, channels) = x.dims3()?;
    let x = x.reshape((batch, pixels, groups, channels / groups))?;
    let centred = x.broadcast_sub(&x.mean_keepdim((1, 3))?)?;
    let variance = centred.sqr()?.mean_keepdim((1, 3))?;
    let normed = centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?.reshape((batch, pixels, channels))?;
    let y = normed.broadcast_mul(weight)?.broadcast_add(bias)?;
    match activation {
        Activation::None => Ok(y),
        Activation::Silu => y.silu(),
    }
}

struct GroupNorm {
    groups: usize,
    epsilon: f64,
    activation: Activation,
}

impl Kernel for GroupNorm {
    const NAME: &'static str = "group-norm";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let channels = *x.last()?;
        let fits = x.len() == 3 && channels.is_multiple_of(self.groups) && weight == [channels] && bias == [channels];
        fits.then(|| x.to_vec())
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], [shape, ..]: [&[usize]; 3]) -> Vec<T> {
        let mut y = zeros::<T>(x.len());
        let image_len = shape[1] * shape[2];
        for (x, y) in x.chunks_exact(image_len).zip(y.chunks_exact_mut(image_len)) {
            self.image(x, weight, bias, y);
        }
        y
    }

    fn backward(&self, arguments: [&Tensor; 3], grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        gradient_by_definition(arguments, grad, |[x, weight, bias]| {
            group_norm_definition(x, weight, bias, self.groups, self.epsilon, self.activation)
        })
    }
}

impl GroupNorm {
    fn image<T: Real>(&self, x: &[T], weight: &[T], bias: &[T], y: &mut [T]) {
        let channels = weight.len();
        let task_len = ROWS_PER_TASK * channels;
        let partial: Vec<Vec<f64>> = x.par_chunks(task_len).map(|rows| channel_sums(rows, channels)).collect();
        let mut sums = vec![0.0; 2 * channels];
        for task in &partial {
            sums.iter_mut().zip(task).for_each(|(sum, part)| *sum += part);
        }
        // y = x * scale + shift per channel.
        let (mut scale, mut shift) = (zeros::<T>(channels), zeros::<T>(channels));
        let per_group = channels / self.groups;
        let count = (x.len() / channels * per_group) as f64;
        for first in (0..channels).step_by(per_group) {
            let group = first..first + per_group;
            let mean = sums[group.clone()].iter().sum::<f64>() / count;
            let squares = sums[channels + first..channels + first + per_group].iter().sum::<f64>() / count;
            let inverse = 1.0 / ((squares - mean * mean).max(0.0) + self.epsilon).sqrt();
            for c in group {
                let factor = weight[c].to_f64() * inverse;
                scale[c] = T::from_f64(factor);
                shift[c] = T::from_f64(bias[c].to_f64() - mean * factor);
            }
        }
        y.par_chunks_mut(task_len).zip(x.par_chunks(task_len)).for_each(|(y, x)| {
            scale_rows(x, &scale, &shift, self.activation == Activation::Silu, y);
        });
    }
}

multiversion! {
    /// The sums and the sums of squares of each channel, in f64: exact enough for the difference of the
    /// mean square and the squared mean.
    fn channel_sums<T: Real>(rows: &[T], channels: usize) -> Vec<f64> {
        let mut sums = vec![0.0f64; 2 * channels];
        let (plain, squared) = sums.split_at_mut(channels);
        for row in rows.chunks_exact(channels) {
            for ((x, sum), squares) in row.iter().zip(plain.iter_mut()).zip(squared.iter_mut()) {
                let x = x.to_f64();
                *sum += x;
                *squares += x * x;
            }
        }
        sums
    }
}

multiversion! {
    fn scale_rows<T: Real>(x: &[T], scale: &[T], shift: &[T], silu: bool, y: &mut [T]) {
        let channels = scale.len();
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = *x * *scale + *shift;
            }
            if silu {
                for y in y.iter_mut() {
                    *y /= T::one() + (T::zero() - *y).exp_approx();
                }
            }
        }
    }
}

/// Layer normalisation over the last dimension (Ba et al. 2016).
///
/// # Shapes
/// `x`: `[..., width]`; `weight` and `bias`: `[width]`; the result is as `x`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    apply(LayerNorm { epsilon }, [x, weight, bias])
}

/// What [`layer_norm`] computes, in candle's own operations.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm_definition(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?;
    normed.broadcast_mul(weight)?.broadcast_add(bias)
}

struct LayerNorm {
    epsilon: f64,
}

impl Kernel for LayerNorm {
    const NAME: &'static str = "layer-norm";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let width = *x.last()?;
        (width > 0 && weight == [width] && bias == [width]).then(|| x.to_vec())
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], _: [&[usize]; 3]) -> Vec<T> {
        let mut y = zeros::<T>(x.len());
        let task_len = ROWS_PER_TASK * weight.len();
        y.par_chunks_mut(task_len).zip(x.par_chunks(task_len)).for_each(|(y, x)| {
            normalise_rows(x, weight, bias, self.epsilon, y);
        });
        y
    }

    fn backward(&self, arguments: [&Tensor; 3], grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        gradient_by_definition(arguments, grad, |[x, weight, bias]| {
            layer_norm_definition(x, weight, bias, self.epsilon)
        })
    }
}

multiversion! {
    fn normalise_rows<T: Real>(x: &[T], weight: &[T], bias: &[T], epsilon: f64, y: &mut [T]) {
        let width = weight.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let mean = x.iter().map(|v| v.to_f64()).sum::<f64>() / width as f64;
            let variance = x.iter().map(|v| (v.to_f64() - mean) * (v.to_f64() - mean)).sum::<f64>() / width as f64;
            let (mean, inverse) = (T::from_f64(mean), T::from_f64(1.0 / (variance + epsilon).sqrt()));
            for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (*x - mean) * inverse * *weight + *bias;
            }
        }
    }
}
