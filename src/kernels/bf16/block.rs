//! The product of a block of the result, 32 rows and columns, as any machine computes it.

use super::super::half_precision::widen_bf16;
use super::pairs::{STEP, TILE, TILE_LEN};
use half::bf16;

/// Rows of a block: two tiles.
pub(super) const BLOCK_ROWS: usize = 2 * TILE;

/// Columns of a block: two panels.
pub(super) const BLOCK_COLUMNS: usize = 2 * TILE;

/// The factors of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    /// Two rows of tiles.
    pub left: &'a [bf16],
    /// The tiles of two panels.
    pub right: &'a [bf16],
    /// From the first panel to the second.
    pub panel: usize,
    /// Tiles to sum over.
    pub steps: usize,
}

/// Where the sums of a whole block begin and where they go to, each with the distance of its rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sums {
    pub start: (*const f32, usize),
    pub out: (*mut f32, usize),
}

impl Block<'_> {
    /// # Safety
    /// The sums are of a whole block, to read and to write.
    pub unsafe fn multiply_portably(self, sums: Sums) {
        for row in 0..BLOCK_ROWS {
            let left = &self.left[row / TILE * self.steps * TILE_LEN + row % TILE * STEP..];
            for panel in 0..BLOCK_COLUMNS / TILE {
                let right = &self.right[panel * self.panel..][..self.steps * TILE_LEN];
                // SAFETY: a row of the block, as the caller promises.
                let (start, out) = unsafe { (sums.start.0.add(row * sums.start.1), sums.out.0.add(row * sums.out.1)) };
                // SAFETY: as above; the alignment of sixteen values is that of one.
                let mut total = unsafe { *start.add(panel * TILE).cast::<[f32; TILE]>() };
                for (left, right) in left.chunks(TILE_LEN).zip(right.as_chunks::<TILE_LEN>().0) {
                    for (x, line) in left[..STEP].as_chunks::<2>().0.iter().zip(right.as_chunks::<STEP>().0) {
                        let x = x.map(widened);
                        for (sum, y) in total.iter_mut().zip(line.as_chunks::<2>().0) {
                            let y = y.map(widened);
                            *sum += x[0] * y[0] + x[1] * y[1];
                        }
                    }
                }
                // SAFETY: as above.
                unsafe { *out.add(panel * TILE).cast::<[f32; TILE]>() = total };
            }
        }
    }
}

fn widened(value: bf16) -> f32 {
    widen_bf16(value.to_bits())
}
