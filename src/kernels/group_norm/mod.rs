//! Group normalisation, with an activation in the same pass.

mod gradient;
mod sums;

pub(crate) use sums::ChannelSums;

use super::meter::{self, Pass};
use super::operation::{contiguous, for_real, on_cpu};
use super::simd::multiversion;
use super::values::from_f64;
use super::{Kernel, Needed, Real, apply, written};
use candle_core::{D, Device, Result, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use sums::PIXELS_PER_TASK;

/// What follows a normalisation at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// `x * sigmoid(x)`.
    Silu,
}

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

/// [`group_norm`] of some pixels of an image whose sums are known: they get the bits that they have in the whole image. No
/// gradient is taken of it.
///
/// # Shapes
/// `x`: `[1, ..., channels]`, contiguous; `weight` and `bias`: `[channels]`; the result is as `x`.
///
/// # Errors
/// As [`group_norm`]; and if a gradient is asked for.
pub(crate) fn group_norm_of_part(
    x: &Tensor,
    sums: &ChannelSums,
    [weight, bias]: [&Tensor; 2],
    groups: usize,
    epsilon: f64,
    activation: Activation,
) -> Result<Tensor> {
    let norm = GroupNorm { groups, epsilon, activation };
    let (shape, channels) = (x.dims(), x.dim(D::Minus1)?);
    let fits =
        shape[0] == 1 && weight.dims() == [channels] && norm.shape([shape, weight.dims(), bias.dims()]).is_some();
    if !fits || [x, weight, bias].into_iter().any(Tensor::track_op) {
        candle_core::bail!("{NAME}: shape {shape:?} is not that of an image's part, or a gradient is asked for");
    }
    let [x, weight, bias] = [x, weight, bias].map(Tensor::storage_and_layout);
    for_real!(on_cpu(&x.0, NAME)?, NAME, T => {
        let mut slices: [&[T]; 3] = [&[]; 3];
        for (slice, (storage, layout)) in slices.iter_mut().zip([&x, &weight, &bias]) {
            *slice = contiguous(on_cpu(storage, NAME)?, layout, NAME)?;
        }
        let [x, weight, bias] = slices;
        let affine = sums.clone().statistics(&norm).affine(weight, bias);
        // SAFETY: there is one part, all of which is set.
        let part = || unsafe { written(x.len(), x.len(), |_, y| norm.write(x, &affine, y)) };
        Tensor::from_vec(meter::measured((NAME, Pass::Forward), || 0, part), shape, &Device::Cpu)
    })
}

const NAME: &str = "group-norm";

struct GroupNorm {
    groups: usize,
    epsilon: f64,
    activation: Activation,
}

impl Kernel<3> for GroupNorm {
    const NAME: &'static str = NAME;

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let channels = *x.last()?;
        let alike = weight == bias && (weight == [channels] || weight == [x[0], channels]);
        (x.len() >= 2 && channels.is_multiple_of(self.groups) && alike).then(|| x.to_vec())
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], [shape, ..]: [&[usize]; 3]) -> Vec<T> {
        let channels = shape[shape.len() - 1];
        let image_len = (x.len() / shape[0].max(1)).max(1);
        let write = |at: Range<usize>, y: &mut [MaybeUninit<T>]| {
            let image = at.start / image_len;
            let x = &x[at];
            let (weight, bias) = (of_image(weight, image, channels), of_image(bias, image, channels));
            self.write(x, &self.statistics(x, channels).affine(weight, bias), y);
        };
        // SAFETY: a part is an image, all of which is set.
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
        let task_len = PIXELS_PER_TASK * channels;
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
        let mut sums = ChannelSums::new(channels);
        sums.add_pixels(x);
        sums.statistics(self)
    }

    /// Sets some pixels of an image to what they are normalised to.
    fn write<T: Real>(&self, x: &[T], affine: &Affine<T>, y: &mut [MaybeUninit<T>]) {
        let (silu, task_len) = (self.activation == Activation::Silu, PIXELS_PER_TASK * affine.scale.len());
        let tasks = y.par_chunks_mut(task_len).zip(x.par_chunks(task_len));
        tasks.for_each(|(y, x)| scale_rows(x, &affine.scale, &affine.shift, silu, y));
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
