//! The product that every other kernel is made of: a few rows times sixteen columns, or twice as many, summed in registers.
//! Products of bf16 alone have tiles of their own ([`super::bf16`]).
//!
//! Neither factor is copied for it. The left one is a set of rows anywhere in memory, so the patches under a
//! convolution's kernel need not exist; the right one is a panel of sixteen neighbouring columns, so weights
//! are laid out as panels ([`pack`]). Each output value is one sum in one order whatever tile it falls into.

use super::bf16::{self, Pairs};
use super::output::{Output, Start};
use super::packed_weight::{Packed, Panels};
use super::panel_row::PanelRow;
use super::{InstructionSet, Real};
use std::ops::Range;

/// Columns of a tile: two AVX registers of f32, or one of AVX-512.
pub(super) const PANEL: usize = 16;

/// Length of the sums between two visits to the output, for one panel: that many rows of it stay in the first cache.
const DEPTH: usize = 320;

/// Rows that one panel is multiplied with before the next panel is fetched. Where panels have to be widened first, it is all rows
/// of the task.
const BLOCK_ROWS: usize = 96;

/// One run of the sum: `count` steps from an offset into each factor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub left: usize,
    pub right: usize,
    pub count: usize,
}

/// The left factor: row `r` at step `i` of a run is `values[starts[r] + run.left + i * step]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left<'a, T> {
    pub values: &'a [T],
    pub starts: &'a [usize],
    pub step: usize,
}

/// The right factor: column `j` of panel `p` at step `i` of a run is `values[run.right + p * panel + i * step + j]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Right<'a, T> {
    pub values: &'a [T],
    pub step: usize,
    pub panel: usize,
}

/// What [`add_tiles`] does.
#[derive(Debug)]
pub(super) struct Tiles<'a, T> {
    left: Left<'a, T>,
    right: Right<'a, T>,
    runs: &'a [Run],
    start: Start<'a, T>,
    out: Output<'a, T>,
}

/// `out = start + left * right`, where the sums go over `runs`, for as many panels of columns as [`Product::panels_at_once`]
/// says, or fewer.
pub(super) fn add_tiles<T: Real>(
    left: Left<'_, T>,
    right: Right<'_, T>,
    runs: &[Run],
    start: Start<'_, T>,
    out: Output<'_, T>,
) {
    assert!(left.starts.len() == out.rows && out.columns <= T::panels_at_once() * PANEL);
    T::add_tiles(&Tiles { left, right, runs, start, out });
}

/// The element types' ways to [`add_tiles`] and to [`add_product`] with pairs of bf16.
pub(super) trait Product: Sized {
    /// How many panels share what is read of the left factor.
    fn panels_at_once() -> usize {
        1
    }

    fn add_tiles(tiles: &Tiles<'_, Self>);

    /// In f32 with the left factor rounded too.
    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>);

    /// A value of the left factor as products with pairs take it.
    type Rounded: Copy + Default + Send + Sync;

    /// Rounds the left factor for [`Self::add_rounded`].
    fn round(values: &[Self], to: &mut [Self::Rounded]);

    /// As [`Self::add_pairs`] with what was rounded before.
    fn add_rounded(rows: Rows<'_, Self::Rounded>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>);
}

impl Product for f64 {
    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>) {
        bf16::add_widened(rows, pairs, start, out);
    }

    type Rounded = Self;

    fn round(values: &[Self], to: &mut [Self]) {
        to.copy_from_slice(values);
    }

    fn add_rounded(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>) {
        Self::add_pairs(rows, pairs, start, out);
    }

    fn add_tiles(tiles: &Tiles<'_, Self>) {
        // SAFETY: plain arithmetic needs no special instructions.
        unsafe { tiles.add::<[Self; PANEL], 1, 6>() };
    }
}

impl Product for f32 {
    fn panels_at_once() -> usize {
        if InstructionSet::in_use() >= InstructionSet::Avx512 { 2 } else { 1 }
    }

    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>) {
        bf16::add_product(rows, pairs, start, out, InstructionSet::in_use());
    }

    type Rounded = half::bf16;

    fn round(values: &[Self], to: &mut [half::bf16]) {
        bf16::round(values, to, InstructionSet::in_use());
    }

    fn add_rounded(rows: Rows<'_, half::bf16>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>) {
        bf16::add_product(rows, pairs, start, out, InstructionSet::in_use());
    }

    fn add_tiles(tiles: &Tiles<'_, Self>) {
        #[cfg(target_arch = "x86_64")]
        {
            use super::panel_row::{Avx2Row, Avx512Row};

            // Twelve registers of sums, two for a row, leave room for the operands.
            #[target_feature(enable = "avx2,fma")]
            fn avx2(tiles: &Tiles<'_, f32>) {
                // SAFETY: this function has the instructions.
                unsafe { tiles.add::<Avx2Row, 1, 6>() };
            }
            // Twelve registers of sums, or sixteen: two panels share what is read of the left factor, since a machine may take
            // as many products as it can read values.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512(tiles: &Tiles<'_, f32>) {
                // SAFETY: this function has the instructions.
                unsafe {
                    match tiles.out.columns {
                        ..=PANEL => tiles.add::<Avx512Row, 1, 12>(),
                        _ => tiles.add::<Avx512Row, 2, 8>(),
                    }
                };
            }
            match InstructionSet::in_use() {
                InstructionSet::Portable => {}
                // SAFETY: an instruction set is only in use on a machine that has it.
                InstructionSet::Avx2 => return unsafe { avx2(tiles) },
                // SAFETY: as above; those that are higher have these instructions too.
                _ => return unsafe { avx512(tiles) },
            }
        }
        // SAFETY: plain arithmetic needs no special instructions.
        unsafe { tiles.add::<[Self; PANEL], 1, 6>() };
    }
}

impl<T: Real> Tiles<'_, T> {
    /// Tile by tile, of `P` panels and nearly equal heights up to `MOST`.
    ///
    /// # Safety
    /// The machine has the instructions of `V`.
    #[inline(always)]
    unsafe fn add<V: PanelRow<T>, const P: usize, const MOST: usize>(&self) {
        macro_rules! tile_of {
            ($rows:expr, $($R:literal)*) => {
                match $rows.len() {
                    // SAFETY: as the caller promises.
                    $($R if $R <= MOST => unsafe { self.add_tile::<V, P, $R>($rows.start) },)*
                    _ => {}
                }
            };
        }
        let count = self.left.starts.len();
        let tiles = count.div_ceil(MOST);
        for i in 0..tiles {
            tile_of!((i * count / tiles..(i + 1) * count / tiles), 1 2 3 4 5 6 7 8 9 10 11 12);
        }
    }

    /// `R` rows from `first`.
    ///
    /// # Safety
    /// The machine has the instructions of `V`.
    #[inline(always)]
    unsafe fn add_tile<V: PanelRow<T>, const P: usize, const R: usize>(&self, first: usize) {
        let Self { left, right, ref out, .. } = *self;
        let Some(&starts) = left.starts[first..].first_chunk::<R>() else { return };
        assert!(first + R <= out.rows && (P - 1) * PANEL < out.columns.max(1) && out.columns <= P * PANEL);
        // Of the last panel; the others are whole.
        let columns = out.columns - (P - 1) * PANEL;
        let is_whole = |panel: usize| panel + 1 < P || columns == PANEL;
        // SAFETY: the block has these rows of `columns` values, `stride` apart, and is this task's own. What is
        // read of the factors lies within them: for each run the furthest index of either is asserted.
        unsafe {
            let to = out.first.add(first * out.stride);
            let load = |row: *const T, panel: usize| {
                let row = row.add(panel * PANEL);
                if is_whole(panel) {
                    return V::load(row);
                }
                let mut values = [T::zero(); PANEL];
                values.as_mut_ptr().copy_from_nonoverlapping(row, columns);
                V::load(values.as_ptr())
            };
            let mut sums: [[V; P]; R] = match self.start {
                Start::Output => {
                    std::array::from_fn(|row| std::array::from_fn(|panel| load(to.add(row * out.stride), panel)))
                }
                Start::Zero => [[V::load([T::zero(); PANEL].as_ptr()); P]; R],
                Start::Row(row) => [std::array::from_fn(|panel| load(row[..out.columns].as_ptr(), panel)); R],
            };
            let last_start = starts.into_iter().fold(0, usize::max);
            for run in self.runs.iter().filter(|run| run.count > 0) {
                let steps = run.count - 1;
                assert!(last_start + run.left + steps * left.step < left.values.len());
                assert!(run.right + (P - 1) * right.panel + steps * right.step + PANEL <= right.values.len());
                let rows = starts.map(|start| left.values.as_ptr().add(start + run.left));
                let mut columns = right.values.as_ptr().add(run.right);
                let mut at = 0;
                for _ in 0..run.count {
                    let lines: [V; P] = std::array::from_fn(|panel| V::load(columns.wrapping_add(panel * right.panel)));
                    for (sums, row) in sums.iter_mut().zip(rows) {
                        let x = *row.add(at);
                        for (sum, line) in sums.iter_mut().zip(lines) {
                            *sum = sum.add_product(x, line);
                        }
                    }
                    at += left.step;
                    columns = columns.wrapping_add(right.step);
                }
            }
            for (row, sums) in sums.into_iter().enumerate() {
                for (panel, sum) in sums.into_iter().enumerate() {
                    let to = to.add(row * out.stride + panel * PANEL);
                    if is_whole(panel) {
                        sum.store(to);
                    } else {
                        let mut values = [T::zero(); PANEL];
                        sum.store(values.as_mut_ptr());
                        to.copy_from_nonoverlapping(values.as_ptr(), columns);
                    }
                }
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

/// `out = start + rows * right`, for the panels that cover `out`'s columns, plus its residual if it has one: while a task's
/// block is in the second cache.
pub(super) fn add_product<T: Real>(rows: Rows<'_, T>, right: Packed<'_, T>, start: Start<'_, T>, out: &Output<'_, T>) {
    match right {
        Packed::Panels(panels) => add_panels(rows, panels, start, out),
        Packed::Pairs(pairs) => T::add_pairs(rows, pairs, start, out),
    }
    out.add_residual();
}

/// [`add_product`] with pairs, of rows that were rounded before.
pub(super) fn add_rounded_product<T: Real>(
    rows: Rows<'_, T::Rounded>,
    pairs: Pairs<'_>,
    start: Start<'_, T>,
    out: &Output<'_, T>,
) {
    T::add_rounded(rows, pairs, start, out);
    out.add_residual();
}

/// With panels as [`pack`] makes them.
fn add_panels<T: Real>(rows: Rows<'_, T>, panels: Panels<'_, T>, start: Start<'_, T>, out: &Output<'_, T>) {
    let depth: usize = rows.stretches.iter().map(|&(_, length)| length).sum();
    let count = out.columns.div_ceil(PANEL);
    assert!(panels.len() >= count * depth * PANEL && out.rows == rows.starts.len());
    let at_once = T::panels_at_once();
    let most_rows = if panels.are_wide() { BLOCK_ROWS } else { out.rows.max(1) };
    let mut buffer = Vec::new();
    for (i, RunBlock { lines, runs }) in blocks_of_runs(rows.stretches, DEPTH / at_once).into_iter().enumerate() {
        let start = if i == 0 { start } else { Start::Output };
        for first in (0..out.rows).step_by(most_rows) {
            let block = first..(first + most_rows).min(out.rows);
            let left = Left { values: rows.values, starts: &rows.starts[block.clone()], step: 1 };
            for first in (0..count).step_by(at_once) {
                let group = first..(first + at_once).min(count);
                let columns = group.start * PANEL..(group.end * PANEL).min(out.columns);
                let start = start.at(columns.start);
                let (values, panel) = panels.widened(depth, &group, &lines, &mut buffer);
                let right = Right { values, step: PANEL, panel };
                // SAFETY: a block of the block that this task may write.
                let out = unsafe { out.part(block.clone(), columns) };
                add_tiles(left, right, &runs, start, out);
            }
        }
    }
}

/// `out += sum over the runs of left^T right`, each a matrix whose rows are `strides` apart, the left one from its first column and
/// the right one from where its runs begin.
pub(super) fn add_outer_products<T: Real>(
    [left, right]: [&[T]; 2],
    strides: [usize; 2],
    runs: &[Run],
    out: Output<'_, T>,
) {
    let starts: Vec<usize> = (0..out.rows()).collect();
    let left = Left { values: left, starts: &starts, step: strides[0] };
    let at_once = T::panels_at_once() * PANEL;
    for first in (0..out.columns()).step_by(at_once) {
        let columns = first..(first + at_once).min(out.columns());
        let right = Right { values: &right[first..], step: strides[1], panel: PANEL };
        // SAFETY: a block of the block that this task may write.
        let out = unsafe { out.part(0..starts.len(), columns) };
        add_tiles(left, right, runs, Start::Output, out);
    }
}

/// Some runs of a sum, and the lines of a panel that they need; the runs count from the first of these.
#[derive(Default)]
struct RunBlock {
    lines: Range<usize>,
    runs: Vec<Run>,
}

/// Cuts the stretches of a sum into blocks of about `most` steps.
fn blocks_of_runs(stretches: &[(usize, usize)], most: usize) -> Vec<RunBlock> {
    let mut blocks = Vec::new();
    let mut block = RunBlock::default();
    for &(offset, length) in stretches {
        let pieces = length.div_ceil(most);
        for piece in 0..pieces {
            let (from, to) = (piece * length / pieces, (piece + 1) * length / pieces);
            let count = to - from;
            if !block.runs.is_empty() && block.lines.len() + count > most {
                let end = block.lines.end;
                blocks.push(std::mem::replace(&mut block, RunBlock { lines: end..end, runs: Vec::new() }));
            }
            block.runs.push(Run { left: offset + from, right: block.lines.len() * PANEL, count });
            block.lines.end += count;
        }
    }
    blocks.push(block);
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

/// Where in a matrix that [`pack`] laid out a value is.
pub(super) fn packed_at(depth: usize, k: usize, column: usize) -> usize {
    (column / PANEL * depth + k) * PANEL + column % PANEL
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles of more rows or panels, which are for registers of sixteen values, give every row what tiles of six rows give.
    #[test]
    fn the_size_of_tiles_changes_nothing() {
        const DEPTH: usize = 9;
        let value = |i: usize| (i as f32 * 0.37).sin();
        let (left, right): (Vec<f32>, Vec<f32>) =
            ((0..40 * DEPTH).map(value).collect(), (5..5 + 2 * DEPTH * PANEL).map(value).collect());
        let runs = [Run { left: 0, right: 0, count: DEPTH }];
        for rows in 1..=40 {
            let starts: Vec<usize> = (0..rows).map(|row| row * DEPTH).collect();
            let sums = |first: usize, columns: usize, high: bool| {
                let mut sums = vec![f32::NAN; rows * columns];
                let tiles = Tiles {
                    left: Left { values: &left, starts: &starts, step: 1 },
                    right: Right { values: &right[first * DEPTH..], step: PANEL, panel: DEPTH * PANEL },
                    runs: &runs,
                    start: Start::Row(&right[first..]),
                    out: Output::new(&mut sums, columns),
                };
                // SAFETY: plain arithmetic needs no special instructions.
                unsafe {
                    match (columns, high) {
                        (..=PANEL, false) => tiles.add::<[f32; PANEL], 1, 6>(),
                        (..=PANEL, true) => tiles.add::<[f32; PANEL], 1, 12>(),
                        _ => tiles.add::<[f32; PANEL], 2, 8>(),
                    }
                }
                sums
            };
            let [low, high] = [false, true].map(|high| sums(0, PANEL, high));
            assert!(low == high && low.iter().all(|sum| sum.is_finite()), "{rows} rows");
            for beyond in [1, 9, PANEL] {
                let (both, second) = (sums(0, PANEL + beyond, true), sums(PANEL, beyond, false));
                for (i, row) in both.chunks_exact(PANEL + beyond).enumerate() {
                    assert_eq!(row[..PANEL], low[i * PANEL..][..PANEL]);
                    assert_eq!(row[PANEL..], second[i * beyond..][..beyond]);
                }
            }
        }
    }
}
