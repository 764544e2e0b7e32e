//! AVX-512's products of bytes in fours.

use super::super::eight_bits::{ROUND, inverse_of, scale_of};
use super::super::panel_row::PANEL;
use super::{MOST_ROWS, PART, Tile, Totals};
use std::arch::x86_64::{
    __m512, __m512i, _mm_add_epi8, _mm_set1_epi8, _mm_storeu_si128, _mm256_loadu_si256, _mm512_add_ps,
    _mm512_and_si512, _mm512_castps_si512, _mm512_cvtepi16_epi32, _mm512_cvtepi32_epi8, _mm512_cvtepi32_ps,
    _mm512_dpbusd_epi32, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_max_epu32,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_epi32,
};

/// Rows whose sums are in registers at a time: with two panels twelve sums of whole numbers and twelve of floats.
pub(super) const ROWS: usize = MOST_ROWS;

/// As the function of this name in `eight_bits`, which is its definition: of each part in two registers.
///
/// # Safety
/// The machine has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn round_parts(values: &[f32], offset: i8, numbers: &mut [i8], scales: &mut [f32]) {
    let parts = values.as_chunks::<PART>().0.iter().zip(numbers.as_chunks_mut::<PART>().0);
    for ((values, numbers), scale) in parts.zip(scales) {
        // SAFETY: a part's values and numbers are as many as two registers have.
        unsafe {
            let x: [__m512; 2] = std::array::from_fn(|half| _mm512_loadu_ps(values.as_ptr().add(half * PANEL)));
            let sizes = x.map(|x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX)));
            *scale = scale_of(_mm512_reduce_max_epu32(_mm512_max_epu32(sizes[0], sizes[1])));
            let inverse = _mm512_set1_ps(inverse_of(*scale));
            for (half, &x) in x.iter().enumerate() {
                let rounded = _mm512_add_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(ROUND));
                let bytes = _mm_add_epi8(_mm512_cvtepi32_epi8(_mm512_castps_si512(rounded)), _mm_set1_epi8(offset));
                _mm_storeu_si128(numbers.as_mut_ptr().add(half * PANEL).cast(), bytes);
            }
        }
    }
}

/// # Safety
/// The machine has AVX-512 with VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn multiply(tile: Tile<'_>, totals: &mut [Totals]) {
    let is_single = tile.panels.panels() == 1;
    if let Some(totals) = totals.first_chunk_mut::<ROWS>() {
        // SAFETY: as the caller promises.
        return unsafe {
            if is_single {
                multiply_rows::<ROWS, 1>(tile, 0, totals)
            } else {
                multiply_rows::<ROWS, 2>(tile, 0, totals)
            }
        };
    }
    for (row, totals) in totals.iter_mut().map(std::array::from_mut).enumerate() {
        // SAFETY: as the caller promises.
        unsafe {
            if is_single { multiply_rows::<1, 1>(tile, row, totals) } else { multiply_rows::<1, 2>(tile, row, totals) }
        };
    }
}

/// Numbers of the left factor have 128 added, so that they are not negative; 128 times the sum of the right one's is taken away.
///
/// # Safety
/// The machine has AVX-512 with VNNI.
#[inline(always)]
unsafe fn multiply_rows<const R: usize, const P: usize>(tile: Tile<'_>, first: usize, totals: &mut [Totals; R]) {
    let Tile { rows, tile, panels } = tile;
    let (left, left_scales, height) = rows.tile(tile);
    let of_panels: [(&[i8], &[f32], &[i16]); P] = std::array::from_fn(|panel| panels.panel(panel));
    let parts = left_scales.len() / height;
    assert!(first + R <= height && left.len() == parts * PART * height && left_scales.len() == parts * height);
    assert!(of_panels.iter().all(|(numbers, scales, sums)| {
        [numbers.len(), scales.len() * PART, sums.len() * PART] == [parts * PART * PANEL; 3]
    }));
    // SAFETY: all that is read lies in the slices, whose lengths were asserted; alignment is not asked for.
    unsafe {
        let mut totals_of: [[__m512; P]; R] =
            std::array::from_fn(|row| std::array::from_fn(|panel| _mm512_loadu_ps(totals[row][panel].as_ptr())));
        for part in 0..parts {
            let offsets: [__m512i; P] = std::array::from_fn(|panel| {
                let sums = _mm256_loadu_si256(of_panels[panel].2.as_ptr().add(part * PANEL).cast());
                _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32::<7>(_mm512_cvtepi16_epi32(sums)))
            });
            let mut products: [[__m512i; P]; R] = [offsets; R];
            for four in 0..PART / 4 {
                let left = left.as_ptr().add((part * PART + 4 * four) * height + 4 * first);
                let lines: [__m512i; P] = std::array::from_fn(|panel| {
                    _mm512_loadu_si512(of_panels[panel].0.as_ptr().add((part * PART + 4 * four) * PANEL).cast())
                });
                for (row, products) in products.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(left.add(4 * row).cast::<i32>().read_unaligned());
                    for (product, line) in products.iter_mut().zip(lines) {
                        *product = _mm512_dpbusd_epi32(*product, x, line);
                    }
                }
            }
            let scales: [__m512; P] =
                std::array::from_fn(|panel| _mm512_loadu_ps(of_panels[panel].1.as_ptr().add(part * PANEL)));
            for (row, totals) in totals_of.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*left_scales.get_unchecked(part * height + first + row));
                for (panel, total) in totals.iter_mut().enumerate() {
                    let sum = _mm512_cvtepi32_ps(products[row][panel]);
                    *total = _mm512_add_ps(*total, _mm512_mul_ps(sum, _mm512_mul_ps(x, scales[panel])));
                }
            }
        }
        for (totals, totals_of) in totals.iter_mut().zip(totals_of) {
            for (total, of_panel) in totals.iter_mut().zip(totals_of) {
                _mm512_storeu_ps(total.as_mut_ptr(), of_panel);
            }
        }
    }
}
