//! Elementwise activations and their derivatives.

use super::simd::multiversion;
use super::{Kernel, Needed, Real, apply_1, zeros};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Values that one task computes.
const TASK_LEN: usize = 1 << 14;

/// `x * sigmoid(x)`.
///
/// # Errors
/// If the element type is neither f32 nor f64.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply_1(Elementwise::Silu, x)
}

/// `x * Phi(x)` with the normal distribution function (Hendrycks and Gimpel 2016).
///
/// # Errors
/// If the element type is neither f32 nor f64.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply_1(Elementwise::Gelu, x)
}

/// `x * sigmoid(1.702 x)`.
///
/// # Errors
/// If the element type is neither f32 nor f64.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    apply_1(Elementwise::QuickGelu, x)
}

/// GEGLU (Shazeer 2020): the first half of the channels times `x * Phi(x)` of the second.
///
/// # Shapes
/// `x`: `[..., 2 n]`; the result is `[..., n]`.
///
/// # Errors
/// If the last dimension is odd, or the element type is neither f32 nor f64.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    apply_1(Geglu, x)
}

pub(super) struct Geglu;

impl Kernel<1> for Geglu {
    const NAME: &'static str = "geglu";

    fn shape(&self, [x]: [&[usize]; 1]) -> Option<Vec<usize>> {
        let (&width, rows) = x.split_last()?;
        (width > 0 && width.is_multiple_of(2)).then(|| [rows, &[width / 2]].concat())
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1], [shape]: [&[usize]; 1]) -> Vec<T> {
        let width = shape[shape.len() - 1] / 2;
        let mut y = zeros::<T>(x.len() / 2);
        let rows = rows_per_task(width);
        y.par_chunks_mut(rows * width).zip(x.par_chunks(rows * 2 * width)).for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(2 * width)) {
                let (values, gate) = x.split_at(width);
                gated(values, gate, y);
            }
        });
        y
    }

    fn backward<T: Real>(
        &self,
        [x]: [&[T]; 1],
        [shape]: [&[usize]; 1],
        _: &[T],
        grad: &[T],
        _: Needed<1>,
    ) -> [Vec<T>; 1] {
        let width = shape[shape.len() - 1] / 2;
        let mut grad_x = zeros::<T>(x.len());
        let rows = rows_per_task(width);
        let tasks = grad_x.par_chunks_mut(rows * 2 * width).zip(x.par_chunks(rows * 2 * width));
        tasks.zip(grad.par_chunks(rows * width)).for_each(|((grad_x, x), grad)| {
            let rows = grad_x.chunks_exact_mut(2 * width).zip(x.chunks_exact(2 * width));
            for ((grad_x, x), grad) in rows.zip(grad.chunks_exact(width)) {
                let ((values, gate), (of_values, of_gate)) = (x.split_at(width), grad_x.split_at_mut(width));
                gated(grad, gate, of_values);
                gelu_gradients(gate, grad, of_gate);
                of_gate.iter_mut().zip(values).for_each(|(grad, &value)| *grad *= value);
            }
        });
        [grad_x]
    }
}

fn rows_per_task(width: usize) -> usize {
    (TASK_LEN / width.max(1)).max(1)
}

#[derive(Clone, Copy)]
enum Elementwise {
    Silu,
    Gelu,
    QuickGelu,
}

impl Kernel<1> for Elementwise {
    const NAME: &'static str = "activation";

    fn shape(&self, [x]: [&[usize]; 1]) -> Option<Vec<usize>> {
        Some(x.to_vec())
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1], _: [&[usize]; 1]) -> Vec<T> {
        let mut y = zeros::<T>(x.len());
        y.par_chunks_mut(TASK_LEN).zip(x.par_chunks(TASK_LEN)).for_each(|(y, x)| match self {
            Self::Silu => sigmoid_units(x, T::one(), y),
            Self::Gelu => gelus(x, y),
            Self::QuickGelu => sigmoid_units(x, T::from_f64(1.702), y),
        });
        y
    }

    fn backward<T: Real>(&self, [x]: [&[T]; 1], _: [&[usize]; 1], _: &[T], grad: &[T], _: Needed<1>) -> [Vec<T>; 1] {
        let mut grad_x = zeros::<T>(x.len());
        let tasks = grad_x.par_chunks_mut(TASK_LEN).zip(x.par_chunks(TASK_LEN)).zip(grad.par_chunks(TASK_LEN));
        tasks.for_each(|((grad_x, x), grad)| match self {
            Self::Silu => sigmoid_unit_gradients(x, T::one(), grad, grad_x),
            Self::Gelu => gelu_gradients(x, grad, grad_x),
            Self::QuickGelu => sigmoid_unit_gradients(x, T::from_f64(1.702), grad, grad_x),
        });
        [grad_x]
    }
}

#[inline(always)]
fn sigmoid<T: Real, const FUSED: bool>(x: T) -> T {
    T::one() / (T::one() + (T::zero() - x).exp_approx::<FUSED>())
}

/// The derivative of `x * sigmoid(x)`.
#[inline(always)]
pub(super) fn silu_derivative<T: Real, const FUSED: bool>(x: T) -> T {
    let s = sigmoid::<T, FUSED>(x);
    s * (T::one() + x * (T::one() - s))
}

/// The normal distribution function.
#[inline(always)]
fn normal_cdf<T: Real, const FUSED: bool>(x: T) -> T {
    T::from_f64(0.5) * (x * T::from_f64(-std::f64::consts::FRAC_1_SQRT_2)).erfc_approx::<FUSED>()
}

multiversion! {
    /// `x * sigmoid(slope * x)`.
    fn sigmoid_units<T: Real, FUSED>(x: &[T], slope: T, y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * sigmoid::<T, FUSED>(slope * x);
        }
    }
}

multiversion! {
    fn sigmoid_unit_gradients<T: Real, FUSED>(x: &[T], slope: T, grad: &[T], grad_x: &mut [T]) {
        for ((grad_x, &x), &grad) in grad_x.iter_mut().zip(x).zip(grad) {
            *grad_x = grad * silu_derivative::<T, FUSED>(slope * x);
        }
    }
}

multiversion! {
    fn gelus<T: Real, FUSED>(x: &[T], y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * normal_cdf::<T, FUSED>(x);
        }
    }
}

multiversion! {
    /// `x * gelu(gate)`.
    pub(super) fn gated<T: Real, FUSED>(x: &[T], gate: &[T], y: &mut [T]) {
        for ((y, &x), &gate) in y.iter_mut().zip(x).zip(gate) {
            *y = x * (gate * normal_cdf::<T, FUSED>(gate));
        }
    }
}

multiversion! {
    fn gelu_gradients<T: Real, FUSED>(x: &[T], grad: &[T], grad_x: &mut [T]) {
        // 1 / sqrt(2 pi).
        let density = T::from_f64(0.398_942_280_401_432_7);
        for ((grad_x, &x), &grad) in grad_x.iter_mut().zip(x).zip(grad) {
            *grad_x = grad * (normal_cdf::<T, FUSED>(x) + x * density * (x * x * T::from_f64(-0.5)).exp_approx::<FUSED>());
        }
    }
}
