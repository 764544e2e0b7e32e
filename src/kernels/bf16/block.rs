//! A block of the result, 32 rows and columns, and what of it is in the result where that ends.

use super::super::InstructionSet;
use super::super::output::{Output, Start};
use super::{STEP, TILE, TILE_LEN};
use half::bf16;
use std::ops::Range;

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
    /// `out = start + left * right` for some rows and columns of the output.
    pub fn add(
        self,
        start: Start<'_, f32>,
        out: &Output<'_, f32>,
        rows: Range<usize>,
        columns: &Range<usize>,
        set: InstructionSet,
    ) {
        let mut line = [0f32; BLOCK_COLUMNS];
        if let Start::Row(row) = start {
            line[..columns.len()].copy_from_slice(&row[columns.clone()]);
        }
        let from_output = matches!(start, Start::Output);
        // SAFETY: the block is within the output, which is the caller's own.
        let out = unsafe { out.part(rows.clone(), columns.clone()) };
        if rows.len() == BLOCK_ROWS && columns.len() == BLOCK_COLUMNS {
            let start = if from_output { (out.first().cast_const(), out.stride()) } else { (line.as_ptr(), 0) };
            // SAFETY: the output has the whole block.
            return unsafe { self.multiply(Sums { start, out: (out.first(), out.stride()) }, set) };
        }
        let mut copy = [0f32; BLOCK_ROWS * BLOCK_COLUMNS];
        // SAFETY: the copy is a whole block, and what is copied from the output and to it lies in the caller's block.
        unsafe {
            let copy = copy.as_mut_ptr();
            let each_row =
                (0..rows.len()).map(|row| (out.first().add(row * out.stride()), copy.add(row * BLOCK_COLUMNS)));
            if from_output {
                each_row.clone().for_each(|(out, copy)| copy.copy_from_nonoverlapping(out, columns.len()));
            }
            let start = if from_output { (copy.cast_const(), BLOCK_COLUMNS) } else { (line.as_ptr(), 0) };
            self.multiply(Sums { start, out: (copy, BLOCK_COLUMNS) }, set);
            each_row.for_each(|(out, copy)| out.copy_from_nonoverlapping(copy, columns.len()));
        }
    }

    /// # Safety
    /// The sums are of a whole block, to read and to write.
    unsafe fn multiply(self, sums: Sums, set: InstructionSet) {
        assert!(self.left.len() >= 2 * self.steps * TILE_LEN);
        assert!(self.right.len() >= self.panel + self.steps * TILE_LEN);
        // SAFETY: the factors have all tiles, as was asserted, and an instruction set is only in use on a machine that has it.
        unsafe {
            match set {
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Amx => super::amx::multiply(self, sums),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512Bf16 => super::avx512::multiply(self, sums),
                _ => self.multiply_portably(sums),
            }
        }
    }

    /// # Safety
    /// As [`Self::multiply`].
    unsafe fn multiply_portably(self, sums: Sums) {
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
    super::super::widen_bf16(value.to_bits())
}
