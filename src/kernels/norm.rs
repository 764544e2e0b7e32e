//! Group and layer normalisation, with an activation in the same pass.

use super::activation::silu_derivative;
use super::simd::multiversion;
use super::{Kernel, Needed, Real, apply, zeros};
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
        let mut y = zeros::<T>(x.len());
        let image_len = (x.len() / shape[0].max(1)).max(1);
        let task_len = ROWS_PER_TASK * weight.len();
        y.par_chunks_exact_mut(image_len).zip(x.par_chunks_exact(image_len)).for_each(|(y, x)| {
            let affine = self.statistics(x, weight.len()).affine(weight, bias);
            y.par_chunks_mut(task_len).zip(x.par_chunks(task_len)).for_each(|(y, x)| {
                scale_rows(x, &affine.scale, &affine.shift, self.activation == Activation::Silu, y);
            });
        });
        y
    }

    fn backward<T: Real>(
        &self,
        [x, weight, bias]: [&[T]; 3],
        [shape, ..]: [&[usize]; 3],
        _: &[T],
        grad: &[T],
        _: Needed<3>,
    ) -> [Vec<T>; 3] {
        let mut grad_x = zeros::<T>(x.len());
        let image_len = (x.len() / shape[0].max(1)).max(1);
        let images = grad_x.par_chunks_exact_mut(image_len).zip(x.par_chunks_exact(image_len));
        let images = images.zip(grad.par_chunks_exact(image_len));
        let sums: Vec<_> =
            images.map(|((grad_x, x), grad)| self.image_gradient(x, weight, bias, grad, grad_x)).collect();
        let (mut grad_weight, mut grad_bias) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        for image in sums {
            grad_weight.iter_mut().zip(&image.products).for_each(|(sum, value)| *sum += value);
            grad_bias.iter_mut().zip(&image.plain).for_each(|(sum, value)| *sum += value);
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
    fn image_gradient<T: Real>(&self, x: &[T], weight: &[T], bias: &[T], grad: &[T], grad_x: &mut [T]) -> GradientSums {
        let channels = weight.len();
        let statistics = self.statistics(x, channels);
        let normalise = statistics.affine(&vec![T::one(); channels], &zeros(channels));
        let task_len = ROWS_PER_TASK * channels;
        let tasks = grad_x.par_chunks_mut(task_len).zip(x.par_chunks(task_len)).zip(grad.par_chunks(task_len));
        let silu = self.activation == Activation::Silu;
        let partial: Vec<Vec<f64>> = tasks
            .map(|((g, x), grad)| {
                g.copy_from_slice(grad);
                if silu {
                    let affine = statistics.affine(weight, bias);
                    silu_gradient_rows(x, &affine.scale, &affine.shift, g);
                }
                gradient_sums(x, &normalise.scale, &normalise.shift, g)
            })
            .collect();
        let mut sums = GradientSums { plain: vec![0.0; channels], products: vec![0.0; channels] };
        for task in &partial {
            sums.plain.iter_mut().zip(&task[..channels]).for_each(|(sum, part)| *sum += part);
            sums.products.iter_mut().zip(&task[channels..]).for_each(|(sum, part)| *sum += part);
        }
        let per_group = channels / self.groups;
        let count = (x.len() / channels * per_group) as f64;
        // grad_x = g * factor + x * slope + offset for each channel.
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
        grad_x.par_chunks_mut(task_len).zip(x.par_chunks(task_len)).for_each(|(g, x)| {
            combine_rows(x, &factor, &slope, &offset, g);
        });
        sums
    }
}

fn from_f64<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

multiversion! {
    /// Multiplies a gradient by the derivative of SiLU at `x * scale + shift`.
    fn silu_gradient_rows<T: Real, FUSED>(x: &[T], scale: &[T], shift: &[T], grad: &mut [T]) {
        let channels = scale.len();
        for (grad, x) in grad.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            for (((grad, x), scale), shift) in grad.iter_mut().zip(x).zip(scale).zip(shift) {
                *grad *= silu_derivative::<T, FUSED>(*x * *scale + *shift);
            }
        }
    }
}

multiversion! {
    /// For each channel the sum of `g` and that of `g * (x * scale + shift)`: over sixteen rows in the element
    /// type, then in f64.
    fn gradient_sums<T: Real>(x: &[T], scale: &[T], shift: &[T], g: &[T]) -> Vec<f64> {
        const ROWS: usize = 16;
        let channels = scale.len();
        let mut sums = vec![0.0f64; 2 * channels];
        let mut short = vec![T::zero(); 2 * channels];
        for (g, x) in g.chunks(ROWS * channels).zip(x.chunks(ROWS * channels)) {
            short.fill(T::zero());
            let (plain, products) = short.split_at_mut(channels);
            for (g, x) in g.chunks_exact(channels).zip(x.chunks_exact(channels)) {
                let (plain, products) = (&mut plain[..channels], &mut products[..channels]);
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
    /// `g = g * factor + x * slope + offset`.
    fn combine_rows<T: Real>(x: &[T], factor: &[T], slope: &[T], offset: &[T], g: &mut [T]) {
        let channels = factor.len();
        for (g, x) in g.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            let (factor, slope, offset) = (&factor[..channels], &slope[..channels], &offset[..channels]);
            for c in 0..channels {
                g[c] = g[c] * factor[c] + (x[c] * slope[c] + offset[c]);
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
    fn scale_rows<T: Real, FUSED>(x: &[T], scale: &[T], shift: &[T], silu: bool, y: &mut [T]) {
        let channels = scale.len();
        for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                *y = *x * *scale + *shift;
            }
            if silu {
                for y in y.iter_mut() {
                    *y /= T::one() + (T::zero() - *y).exp_approx::<FUSED>();
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

impl Kernel<3> for LayerNorm {
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
    fn normalise_rows<T: Real>(x: &[T], weight: &[T], bias: &[T], epsilon: f64, y: &mut [T]) {
        let width = weight.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = row_statistics(x, epsilon);
            let (mean, inverse) = (T::from_f64(mean), T::from_f64(inverse));
            for (((y, x), weight), bias) in y.iter_mut().zip(x).zip(weight).zip(bias) {
                *y = (*x - mean) * inverse * *weight + *bias;
            }
        }
    }
}
