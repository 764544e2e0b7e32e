//! Two sets of channels beside each other.

use super::{Kernel, Needed, Real, apply_2, copy_to, written};
use candle_core::{Result, Tensor};
use std::mem::MaybeUninit;
use std::ops::Range;

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
        let write = |at: Range<usize>, out: &mut [MaybeUninit<T>]| {
            let first = at.start / (m + n);
            let rows = a[first * m..].chunks_exact(m).zip(b[first * n..].chunks_exact(n));
            for (out, (a, b)) in out.chunks_exact_mut(m + n).zip(rows) {
                copy_to(&mut out[..m], a);
                copy_to(&mut out[m..], b);
            }
        };
        // SAFETY: a part is of whole rows, and both sides of each are set.
        unsafe { written(a.len() + b.len(), TASK_ROWS * (m + n), write) }
    }

    fn backward<T: Real>(&self, _: [&[T]; 2], shapes: [&[usize]; 2], _: &[T], grad: &[T], _: Needed<2>) -> [Vec<T>; 2] {
        let [m, n] = shapes.map(|shape| shape[shape.len() - 1]);
        let side = |columns: Range<usize>| {
            let (width, rows) = (columns.len(), grad.len() / (m + n));
            let write = |at: Range<usize>, out: &mut [MaybeUninit<T>]| {
                let rows = grad[at.start / width * (m + n)..].chunks_exact(m + n);
                out.chunks_exact_mut(width).zip(rows).for_each(|(out, row)| copy_to(out, &row[columns.clone()]));
            };
            // SAFETY: a part is of whole rows, and all of each is set.
            unsafe { written(rows * width, TASK_ROWS * width, write) }
        };
        [side(0..m), side(m..m + n)]
    }
}
