//! AVX-512's products of pairs of bf16.

use super::block::{BLOCK_COLUMNS, BLOCK_ROWS, Block, Sums};
use super::pairs::{STEP, TILE, TILE_LEN};
use half::bf16;
use std::arch::x86_64::{
    __m512, __m512bh, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32, _mm512_storeu_ps,
};

/// Rows whose sums are in registers at a time.
const ROWS: usize = 8;

/// Registers of a row's sums.
const PANELS: usize = BLOCK_COLUMNS / TILE;

/// As its namesake in [`super::left`].
///
/// # Safety
/// The machine has AVX-512 with bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn round_steps(values: &[f32], to: &mut [bf16], apart: usize) {
    for (step, to) in values.chunks(STEP).zip(to.chunks_mut(apart)) {
        let mut copy = [0f32; STEP];
        let values = match step.first_chunk::<STEP>() {
            Some(values) => values,
            None => {
                copy[..step.len()].copy_from_slice(step);
                &copy
            }
        };
        let to = to[..STEP].as_mut_ptr();
        // SAFETY: 32 values to read, and the place of 32 to write; alignment is not asked for.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(values.as_ptr()), _mm512_loadu_ps(values.as_ptr().add(STEP / 2)));
            to.cast::<__m512bh>().write_unaligned(_mm512_cvtne2ps_pbh(high, low));
        }
    }
}

/// # Safety
/// The machine has AVX-512 with bf16, the factors have all tiles of the block, and the sums all its rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn multiply(block: Block<'_>, sums: Sums) {
    let ((start, start_stride), (out, out_stride)) = (sums.start, sums.out);
    for first in (0..BLOCK_ROWS).step_by(ROWS) {
        // SAFETY: what is read lies in the block's tiles and rows, as the caller promises; a register of pairs is one of
        // 32-bit values, and alignment is not asked for.
        unsafe {
            let (start, out) = (start.add(first * start_stride), out.add(first * out_stride));
            let mut sums: [[__m512; PANELS]; ROWS] = std::array::from_fn(|row| {
                std::array::from_fn(|panel| _mm512_loadu_ps(start.add(row * start_stride + panel * TILE)))
            });
            let mut left = block.left.as_ptr().add(first / TILE * block.steps * TILE_LEN + first % TILE * STEP);
            let mut right = block.right.as_ptr();
            for _ in 0..block.steps {
                for pair in 0..STEP / 2 {
                    let columns: [__m512bh; PANELS] = std::array::from_fn(|panel| {
                        right.add(panel * block.panel + pair * STEP).cast::<__m512bh>().read_unaligned()
                    });
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let x = left.add(row * STEP + 2 * pair).cast::<i32>().read_unaligned();
                        let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x));
                        for (sum, columns) in sums.iter_mut().zip(columns) {
                            *sum = _mm512_dpbf16_ps(*sum, x, columns);
                        }
                    }
                }
                left = left.add(TILE_LEN);
                right = right.add(TILE_LEN);
            }
            for (row, sums) in sums.into_iter().enumerate() {
                for (panel, sum) in sums.into_iter().enumerate() {
                    _mm512_storeu_ps(out.add(row * out_stride + panel * TILE), sum);
                }
            }
        }
    }
}
