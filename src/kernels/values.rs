//! Memory for what kernels make.

use super::{Real, dry_run};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;

/// So many zeros.
pub(super) fn zeros<T: Real>(count: usize) -> Vec<T> {
    vec![T::zero(); count]
}

/// New values that need not be cleared before they are written: in parts of `task_len` values, each a task of its own, which is
/// told which values it has.
///
/// # Safety
/// `write` sets every value of a part.
pub(super) unsafe fn written<T: Real>(
    count: usize,
    task_len: usize,
    write: impl Fn(Range<usize>, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    if dry_run::is_dry_run() {
        return zeros(count);
    }
    let mut values = Vec::<T>::with_capacity(count);
    let task_len = task_len.max(1);
    values.spare_capacity_mut()[..count].par_chunks_mut(task_len).enumerate().for_each(|(i, part)| {
        write(i * task_len..i * task_len + part.len(), part);
    });
    // SAFETY: that many values have room, and all parts are set.
    unsafe { values.set_len(count) };
    values
}

/// Sets values to those of a slice of the same length.
#[inline(always)]
pub(super) fn copy_to<T: Copy>(to: &mut [MaybeUninit<T>], from: &[T]) {
    assert_eq!(to.len(), from.len());
    to.iter_mut().zip(from).for_each(|(to, &from)| _ = to.write(from));
}

/// Values in the element type of a kernel.
pub(super) fn from_f64<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}
