//! Rows to columns, a few values at a time: what laying out a weight consists of.

use super::panel_row::PANEL;

/// Values of a row that [`across`] takes at a time.
pub(super) const AT_ONCE: usize = 8;

/// Values `at` to `at + 8` of sixteen rows, as eight lines across the rows.
#[inline(always)]
pub(super) fn across<E: Copy>(rows: &[&[E]; PANEL], at: usize) -> [[E; PANEL]; AT_ONCE] {
    let rows: [[E; AT_ONCE]; PANEL] =
        std::array::from_fn(|row| *rows[row][at..].first_chunk().unwrap_or_else(|| short()));
    #[cfg(target_arch = "x86_64")]
    match size_of::<E>() {
        // SAFETY: both are arrays of as many values of that size, of which every pattern of bits is one.
        2 => return unsafe { std::mem::transmute_copy(&sse2::words(&std::mem::transmute_copy(&rows))) },
        // SAFETY: as above.
        4 => return unsafe { std::mem::transmute_copy(&sse2::double_words(&std::mem::transmute_copy(&rows))) },
        _ => {}
    }
    std::array::from_fn(|i| rows.map(|row| row[i]))
}

#[cold]
fn short() -> ! {
    panic!("a row of a weight has fewer values than its shape says")
}

/// SSE2, which every x86-64 has.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::arch::x86_64::{
        __m128i, _mm_unpackhi_epi16, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi16, _mm_unpacklo_epi32,
        _mm_unpacklo_epi64,
    };
    use std::mem::transmute;

    /// Of 32 bits.
    #[inline(always)]
    pub fn double_words(rows: &[[u32; 8]; 16]) -> [[u32; 16]; 8] {
        // SAFETY: every x86-64 has SSE2, and registers are arrays of integers.
        unsafe {
            let rows: &[[__m128i; 2]; 16] = transmute(rows);
            let mut lines = [[rows[0][0]; 4]; 8];
            for half in 0..2 {
                for quarter in 0..4 {
                    let row = |i: usize| rows[4 * quarter + i][half];
                    let (low_01, low_23) = (_mm_unpacklo_epi32(row(0), row(1)), _mm_unpacklo_epi32(row(2), row(3)));
                    let (high_01, high_23) = (_mm_unpackhi_epi32(row(0), row(1)), _mm_unpackhi_epi32(row(2), row(3)));
                    lines[4 * half][quarter] = _mm_unpacklo_epi64(low_01, low_23);
                    lines[4 * half + 1][quarter] = _mm_unpackhi_epi64(low_01, low_23);
                    lines[4 * half + 2][quarter] = _mm_unpacklo_epi64(high_01, high_23);
                    lines[4 * half + 3][quarter] = _mm_unpackhi_epi64(high_01, high_23);
                }
            }
            transmute(lines)
        }
    }

    /// Of 16 bits.
    #[inline(always)]
    pub fn words(rows: &[[u16; 8]; 16]) -> [[u16; 16]; 8] {
        // SAFETY: every x86-64 has SSE2, and registers are arrays of integers.
        unsafe {
            let rows: &[__m128i; 16] = transmute(rows);
            let mut lines = [[rows[0]; 2]; 8];
            for half in 0..2 {
                let rows = &rows[8 * half..8 * half + 8];
                // Pairs of rows, then fours, then all eight; of the eight values of a row first the lower half.
                let two = |i: usize| {
                    [_mm_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]), _mm_unpackhi_epi16(rows[2 * i], rows[2 * i + 1])]
                };
                let four = |i: usize, part: usize| {
                    let (a, b) = (two(2 * i)[part], two(2 * i + 1)[part]);
                    [_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b)]
                };
                for part in 0..2 {
                    let (upper, lower) = (four(0, part), four(1, part));
                    for quarter in 0..2 {
                        let line = 4 * part + 2 * quarter;
                        lines[line][half] = _mm_unpacklo_epi64(upper[quarter], lower[quarter]);
                        lines[line + 1][half] = _mm_unpackhi_epi64(upper[quarter], lower[quarter]);
                    }
                }
            }
            transmute(lines)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<E: Copy + PartialEq + std::fmt::Debug>(value: impl Fn(usize) -> E) {
        let matrix: Vec<Vec<E>> = (0..PANEL).map(|row| (0..11).map(|i| value(row * 100 + i)).collect()).collect();
        let rows: [&[E]; PANEL] = std::array::from_fn(|row| &matrix[row][..]);
        for (i, line) in across(&rows, 3).iter().enumerate() {
            assert_eq!(*line, std::array::from_fn(|row| value(row * 100 + 3 + i)));
        }
    }

    #[test]
    fn lines_are_columns_for_values_of_every_size() {
        check(|i| i as u16);
        check(|i| i as f32);
        check(|i| i as f64);
    }
}
