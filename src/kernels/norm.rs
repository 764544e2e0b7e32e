//! Group and layer normalisation, with an activation in the same pass.

use super::activation::silu_derivative;
use super::simd::multiversion;
use super::{Kernel, Needed, Real, apply, written, zeros};
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

/// Sums that a row is split into: two registers of AVX-512, four of AVX2.
const SUMS: usize = 16;

/// Group normalisation over `[batch, ..., channels]` (Wu and He 2018), then the activation.
///
/// # Shapes
/// `x`: `[batch, ..., channels]`, `channels` a multiple of `groups`; `weight` and `bias`: `[channels]`;
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
    let shape = x.shape();
    let (batch, channels) = (x.dim(0)?, x.dim(D::Minus1)?);
    let pixels = x.elem_count() / (batch * channels).max(1);
    let x = x.reshape((batch, pixels, groups, channels / groups))?;
    let centred = x.broadcast_sub(&x.mean_keepdim((1, 3))?)?;
    let variance = centred.sqr()?.mean_keepdim((1, 3))?;
    let normed = centred.broadcast_div(&(variance + epsilon)?.sqrt()?)?.reshape(shape)?;
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

impl Kernel<3> for GroupNorm {
    const NAME: &'static str = "group-norm";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let channels = *x.last()?;
        let fits = x.len() >= 2 && channels.is_multiple_of(self.groups) && weight == [channels] && bias == [channels];
        fits.then(|| x.to_vec())
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], [shape, ..]: [&[usize]; 3]) -> Vec<T> {
        let image_len = (x.len() / shape[0].max(1)).max(1);
        let task_len = ROWS_PER_TASK * weight.len();
        let silu = self.activation == Activation::Silu;
        let write = |at: Range<usize>, y: &mut [MaybeUninit<T>]| {
            let x = &x[at];
            let affine = self.statistics(x, weight.len()).affine(weight, bias);
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
        let image_len = (x.len() / shape[0].max(1)).max(1);
        let task_len = ROWS_PER_TASK * weight.len();
        let images: Vec<_> = x
            .par_chunks_exact(image_len)
            .zip(grad.par_chunks_exact(image_len))
            .map(|(x, grad)| self.image_gradient(x, weight, bias, grad))
            .collect();
        let write = |at: Range<usize>, grad_x: &mut [MaybeUninit<T>]| {
            let image = &images[at.start / image_len];
            let tasks = grad_x.par_chunks_mut(task_len).zip(x[at.clone()].par_chunks(task_len));
            tasks.zip(grad[at].par_chunks(task_len)).for_each(|((grad_x, x), grad)| image.write(x, grad, grad_x));
        };
        // SAFETY: a part is an image, all of which is set.
        let grad_x = unsafe { written(x.len(), image_len, write) };
        let (mut grad_weight, mut grad_bias) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        for image in &images {
            grad_weight.iter_mut().zip(&image.sums.products).for_each(|(sum, value)| *sum += value);
            grad_bias.iter_mut().zip(&image.sums.plain).for_each(|(sum, value)| *sum += value);
        }
        [grad_x, from_f64(&grad_weight), from_f64(&grad_bias)]
    }
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

/// For each channel the sum of a gradient over the pixels, and of its product with the normalised value.
struct GradientSums {
    plain: Vec<f64>,
    products: Vec<f64>,
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

    /// The gradient with respect to one image. With `g = grad * activation'` and the normalised `n`, it is
    /// `inverse * (weight * g - mean(weight * g) - n * mean(weight * g * n))`, the means over a group.
    fn image_gradient<T: Real>(&self, x: &[T], weight: &[T], bias: &[T], grad: &[T]) -> ImageGradient<T> {
        let channels = weight.len();
        let statistics = self.statistics(x, channels);
        let normalise = statistics.affine(&vec![T::one(); channels], &zeros(channels));
        let silu = (self.activation == Activation::Silu).then(|| statistics.affine(weight, bias));
        let task_len = ROWS_PER_TASK * channels;
        let partial: Vec<Vec<f64>> = x
            .par_chunks(task_len)
            .zip(grad.par_chunks(task_len))
            .map(|(x, grad)| gradient_sums(x, &normalise, silu.as_ref(), grad))
            .collect();
        let mut sums = GradientSums { plain: vec![0.0; channels], products: vec![0.0; channels] };
        for task in &partial {
            sums.plain.iter_mut().zip(&task[..channels]).for_each(|(sum, part)| *sum += part);
            sums.products.iter_mut().zip(&task[channels..]).for_each(|(sum, part)| *sum += part);
        }
        let per_group = channels / self.groups;
        let count = (x.len() / channels * per_group) as f64;
        let (mut factor, mut slope, mut offset) = (zeros::<T>(channels), zeros::<T>(channels), zeros::<T>(channels));
        for first in (0..channels).step_by(per_group) {
            let group = first..first + per_group;
            let mean_of = |sums: &[f64]| group.clone().map(|c| sums[c] * weight[c].to_f64()).sum::<f64>() / count;
            let (plain, product) = (mean_of(&sums.plain), mean_of(&sums.products));
            for c in group {
                let (mean, inverse) = (statistics.mean[c], statistics.inverse[c]);
                factor[c] = T::from_f64(weight[c].to_f64() * inverse);
                slope[c] = T::from_f64(-product * inverse * inverse);
                offset[c] = T::from_f64((product * mean * inverse - plain) * inverse);
            }
        }
        ImageGradient { sums, silu, factor, of_x: Affine { scale: slope, shift: offset } }
    }
}

/// The gradient with respect to an image's values, for each channel `g * factor + (x * scale + shift)`.
struct ImageGradient<T> {
    sums: GradientSums,
    /// What SiLU was given, if there is one.
    silu: Option<Affine<T>>,
    factor: Vec<T>,
    of_x: Affine<T>,
}

impl<T: Real> ImageGradient<T> {
    /// Sets some rows.
    fn write(&self, x: &[T], grad: &[T], grad_x: &mut [MaybeUninit<T>]) {
        combine_rows(x, self.silu.as_ref(), grad, &self.factor, &self.of_x, grad_x);
    }
}

fn from_f64<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

/// A row's gradient before the activation, from that after it: with SiLU times its derivative at what it was given.
#[inline(always)]
fn before_activation<T: Real, const FUSED: bool>(x: &[T], silu: Option<&Affine<T>>, grad: &[T], g: &mut [T]) {
    let Some(Affine { scale, shift }) = silu else { return g.copy_from_slice(grad) };
    for ((((g, &grad), &x), &scale), &shift) in g.iter_mut().zip(grad).zip(x).zip(scale).zip(shift) {
        *g = grad * silu_derivative::<T, FUSED>(x * scale + shift);
    }
}

multiversion! {
    /// For each channel the sum of the gradient `g` before the activation and that of `g` times the normalised value: over
    /// sixteen rows in the element type, then in f64.
    fn gradient_sums<T: Real, FUSED>(
        x: &[T], normalise: &Affine<T>, silu: Option<&Affine<T>>, grad: &[T],
    ) -> Vec<f64> {
        const ROWS: usize = 16;
        let Affine { scale, shift } = normalise;
        let channels = scale.len();
        let mut sums = vec![0.0f64; 2 * channels];
        let mut short = vec![T::zero(); 2 * channels];
        let mut g = vec![T::zero(); channels];
        for (grad, x) in grad.chunks(ROWS * channels).zip(x.chunks(ROWS * channels)) {
            short.fill(T::zero());
            let (plain, products) = short.split_at_mut(channels);
            for (grad, x) in grad.chunks_exact(channels).zip(x.chunks_exact(channels)) {
                before_activation::<T, FUSED>(x, silu, grad, &mut g);
                let (plain, products) = (&mut plain[..channels], &mut products[..channels]);
                let (g, scale, shift) = (&g[..channels], &scale[..channels], &shift[..channels]);
                for c in 0..channels {
                    plain[c] += g[c];
                    products[c] += g[c] * (x[c] * scale[c] + shift[c]);
                }
            }
            sums.iter_mut().zip(&short).for_each(|(sum, short)| *sum += short.to_f64());
        }
        sums
    }
}

multiversion! {
    /// `g * factor + (x * scale + shift)`.
    fn combine_rows<T: Real, FUSED>(
        x: &[T], silu: Option<&Affine<T>>, grad: &[T], factor: &[T], of_x: &Affine<T>, out: &mut [MaybeUninit<T>],
    ) {
        let Affine { scale, shift } = of_x;
        let channels = factor.len();
        let mut g = vec![T::zero(); channels];
        let rows = x.chunks_exact(channels).zip(grad.chunks_exact(channels));
        for (out, (x, grad)) in out.chunks_exact_mut(channels).zip(rows) {
            before_activation::<T, FUSED>(x, silu, grad, &mut g);
            let (g, factor, scale, shift) = (&g[..channels], &factor[..channels], &scale[..channels], &shift[..channels]);
            for c in 0..channels {
                out[c].write(g[c] * factor[c] + (x[c] * scale[c] + shift[c]));
            }
        }
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

impl Kernel<3> for LayerNorm {
    const NAME: &'static str = "layer-norm";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let width = *x.last()?;
        (width > 0 && weight == [width] && bias == [width]).then(|| x.to_vec())
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], _: [&[usize]; 3]) -> Vec<T> {
        let write = |at: Range<usize>, y: &mut [MaybeUninit<T>]| normalise_rows(&x[at], weight, bias, self.epsilon, y);
        // SAFETY: a part is of whole rows, and `normalise_rows` sets all that it is given.
        unsafe { written(x.len(), ROWS_PER_TASK * weight.len(), write) }
    }

    fn backward<T: Real>(
        &self,
        [x, weight, _]: [&[T]; 3],
        _: [&[usize]; 3],
        _: &[T],
        grad: &[T],
        _: Needed<3>,
    ) -> [Vec<T>; 3] {
        let width = weight.len();
        let mut grad_x = zeros::<T>(x.len());
        let task_len = ROWS_PER_TASK * width;
        let tasks = grad_x.par_chunks_mut(task_len).zip(x.par_chunks(task_len)).zip(grad.par_chunks(task_len));
        let partial: Vec<Vec<f64>> =
            tasks.map(|((grad_x, x), grad)| row_gradients(x, weight, self.epsilon, grad, grad_x)).collect();
        let mut sums = vec![0.0; 2 * width];
        for task in &partial {
            sums.iter_mut().zip(task).for_each(|(sum, part)| *sum += part);
        }
        [grad_x, from_f64(&sums[..width]), from_f64(&sums[width..])]
    }
}

multiversion! {
    /// The gradient with respect to every row, as for group normalisation; and the sums over the rows that are
    /// the gradients of weight and bias.
    fn row_gradients<T: Real>(x: &[T], weight: &[T], epsilon: f64, grad: &[T], grad_x: &mut [T]) -> Vec<f64> {
        let width = weight.len();
        let mut sums = vec![0.0f64; 2 * width];
        let (of_weight, of_bias) = sums.split_at_mut(width);
        let mut normed = vec![T::zero(); width];
        for ((grad_x, x), grad) in
            grad_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(grad.chunks_exact(width))
        {
            let (mean, inverse) = row_statistics(x, epsilon);
            let (mut plain, mut product) = (0.0, 0.0);
            for c in 0..width {
                normed[c] = T::from_f64((x[c].to_f64() - mean) * inverse);
                let scaled = grad[c] * weight[c];
                plain += scaled.to_f64();
                product += (scaled * normed[c]).to_f64();
                of_weight[c] += (grad[c] * normed[c]).to_f64();
                of_bias[c] += grad[c].to_f64();
            }
            let (plain, product) = (T::from_f64(plain / width as f64), T::from_f64(product / width as f64));
            let inverse = T::from_f64(inverse);
            for c in 0..width {
                grad_x[c] = inverse * (grad[c] * weight[c] - plain - normed[c] * product);
            }
        }
        sums
    }
}

/// Mean and inverse standard deviation of a row.
#[inline(always)]
fn row_statistics<T: Real>(x: &[T], epsilon: f64) -> (f64, f64) {
    let mean = sum_of(x, |value| value) / x.len() as f64;
    let variance = sum_of(x, |value| (value - mean) * (value - mean)) / x.len() as f64;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// The sum of `f` of each value, as [`SUMS`] sums that do not wait for each other: the same ones on every machine.
#[inline(always)]
fn sum_of<T: Real>(x: &[T], f: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0; SUMS];
    let (lines, rest) = x.as_chunks::<SUMS>();
    for line in lines {
        for (sum, value) in sums.iter_mut().zip(line) {
            *sum += f(value.to_f64());
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += f(value.to_f64());
    }
    sums.into_iter().sum()
}

multiversion! {
    fn normalise_rows<T: Real>(x: &[T], weight: &[T], bias: &[T], epsilon: f64, y: &mut [MaybeUninit<T>]) {
        let width = weight.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = row_statistics(x, epsilon);
            let (mean, inverse) = (T::from_f64(mean), T::from_f64(inverse));
            for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                y.write((*x - mean) * inverse * *weight + *bias);
            }
        }
    }
}
