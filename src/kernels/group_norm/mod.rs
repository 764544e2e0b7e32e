//! Group normalisation, with an activation in the same pass.

mod gradient;

use super::simd::multiversion;
use super::values::from_f64;
use super::{Kernel, Needed, Real, apply, written};
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

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

/// Group normalisation over `[batch, ..., channels]` (Wu and He 2018), then the activation. With a weight and a bias for each
/// image it is the adaptive one of Dhariwal and Nichol (2021, section 3.1).
///
/// # Shapes
/// `x`: `[batch, ..., channels]`, `channels` a multiple of `groups`; `weight` and `bias`: `[channels]` or `[batch, channels]`,
/// both alike; the result is as `x`.
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
    let shape = x.shape();
    let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let pixels = x.elem_count() / (batch * channels).max(1);
    let x = x.reshape((batch, pixels, groups, channels / groups))?;
    let centred = x.broadcast_sub(&x.mean_keepdim((1, 3))?)?;
    let variance = centred.sqr()?.mean_keepdim((1, 3))?;
    let normed = centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?.reshape(shape)?;
    // One value for each channel, or for each image and channel.
    let beside = |values: &Tensor| match values.rank() {
        1 => Ok(values.clone()),
        _ => values.reshape([&[batch][..], &vec![1; shape.rank() - 2], &[channels]].concat()),
    };
    let y = normed.broadcast_mul(&beside(weight)?)?.broadcast_add(&beside(bias)?)?;
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

impl Kernel<3> for GroupNorm {
    const NAME: &'static str = "group-norm";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let channels = *x.last()?;
        let alike = weight == bias && (weight == [channels] || weight == [x[0], channels]);
        (x.len() >= 2 && channels.is_multiple_of(self.groups) && alike).then(|| x.to_vec())
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], [shape, ..]: [&[usize]; 3]) -> Vec<T> {
        let channels = shape[shape.len() - 1];
        let image_len = (x.len() / shape[0].max(1)).max(1);
        let task_len = ROWS_PER_TASK * channels;
        let silu = self.activation == Activation::Silu;
        let write = |at: Range<usize>, y: &mut [MaybeUninit<T>]| {
            let image = at.start / image_len;
            let x = &x[at];
            let (weight, bias) = (of_image(weight, image, channels), of_image(bias, image, channels));
            let affine = self.statistics(x, channels).affine(weight, bias);
            let tasks = y.par_chunks_mut(task_len).zip(x.par_chunks(task_len));
            tasks.for_each(|(y, x)| scale_rows(x, &affine.scale, &affine.shift, silu, y));
        };
        // SAFETY: a part is an image, and `scale_rows` sets all that it is given.
        unsafe { written(x.len(), image_len, write) }
    }

    fn backward<T: Real>(
        &self,
        [x, weight, bias]: [&[T]; 3],
        [shape, ..]: [&[usize]; 3],
        _: &[T],
        grad: &[T],
        _: Needed<3>,
    ) -> [Vec<T>; 3] {
        let channels = shape[shape.len() - 1];
        let image_len = (x.len() / shape[0].max(1)).max(1);
        let task_len = ROWS_PER_TASK * channels;
        let images: Vec<_> = x
            .par_chunks_exact(image_len)
            .zip(grad.par_chunks_exact(image_len))
            .enumerate()
            .map(|(i, (x, grad))| {
                self.image_gradient(x, of_image(weight, i, channels), of_image(bias, i, channels), grad)
            })
            .collect();
        let write = |at: Range<usize>, grad_x: &mut [MaybeUninit<T>]| {
            let image = &images[at.start / image_len];
            let tasks = grad_x.par_chunks_mut(task_len).zip(x[at.clone()].par_chunks(task_len));
            tasks.zip(grad[at].par_chunks(task_len)).for_each(|((grad_x, x), grad)| image.write(x, grad, grad_x));
        };
        // SAFETY: a part is an image, all of which is set.
        let grad_x = unsafe { written(x.len(), image_len, write) };
        let (mut grad_weight, mut grad_bias) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        for (i, image) in images.iter().enumerate() {
            // All images add to one row, or each to its own.
            let row = if weight.len() == channels { 0 } else { i * channels };
            grad_weight[row..].iter_mut().zip(&image.sums.products).for_each(|(sum, value)| *sum += value);
            grad_bias[row..].iter_mut().zip(&image.sums.plain).for_each(|(sum, value)| *sum += value);
        }
        [grad_x, from_f64(&grad_weight), from_f64(&grad_bias)]
    }
}

/// The values of an image, of which there is a row for all or one for each.
fn of_image<T>(values: &[T], image: usize, channels: usize) -> &[T] {
    if values.len() == channels { values } else { &values[image * channels..][..channels] }
}

/// Mean and inverse standard deviation of the group that each channel is in.
struct Statistics {
    mean: Vec<f64>,
    inverse: Vec<f64>,
}

/// `y = x * scale + shift` for each channel.
struct Affine<T> {
    scale: Vec<T>,
    shift: Vec<T>,
}

impl Statistics {
    fn affine<T: Real>(&self, weight: &[T], bias: &[T]) -> Affine<T> {
        let factors = || weight.iter().zip(&self.inverse).map(|(weight, inverse)| weight.to_f64() * inverse);
        let shifts = factors().zip(bias).zip(&self.mean).map(|((factor, bias), mean)| bias.to_f64() - mean * factor);
        Affine { scale: factors().map(T::from_f64).collect(), shift: shifts.map(T::from_f64).collect() }
    }
}

impl GroupNorm {
    fn statistics<T: Real>(&self, x: &[T], channels: usize) -> Statistics {
        let partial: Vec<Vec<f64>> =
            x.par_chunks(ROWS_PER_TASK * channels).map(|rows| channel_sums(rows, channels)).collect();
        let mut sums = vec![0.0; 2 * channels];
        for task in &partial {
            sums.iter_mut().zip(task).for_each(|(sum, part)| *sum += part);
        }
        let per_group = channels / self.groups;
        let count = (x.len() / channels * per_group) as f64;
        let (mut mean, mut inverse) = (Vec::with_capacity(channels), Vec::with_capacity(channels));
        for (plain, squared) in sums[..channels].chunks_exact(per_group).zip(sums[channels..].chunks_exact(per_group)) {
            let average = plain.iter().sum::<f64>() / count;
            let variance = (squared.iter().sum::<f64>() / count - average * average).max(0.0);
            mean.resize(mean.len() + per_group, average);
            inverse.resize(inverse.len() + per_group, 1.0 / (variance + self.epsilon).sqrt());
        }
        Statistics { mean, inverse }
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
    fn scale_rows<T: Real, FUSED>(x: &[T], scale: &[T], shift: &[T], silu: bool, y: &mut [MaybeUninit<T>]) {
        let channels = scale.len();
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let values = y.iter_mut().zip(x).zip(scale).zip(shift);
            if silu {
                for (((y, &x), &scale), &shift) in values {
                    let x = x * scale + shift;
                    y.write(x / (T::one() + (T::zero() - x).exp_approx::<FUSED>()));
                }
            } else {
                values.for_each(|(((y, &x), &scale), &shift)| _ = y.write(x * scale + shift));
            }
        }
    }
}
