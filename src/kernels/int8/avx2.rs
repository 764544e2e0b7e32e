//! AVX2's products of bytes in pairs.

use super::super::eight_bits::{ROUND, inverse_of, scale_of};
use super::super::panel_row::PANEL;
use super::{PART, Tile, Totals};
use std::arch::x86_64::{
    __m256, __m256i, _mm_cvtsi128_si32, _mm_max_epu32, _mm_shuffle_epi32, _mm256_abs_epi8, _mm256_add_epi8,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_castps_si256, _mm256_castsi256_si128, _mm256_cvtepi32_ps,
    _mm256_extracti128_si256, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_max_epu32, _mm256_mul_ps, _mm256_packus_epi16, _mm256_packus_epi32, _mm256_permutevar8x32_epi32,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_si256,
    _mm256_sign_epi8, _mm256_storeu_ps, _mm256_storeu_si256,
};

/// Rows whose sums are in registers at a time: three times two of whole numbers.
pub(super) const ROWS: usize = 3;

/// Registers of a line.
const HALVES: usize = 2;
const LANES: usize = PANEL / HALVES;

/// As the function of this name in `eight_bits`, which is its definition: of each part in four registers.
///
/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn round_parts(values: &[f32], offset: i8, numbers: &mut [i8], scales: &mut [f32]) {
    let parts = values.as_chunks::<PART>().0.iter().zip(numbers.as_chunks_mut::<PART>().0);
    for ((values, numbers), scale) in parts.zip(scales) {
        // SAFETY: a part's values are as many as four registers have, its numbers as many as one has.
        unsafe {
            let x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(values.as_ptr().add(i * LANES)));
            let sizes = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX)));
            let [a, b, c, d] = sizes;
            let eight = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
            let four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
            *scale = scale_of(_mm_cvtsi128_si32(one) as u32);
            let inverse = _mm256_set1_ps(inverse_of(*scale));
            let [a, b, c, d] = x.map(|x| {
                let rounded = _mm256_add_ps(_mm256_mul_ps(x, inverse), _mm256_set1_ps(ROUND));
                _mm256_and_si256(_mm256_castps_si256(rounded), _mm256_set1_epi32(0xff))
            });
            // Packing is within the halves of registers.
            let bytes = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(numbers.as_mut_ptr().cast(), _mm256_add_epi8(bytes, _mm256_set1_epi8(offset)));
        }
    }
}

/// # Safety
/// The machine has AVX2.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply(tile: Tile<'_>, totals: &mut [Totals]) {
    if let Some(totals) = totals.first_chunk_mut::<ROWS>() {
        // SAFETY: as the caller promises.
        return unsafe { multiply_rows(tile, 0, totals) };
    }
    for (row, totals) in totals.iter_mut().map(std::array::from_mut).enumerate() {
        // SAFETY: as the caller promises.
        unsafe { multiply_rows(tile, row, totals) };
    }
}

/// The right factor without its signs, which go to the left one: of two products of 127 times 128 at most the sum has 16 bits.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn multiply_rows<const R: usize>(tile: Tile<'_>, first: usize, totals: &mut [Totals; R]) {
    let Tile { rows, tile, panels } = tile;
    let (left, left_scales, height) = rows.tile(tile);
    let (numbers, scales, _) = panels.panel(0);
    let parts = left_scales.len() / height;
    assert!(first + R <= height && left.len() == parts * PART * height && left_scales.len() == parts * height);
    assert!(numbers.len() == parts * PART * PANEL && scales.len() == parts * PANEL);
    // SAFETY: all that is read lies in the slices, whose lengths were asserted; alignment is not asked for.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut totals_of: [[__m256; HALVES]; R] = std::array::from_fn(|row| {
            std::array::from_fn(|half| _mm256_loadu_ps(totals[row][0].as_ptr().add(half * LANES)))
        });
        for part in 0..parts {
            let mut products: [[__m256i; HALVES]; R] = [[_mm256_setzero_si256(); HALVES]; R];
            let lines = numbers.as_ptr().add(part * PART * PANEL);
            for four in 0..PART / 4 {
                let left = left.as_ptr().add((part * PART + 4 * four) * height + 4 * first);
                for half in 0..HALVES {
                    let y = _mm256_loadu_si256(lines.add(four * 4 * PANEL + half * 4 * LANES).cast());
                    let size = _mm256_abs_epi8(y);
                    for (row, products) in products.iter_mut().enumerate() {
                        let x = _mm256_set1_epi32(left.add(4 * row).cast::<i32>().read_unaligned());
                        let x = _mm256_sign_epi8(x, y);
                        let pairs = _mm256_madd_epi16(_mm256_maddubs_epi16(size, x), ones);
                        products[half] = _mm256_add_epi32(products[half], pairs);
                    }
                }
            }
            for (row, totals) in totals_of.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*left_scales.get_unchecked(part * height + first + row));
                for (half, total) in totals.iter_mut().enumerate() {
                    let y = _mm256_loadu_ps(scales.as_ptr().add(part * PANEL + half * LANES));
                    let sum = _mm256_cvtepi32_ps(products[row][half]);
                    *total = _mm256_add_ps(*total, _mm256_mul_ps(sum, _mm256_mul_ps(x, y)));
                }
            }
        }
        for (row, totals_of) in totals_of.into_iter().enumerate() {
            for (half, total) in totals_of.into_iter().enumerate() {
                _mm256_storeu_ps(totals[row][0].as_mut_ptr().add(half * LANES), total);
            }
        }
    }
}
