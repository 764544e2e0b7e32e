//! Two sets of channels beside each other.

use super::{Kernel, Needed, Real, apply_2, zeros};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Rows that one task copies.
const TASK_ROWS: usize = 512;

/// The channels of both, the first's first.
///
/// # Shapes
/// `a`: `[..., m]`; `b`: `[..., n]`, alike but for the last dimension; the result is `[..., m + n]`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn concat_channels(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply_2(Concat, [a, b])
}

struct Concat;

impl Kernel<2> for Concat {
    const NAME: &'static str = "concat-channels";

    fn shape(&self, [a, b]: [&[usize]; 2]) -> Option<Vec<usize>> {
        let ((&m, a_rows), (&n, b_rows)) = (a.split_last()?, b.split_last()?);
        (a_rows == b_rows && m > 0 && n > 0).then(|| [a_rows, &[m + n]].concat())
    }

    fn forward<T: Real>(&self, [a, b]: [&[T]; 2], shapes: [&[usize]; 2]) -> Vec<T> {
        let [m, n] = shapes.map(|shape| shape[shape.len() - 1]);
        let mut out = zeros::<T>(a.len() + b.len());
        let tasks = out.par_chunks_mut(TASK_ROWS * (m + n));
        tasks.zip(a.par_chunks(TASK_ROWS * m)).zip(b.par_chunks(TASK_ROWS * n)).for_each(|((out, a), b)| {
            for ((out, a), b) in out.chunks_exact_mut(m + n).zip(a.chunks_exact(m)).zip(b.chunks_exact(n)) {
                out[..m].copy_from_slice(a);
                out[m..].copy_from_slice(b);
            }
        });
        out
    }

    fn backward<T: Real>(
        &self,
        [a, b]: [&[T]; 2],
        shapes: [&[usize]; 2],
        _: &[T],
        grad: &[T],
        _: Needed<2>,
    ) -> [Vec<T>; 2] {
        let [m, n] = shapes.map(|shape| shape[shape.len() - 1]);
        let (mut grad_a, mut grad_b) = (zeros::<T>(a.len()), zeros::<T>(b.len()));
        let tasks = grad_a.par_chunks_mut(TASK_ROWS * m).zip(grad_b.par_chunks_mut(TASK_ROWS * n));
        tasks.zip(grad.par_chunks(TASK_ROWS * (m + n))).for_each(|((a, b), grad)| {
            for ((a, b), grad) in a.chunks_exact_mut(m).zip(b.chunks_exact_mut(n)).zip(grad.chunks_exact(m + n)) {
                a.copy_from_slice(&grad[..m]);
                b.copy_from_slice(&grad[m..]);
            }
        });
        [grad_a, grad_b]
    }
}
