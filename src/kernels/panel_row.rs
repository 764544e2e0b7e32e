//! Sixteen neighbouring values in registers, for each instruction set: all that the product of [`super::tile`]
//! needs of a machine.

use super::Real;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
};

/// Columns of a panel: two AVX registers of f32, or one of AVX-512.
pub(super) const PANEL: usize = 16;

/// A row of a panel.
///
/// # Safety
/// Its functions may only be called on a machine that has the instructions, with pointers to [`PANEL`] values.
pub(super) unsafe trait PanelRow<T>: Copy {
    /// Reads a row.
    unsafe fn load(row: *const T) -> Self;

    /// Writes it.
    unsafe fn store(self, row: *mut T);

    /// `self + x * row`.
    unsafe fn add_product(self, x: T, row: Self) -> Self;
}

// SAFETY: plain arithmetic, which every machine has.
unsafe impl<T: Real> PanelRow<T> for [T; PANEL] {
    #[inline(always)]
    unsafe fn load(row: *const T) -> Self {
        // SAFETY: the caller's pointer is to that many values; their alignment is that of one.
        unsafe { *row.cast::<[T; PANEL]>() }
    }

    #[inline(always)]
    unsafe fn store(self, row: *mut T) {
        // SAFETY: as when it is read.
        unsafe { *row.cast::<[T; PANEL]>() = self };
    }

    #[inline(always)]
    unsafe fn add_product(mut self, x: T, row: Self) -> Self {
        for (sum, value) in self.iter_mut().zip(row) {
            // Arm's base instructions round once; those of other machines would call a function for it.
            *sum = if cfg!(target_arch = "aarch64") { x.fused(value, *sum) } else { x * value + *sum };
        }
        self
    }
}

/// Two registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2Row(__m256, __m256);

#[cfg(target_arch = "x86_64")]
// SAFETY: these are AVX and FMA instructions on the addresses that the caller gives.
unsafe impl PanelRow<f32> for Avx2Row {
    #[inline(always)]
    unsafe fn load(row: *const f32) -> Self {
        // SAFETY: as the trait's caller promises.
        unsafe { Self(_mm256_loadu_ps(row), _mm256_loadu_ps(row.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, row: *mut f32) {
        // SAFETY: as the trait's caller promises.
        unsafe {
            _mm256_storeu_ps(row, self.0);
            _mm256_storeu_ps(row.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, x: f32, row: Self) -> Self {
        // SAFETY: as the trait's caller promises.
        unsafe {
            let x = _mm256_set1_ps(x);
            Self(_mm256_fmadd_ps(x, row.0, self.0), _mm256_fmadd_ps(x, row.1, self.1))
        }
    }
}

/// One register.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512Row(__m512);

#[cfg(target_arch = "x86_64")]
// SAFETY: these are AVX-512F instructions on the addresses that the caller gives.
unsafe impl PanelRow<f32> for Avx512Row {
    #[inline(always)]
    unsafe fn load(row: *const f32) -> Self {
        // SAFETY: as the trait's caller promises.
        unsafe { Self(_mm512_loadu_ps(row)) }
    }

    #[inline(always)]
    unsafe fn store(self, row: *mut f32) {
        // SAFETY: as the trait's caller promises.
        unsafe { _mm512_storeu_ps(row, self.0) };
    }

    #[inline(always)]
    unsafe fn add_product(self, x: f32, row: Self) -> Self {
        // SAFETY: as the trait's caller promises.
        unsafe { Self(_mm512_fmadd_ps(_mm512_set1_ps(x), row.0, self.0)) }
    }
}
