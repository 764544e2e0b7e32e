//! Layer normalisation.

use super::simd::multiversion;
use super::values::from_f64;
use super::{Kernel, Needed, Real, apply, written, zeros};
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Rows that one task sums; fixed, so that sums do not depend on the number of threads.
const ROWS_PER_TASK: usize = 256;

/// Sums that a row is split into: two registers of AVX-512, four of AVX2.
const SUMS: usize = 16;

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
