//! The sum of two tensors, on all cores.

use super::simd::multiversion;
use super::{Kernel, Needed, Real, apply_2, zeros};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Values that one task adds.
const TASK_LEN: usize = 1 << 15;

/// `a + b`.
///
/// # Shapes
/// `a` and `b` are alike, and so is the result.
///
/// # Errors
/// If the shapes differ, or the element type is neither f32 nor f64.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply_2(Add, [a, b])
}

struct Add;

impl Kernel<2> for Add {
    const NAME: &'static str = "add";

    fn shape(&self, [a, b]: [&[usize]; 2]) -> Option<Vec<usize>> {
        (a == b).then(|| a.to_vec())
    }

    fn forward<T: Real>(&self, [a, b]: [&[T]; 2], _: [&[usize]; 2]) -> Vec<T> {
        let mut sums = zeros::<T>(a.len());
        let tasks = sums.par_chunks_mut(TASK_LEN).zip(a.par_chunks(TASK_LEN)).zip(b.par_chunks(TASK_LEN));
        tasks.for_each(|((sums, a), b)| add_values(a, b, sums));
        sums
    }

    fn backward<T: Real>(&self, _: [&[T]; 2], _: [&[usize]; 2], _: &[T], grad: &[T], needed: Needed<2>) -> [Vec<T>; 2] {
        needed.map(|needed| if needed { grad.to_vec() } else { Vec::new() })
    }
}

multiversion! {
    fn add_values<T: Real>(a: &[T], b: &[T], sums: &mut [T]) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a + b;
        }
    }
}

multiversion! {
    pub(super) fn add_to<T: Real>(values: &[T], sums: &mut [T]) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
}
