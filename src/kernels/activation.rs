//! Elementwise activations and their derivatives.

use super::simd::multiversion;
use super::{Kernel, Needed, Real, apply_1, written};
use candle_core::{Result, Tensor};
use std::mem::MaybeUninit;
use std::ops::Range;

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
        let write = |at: Range<usize>, y: &mut [MaybeUninit<T>]| {
            for (y, x) in y.chunks_exact_mut(width).zip(x[2 * at.start..].chunks_exact(2 * width)) {
                let (values, gate) = x.split_at(width);
                gated(values, gate, y);
            }
        };
        // SAFETY: a part is of whole rows, and `gated` sets all of one.
        unsafe { written(x.len() / 2, rows_per_task(width) * width, write) }
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
        let write = |at: Range<usize>, grad_x: &mut [MaybeUninit<T>]| {
            let rows = x[at.clone()].chunks_exact(2 * width).zip(grad[at.start / 2..].chunks_exact(width));
            for (grad_x, (x, grad)) in grad_x.chunks_exact_mut(2 * width).zip(rows) {
                let ((values, gate), (of_values, of_gate)) = (x.split_at(width), grad_x.split_at_mut(width));
                gated(grad, gate, of_values);
                let of_gelu: Vec<T> = grad.iter().zip(values).map(|(&grad, &value)| grad * value).collect();
                gelu_gradients(gate, &of_gelu, of_gate);
            }
        };
        // SAFETY: a part is of whole rows, and both halves of each are set.
        [unsafe { written(x.len(), rows_per_task(width) * 2 * width, write) }]
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
        let write = |at: Range<usize>, y: &mut [MaybeUninit<T>]| match self {
            Self::Silu => sigmoid_units(&x[at], T::one(), y),
            Self::Gelu => gelus(&x[at], y),
            Self::QuickGelu => sigmoid_units(&x[at], T::from_f64(1.702), y),
        };
        // SAFETY: each of these functions sets all that it is given.
        unsafe { written(x.len(), TASK_LEN, write) }
    }

    fn backward<T: Real>(&self, [x]: [&[T]; 1], _: [&[usize]; 1], _: &[T], grad: &[T], _: Needed<1>) -> [Vec<T>; 1] {
        let write = |at: Range<usize>, grad_x: &mut [MaybeUninit<T>]| match self {
            Self::Silu => sigmoid_unit_gradients(&x[at.clone()], T::one(), &grad[at], grad_x),
            Self::Gelu => gelu_gradients(&x[at.clone()], &grad[at], grad_x),
            Self::QuickGelu => sigmoid_unit_gradients(&x[at.clone()], T::from_f64(1.702), &grad[at], grad_x),
        };
        // SAFETY: each of these functions sets all that it is given.
        [unsafe { written(x.len(), TASK_LEN, write) }]
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
    fn sigmoid_units<T: Real, FUSED>(x: &[T], slope: T, y: &mut [MaybeUninit<T>]) {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write(x * sigmoid::<T, FUSED>(slope * x));
        }
    }
}

multiversion! {
    fn sigmoid_unit_gradients<T: Real, FUSED>(x: &[T], slope: T, grad: &[T], grad_x: &mut [MaybeUninit<T>]) {
        for ((grad_x, &x), &grad) in grad_x.iter_mut().zip(x).zip(grad) {
            grad_x.write(grad * silu_derivative::<T, FUSED>(slope * x));
        }
    }
}

multiversion! {
    fn gelus<T: Real, FUSED>(x: &[T], y: &mut [MaybeUninit<T>]) {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write(x * normal_cdf::<T, FUSED>(x));
        }
    }
}

multiversion! {
    /// `x * gelu(gate)`.
    pub(super) fn gated<T: Real, FUSED>(x: &[T], gate: &[T], y: &mut [MaybeUninit<T>]) {
        for ((y, &x), &gate) in y.iter_mut().zip(x).zip(gate) {
            y.write(x * (gate * normal_cdf::<T, FUSED>(gate)));
        }
    }
}

multiversion! {
    fn gelu_gradients<T: Real, FUSED>(x: &[T], grad: &[T], grad_x: &mut [MaybeUninit<T>]) {
        // 1 / sqrt(2 pi).
        let density = T::from_f64(0.398_942_280_401_432_7);
        for ((grad_x, &x), &grad) in grad_x.iter_mut().zip(x).zip(grad) {
            let derivative = normal_cdf::<T, FUSED>(x) + x * density * (x * x * T::from_f64(-0.5)).exp_approx::<FUSED>();
            grad_x.write(grad * derivative);
        }
    }
}
