//! The gradient of group normalisation.

use super::super::activation::silu_derivative;
use super::super::simd::multiversion;
use super::super::{Real, zeros};
use super::sums::PIXELS_PER_TASK;
use super::{Activation, Affine, GroupNorm};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// For each channel the sum of a gradient over the pixels, and of its product with the normalised value.
pub(super) struct GradientSums {
    pub plain: Vec<f64>,
    pub products: Vec<f64>,
}

impl GroupNorm {
    /// The gradient with respect to one image. With `g = grad * activation'` and the normalised `n`, it is
    /// `inverse * (weight * g - mean(weight * g) - n * mean(weight * g * n))`, the means over a group.
    pub(super) fn image_gradient<T: Real>(&self, x: &[T], weight: &[T], bias: &[T], grad: &[T]) -> ImageGradient<T> {
        let channels = weight.len();
        let statistics = self.statistics(x, channels);
        let normalise = statistics.affine(&vec![T::one(); channels], &zeros(channels));
        let silu = (self.activation == Activation::Silu).then(|| statistics.affine(weight, bias));
        let task_len = PIXELS_PER_TASK * channels;
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
pub(super) struct ImageGradient<T> {
    pub sums: GradientSums,
    /// What SiLU was given, if there is one.
    silu: Option<Affine<T>>,
    factor: Vec<T>,
    of_x: Affine<T>,
}

impl<T: Real> ImageGradient<T> {
    /// Sets some rows.
    pub fn write(&self, x: &[T], grad: &[T], grad_x: &mut [MaybeUninit<T>]) {
        combine_rows(x, self.silu.as_ref(), grad, &self.factor, &self.of_x, grad_x);
    }
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
