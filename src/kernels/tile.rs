//! The product that every other kernel is made of: a few rows times sixteen columns, summed in registers.
//!
//! Neither factor is copied for it. The left one is a set of rows anywhere in memory, so the patches under a
//! convolution's kernel need not exist; the right one is a panel of sixteen neighbouring columns, so weights
//! are laid out as panels ([`pack`]). Each output value is one sum in one order whatever tile it falls into.

use super::{Real, contiguous, for_real, output};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use std::marker::PhantomData;
use std::ops::Range;

/// Columns of a tile: two AVX registers of f32.
pub(super) const PANEL: usize = 16;

/// The most rows of a tile: with two registers each they leave room for the operands.
const ROWS: usize = 6;

/// Length of the sums between two visits to the output: a panel of this many rows stays in the first cache.
const DEPTH: usize = 320;

/// Rows that one panel is multiplied with before the next panel is fetched.
const BLOCK_ROWS: usize = 96;

/// One run of the sum: `count` steps from an offset into each factor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub left: usize,
    pub right: usize,
    pub count: usize,
}

/// A matrix in a slice, each row and each step of the sum at a distance of its own.
///
/// As the left factor, row `r` at step `i` of a run is `values[starts[r] + run.left + i * step]`; as the right
/// factor, column `j` is `values[run.right + i * step + j]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Strided<'a, T> {
    pub values: &'a [T],
    pub step: usize,
}

/// The rows of a matrix that one task writes; other tasks write other rows or other columns.
#[derive(Debug)]
pub(super) struct Output<'a, T> {
    first: *mut T,
    stride: usize,
    columns: usize,
    rows: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable borrow of numbers, which may go to another thread.
unsafe impl<T: Send> Send for Output<'_, T> {}
// SAFETY: all that a shared `Output` can do is `part`, whose caller promises to keep the parts apart.
unsafe impl<T: Send> Sync for Output<'_, T> {}

impl<'a, T: Real> Output<'a, T> {
    /// All of a row-major matrix.
    pub fn new(values: &'a mut [T], columns: usize) -> Self {
        let rows = values.len() / columns.max(1);
        Self { first: values.as_mut_ptr(), stride: columns, columns, rows, matrix: PhantomData }
    }

    /// A block of it.
    ///
    /// # Safety
    /// Nobody reads or writes the block through another `Output` while this one is in use.
    #[inline]
    pub unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        let offset = if rows.is_empty() || columns.is_empty() { 0 } else { rows.start * self.stride + columns.start };
        // SAFETY: the block's first value is inside the matrix, as was asserted, or the block is empty.
        let first = unsafe { self.first.add(offset) };
        Self { first, rows: rows.len(), columns: columns.len(), ..*self }
    }

    /// Sets all of it.
    pub fn copy_from(&mut self, values: &[T]) {
        for (row, values) in values.chunks_exact(self.columns.max(1)).enumerate() {
            // SAFETY: a row of this task's own block.
            let mut row = unsafe { self.part(row..row + 1, 0..self.columns) };
            row.fill(values);
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Sets every row.
    #[inline]
    pub fn fill(&mut self, values: &[T]) {
        assert!(values.len() == self.columns);
        for row in 0..self.rows {
            // SAFETY: `row` is a row of the block, which holds `columns` values, as many as `values`; the
            // block is this task's own.
            unsafe {
                let row = self.first.add(row * self.stride);
                match values.first_chunk::<PANEL>() {
                    Some(panel) if values.len() == PANEL => *row.cast::<[T; PANEL]>() = *panel,
                    _ => row.copy_from_nonoverlapping(values.as_ptr(), self.columns),
                }
            }
        }
    }
}

/// Splits `count` rows into tiles of nearly equal height.
fn tiles(count: usize) -> impl Iterator<Item = Range<usize>> {
    let tiles = count.div_ceil(ROWS);
    (0..tiles).map(move |i| i * count / tiles..(i + 1) * count / tiles)
}

/// `out += left * right`, where row `r` of `left` begins at `starts[r]` and the sum goes over `runs`. The
/// right factor's first column is at the offset of its runs.
pub(super) fn add_tiles<T: Real>(
    left: Strided<'_, T>,
    starts: &[usize],
    right: Strided<'_, T>,
    right_start: usize,
    runs: &[Run],
    out: Output<'_, T>,
) {
    assert!(starts.len() == out.rows && out.columns <= PANEL);
    for rows in tiles(starts.len()) {
        // SAFETY: a block of the block that this task may write.
        let out = unsafe { out.part(rows.clone(), 0..out.columns) };
        let starts = &starts[rows];
        match *starts {
            [a, b, c, d, e, f] => add_tile(left, [a, b, c, d, e, f], right, right_start, runs, out),
            [a, b, c, d, e] => add_tile(left, [a, b, c, d, e], right, right_start, runs, out),
            [a, b, c, d] => add_tile(left, [a, b, c, d], right, right_start, runs, out),
            [a, b, c] => add_tile(left, [a, b, c], right, right_start, runs, out),
            [a, b] => add_tile(left, [a, b], right, right_start, runs, out),
            [a] => add_tile(left, [a], right, right_start, runs, out),
            _ => {}
        }
    }
}

/// One tile, with products and sums in one rounding where the machine can.
fn add_tile<T: Real, const R: usize>(
    left: Strided<'_, T>,
    starts: [usize; R],
    right: Strided<'_, T>,
    right_start: usize,
    runs: &[Run],
    out: Output<'_, T>,
) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn fused<T: Real, const R: usize>(
            left: Strided<'_, T>,
            starts: [usize; R],
            right: Strided<'_, T>,
            right_start: usize,
            runs: &[Run],
            out: Output<'_, T>,
        ) {
            tile_body::<T, R, true>(left, starts, right, right_start, runs, out);
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the machine has both, which was asked in the line above.
            return unsafe { fused(left, starts, right, right_start, runs, out) };
        }
    }
    if cfg!(target_arch = "aarch64") {
        tile_body::<T, R, true>(left, starts, right, right_start, runs, out);
    } else {
        tile_body::<T, R, false>(left, starts, right, right_start, runs, out);
    }
}

#[inline(always)]
fn tile_body<T: Real, const R: usize, const FUSED: bool>(
    left: Strided<'_, T>,
    starts: [usize; R],
    right: Strided<'_, T>,
    right_start: usize,
    runs: &[Run],
    out: Output<'_, T>,
) {
    assert!(out.rows == R && out.columns <= PANEL);
    let mut sums = [[T::zero(); PANEL]; R];
    for (row, sums) in sums.iter_mut().enumerate() {
        // SAFETY: the block has R rows of `columns` values, `stride` apart, and is this task's own.
        unsafe {
            let row = out.first.add(row * out.stride);
            if out.columns == PANEL {
                *sums = *row.cast::<[T; PANEL]>();
            } else {
                (0..out.columns).for_each(|j| sums[j] = *row.add(j));
            }
        }
    }
    let last_start = starts.into_iter().fold(0, usize::max);
    for run in runs.iter().filter(|run| run.count > 0) {
        let steps = run.count - 1;
        assert!(last_start + run.left + steps * left.step < left.values.len());
        assert!(right_start + run.right + steps * right.step + PANEL <= right.values.len());
        for i in 0..run.count {
            // SAFETY: `i` is at most `steps`, for which the two lines above have checked the furthest index
            // of either factor.
            unsafe {
                let columns = right.values.as_ptr().add(right_start + run.right + i * right.step);
                let columns = &*columns.cast::<[T; PANEL]>();
                for row in 0..R {
                    let x = *left.values.as_ptr().add(starts[row] + run.left + i * left.step);
                    for j in 0..PANEL {
                        sums[row][j] =
                            if FUSED { x.fused(columns[j], sums[row][j]) } else { x * columns[j] + sums[row][j] };
                    }
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: as when the sums were read.
        unsafe {
            let row = out.first.add(row * out.stride);
            if out.columns == PANEL {
                *row.cast::<[T; PANEL]>() = *sums;
            } else {
                (0..out.columns).for_each(|j| *row.add(j) = sums[j]);
            }
        }
    }
}

/// Rows of a left factor that lie in one slice: row `r` is the stretches `starts[r] + offset..` of `stretches`,
/// each with its length, one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub values: &'a [T],
    pub starts: &'a [usize],
    pub stretches: &'a [(usize, usize)],
}

/// `out += rows * panels`, the panels as [`pack`] makes them, for the panels that cover `out`'s columns.
pub(super) fn add_product<T: Real>(rows: Rows<'_, T>, panels: &[T], out: Output<'_, T>) {
    let depth: usize = rows.stretches.iter().map(|&(_, length)| length).sum();
    let count = out.columns.div_ceil(PANEL);
    assert!(panels.len() >= count * depth * PANEL && out.rows == rows.starts.len());
    let left = Strided { values: rows.values, step: 1 };
    let right = Strided { values: panels, step: PANEL };
    for runs in blocks_of_runs(rows.stretches) {
        for first in (0..out.rows).step_by(BLOCK_ROWS) {
            let block = first..(first + BLOCK_ROWS).min(out.rows);
            for panel in 0..count {
                let columns = panel * PANEL..((panel + 1) * PANEL).min(out.columns);
                // SAFETY: a block of the block that this task may write.
                let out = unsafe { out.part(block.clone(), columns) };
                add_tiles(left, &rows.starts[block.clone()], right, panel * depth * PANEL, &runs, out);
            }
        }
    }
}

/// `out += sum over the runs of left^T right`, with the right factor's columns from `right_start`.
pub(super) fn add_outer_products<T: Real>(
    left: Strided<'_, T>,
    right: Strided<'_, T>,
    right_start: usize,
    runs: &[Run],
    out: Output<'_, T>,
) {
    let starts: Vec<usize> = (0..out.rows()).collect();
    for first in (0..out.columns()).step_by(PANEL) {
        let columns = first..(first + PANEL).min(out.columns());
        // SAFETY: a block of the block that this task may write.
        let out = unsafe { out.part(0..starts.len(), columns) };
        add_tiles(left, &starts, right, right_start + first, runs, out);
    }
}

/// Cuts the stretches of a sum into blocks of about [`DEPTH`] steps.
fn blocks_of_runs(stretches: &[(usize, usize)]) -> Vec<Vec<Run>> {
    let mut blocks: Vec<Vec<Run>> = vec![Vec::new()];
    let (mut position, mut filled) = (0, 0);
    for &(offset, length) in stretches {
        let pieces = length.div_ceil(DEPTH);
        for piece in 0..pieces {
            let (from, to) = (piece * length / pieces, (piece + 1) * length / pieces);
            let run = Run { left: offset + from, right: position * PANEL, count: to - from };
            if filled > 0 && filled + run.count > DEPTH {
                blocks.push(Vec::new());
                filled = 0;
            }
            filled += run.count;
            position += run.count;
            if let Some(block) = blocks.last_mut() {
                block.push(run);
            }
        }
    }
    blocks
}

/// Lays a matrix out as panels `[columns / 16][depth][16]`, zeros after the last column; `at(k, column)` gives
/// its values.
pub(super) fn pack<T: Real>(depth: usize, columns: usize, at: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
    use rayon::prelude::*;
    let mut panels = super::zeros::<T>(columns.div_ceil(PANEL) * depth * PANEL);
    panels.par_chunks_mut((depth * PANEL).max(1)).enumerate().for_each(|(panel, values)| {
        let first = panel * PANEL;
        let width = PANEL.min(columns - first);
        for (k, row) in values.chunks_exact_mut(PANEL).enumerate() {
            (0..width).for_each(|j| row[j] = at(k, first + j));
        }
    });
    panels
}

/// The shape of a matrix of `columns` columns that [`pack`] laid out.
pub(super) fn packed_shape(depth: usize, columns: usize) -> [usize; 3] {
    [columns.div_ceil(PANEL), depth, PANEL]
}

/// Whether a weight of this shape is packed: as it is trained it has two dimensions or four.
pub(super) fn is_packed(shape: &[usize]) -> bool {
    shape.len() == 3
}

/// Where in a packed matrix a value is.
pub(super) fn packed_at(depth: usize, k: usize, column: usize) -> usize {
    (column / PANEL * depth + k) * PANEL + column % PANEL
}

/// [`pack`] as an operation on a weight, `[out, in]` or `[out, in, kernel, kernel]`.
pub(super) struct Pack;

impl CustomOp1 for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }

    fn cpu_fwd(&self, weight: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (outputs, inputs, taps) = match *layout.dims() {
            [outputs, inputs] => (outputs, inputs, 1),
            [outputs, inputs, height, width] => (outputs, inputs, height * width),
            _ => candle_core::bail!("pack: a weight has two dimensions or four, not those of {:?}", layout.dims()),
        };
        for_real!(weight, self.name(), T => {
            let weight = contiguous::<T>(weight, layout, self.name())?;
            let at = |k: usize, out: usize| weight[(out * inputs + k % inputs) * taps + k / inputs];
            output(pack(taps * inputs, outputs, at), &packed_shape(taps * inputs, outputs)[..])
        })
    }
}
