//! The product that every other kernel is made of: a few rows times sixteen columns, summed in registers.
//!
//! Neither factor is copied for it. The left one is a set of rows anywhere in memory, so the patches under a
//! convolution's kernel need not exist; the right one is a panel of sixteen neighbouring columns, so weights
//! are laid out as panels ([`pack`]). Each output value is one sum in one order whatever tile it falls into.

use super::bf16::{self, Pairs};
use super::packed_weight::{Packed, Panels};
use super::panel_row::PanelRow;
use super::{InstructionSet, Real};
use std::marker::PhantomData;
use std::ops::Range;

/// Columns of a tile: two AVX registers of f32, or one of AVX-512.
pub(super) const PANEL: usize = 16;

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

/// A new row-major matrix of `count` values, which need not be cleared before they are written.
///
/// # Safety
/// `write` sets every value before it reads it, and sets all of them.
pub(super) unsafe fn matrix<T: Real>(count: usize, columns: usize, write: impl FnOnce(&Output<'_, T>)) -> Vec<T> {
    let mut values = Vec::<T>::with_capacity(count);
    let rows = count / columns.max(1);
    write(&Output { first: values.as_mut_ptr(), stride: columns, columns, rows, matrix: PhantomData });
    // SAFETY: that many values have room, and `write` has set them.
    unsafe { values.set_len(count) };
    values
}

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

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Where its first value is.
    pub fn first(&self) -> *mut T {
        self.first
    }

    /// From a row to the next.
    pub fn stride(&self) -> usize {
        self.stride
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

/// What the sums of a product begin with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a, T> {
    /// With what is in the output.
    Output,
    /// With nothing.
    Zero,
    /// Each row with these values, as many as there are columns: a bias.
    Row(&'a [T]),
}

impl<'a, T> Start<'a, T> {
    /// For the columns from the first of a panel.
    fn at(self, column: usize) -> Self {
        match self {
            Self::Row(row) => Self::Row(&row[column..]),
            other => other,
        }
    }

    /// For the first row of an output.
    pub fn values(self, out: &Output<'_, T>) -> Vec<T>
    where
        T: Real,
    {
        match self {
            Self::Zero => vec![T::zero(); out.columns],
            Self::Row(row) => row[..out.columns].to_vec(),
            // SAFETY: the output is that of the caller, who has its rows to himself.
            Self::Output => (0..out.columns).map(|column| unsafe { *out.first.add(column) }).collect(),
        }
    }
}

/// What is added to a product: to all rows the same, to those of each image its own, or nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bias<'a, T> {
    values: &'a [T],
    pub outputs: usize,
}

impl<'a, T: Copy> Bias<'a, T> {
    /// `values`: `[outputs]`, or `[images, outputs]`.
    pub fn new(values: &'a [T], outputs: usize) -> Self {
        Self { values, outputs }
    }

    pub fn none(outputs: usize) -> Self {
        Self { values: &[], outputs }
    }

    pub fn differs_by_image(self) -> bool {
        self.values.len() > self.outputs
    }

    /// What the sums of an image's rows begin with in these columns.
    pub fn of(self, image: usize, columns: &Range<usize>) -> Start<'a, T> {
        let row = if self.differs_by_image() { image * self.outputs } else { 0 };
        if self.values.is_empty() { Start::Zero } else { Start::Row(&self.values[row..][columns.clone()]) }
    }
}

/// What [`add_tiles`] does, for one panel of columns.
#[derive(Debug)]
pub(super) struct Tiles<'a, T> {
    left: Strided<'a, T>,
    starts: &'a [usize],
    right: Strided<'a, T>,
    right_start: usize,
    runs: &'a [Run],
    start: Start<'a, T>,
    out: Output<'a, T>,
}

/// `out = start + left * right`, where row `r` of `left` begins at `starts[r]` and the sum goes over `runs`. The
/// right factor's first column is at the offset of its runs.
pub(super) fn add_tiles<T: Real>(
    left: Strided<'_, T>,
    starts: &[usize],
    right: Strided<'_, T>,
    right_start: usize,
    runs: &[Run],
    start: Start<'_, T>,
    out: Output<'_, T>,
) {
    assert!(starts.len() == out.rows && out.columns <= PANEL);
    T::add_tiles(&Tiles { left, starts, right, right_start, runs, start, out });
}

/// The element types' ways to [`add_tiles`] and to [`add_product`] with pairs of bf16.
pub(super) trait Product: Sized {
    fn add_tiles(tiles: &Tiles<'_, Self>);

    /// In f32 with the left factor rounded too.
    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>);
}

impl Product for f64 {
    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>) {
        bf16::add_widened(rows, pairs, start, out);
    }

    fn add_tiles(tiles: &Tiles<'_, Self>) {
        // SAFETY: plain arithmetic needs no special instructions.
        unsafe { tiles.add::<[Self; PANEL], 6>() };
    }
}

impl Product for f32 {
    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &Output<'_, Self>) {
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
                unsafe { tiles.add::<Avx2Row, 6>() };
            }
            // With twelve rows there is still a general register for each row's address.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512(tiles: &Tiles<'_, f32>) {
                // SAFETY: this function has the instructions.
                unsafe { tiles.add::<Avx512Row, 12>() };
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
        unsafe { tiles.add::<[Self; PANEL], 6>() };
    }
}

impl<T: Real> Tiles<'_, T> {
    /// Tile by tile, of nearly equal heights up to `MOST`.
    ///
    /// # Safety
    /// The machine has the instructions of `V`.
    #[inline(always)]
    unsafe fn add<V: PanelRow<T>, const MOST: usize>(&self) {
        macro_rules! tile_of {
            ($rows:expr, $($R:literal)*) => {
                match $rows.len() {
                    // SAFETY: as the caller promises.
                    $($R if $R <= MOST => unsafe { self.add_tile::<V, $R>($rows.start) },)*
                    _ => {}
                }
            };
        }
        let count = self.starts.len();
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
    unsafe fn add_tile<V: PanelRow<T>, const R: usize>(&self, first: usize) {
        let Self { left, right, right_start, ref out, .. } = *self;
        let Some(&starts) = self.starts[first..].first_chunk::<R>() else { return };
        assert!(first + R <= out.rows && out.columns <= PANEL);
        // SAFETY: the block has these rows of `columns` values, `stride` apart, and is this task's own. What is
        // read of the factors lies within them: for each run the furthest index of either is asserted.
        unsafe {
            let to = out.first.add(first * out.stride);
            let load = |row: *const T| {
                if out.columns == PANEL {
                    return V::load(row);
                }
                let mut values = [T::zero(); PANEL];
                values.as_mut_ptr().copy_from_nonoverlapping(row, out.columns);
                V::load(values.as_ptr())
            };
            let mut sums: [V; R] = match self.start {
                Start::Output => std::array::from_fn(|row| load(to.add(row * out.stride))),
                Start::Zero => [V::load([T::zero(); PANEL].as_ptr()); R],
                Start::Row(row) => [load(row[..out.columns].as_ptr()); R],
            };
            let last_start = starts.into_iter().fold(0, usize::max);
            for run in self.runs.iter().filter(|run| run.count > 0) {
                let steps = run.count - 1;
                assert!(last_start + run.left + steps * left.step < left.values.len());
                assert!(right_start + run.right + steps * right.step + PANEL <= right.values.len());
                let rows = starts.map(|start| left.values.as_ptr().add(start + run.left));
                let mut columns = right.values.as_ptr().add(right_start + run.right);
                let mut at = 0;
                for _ in 0..run.count {
                    let column = V::load(columns);
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        *sum = sum.add_product(*row.add(at), column);
                    }
                    at += left.step;
                    columns = columns.wrapping_add(right.step);
                }
            }
            for (row, sum) in sums.into_iter().enumerate() {
                let row = to.add(row * out.stride);
                if out.columns == PANEL {
                    sum.store(row);
                } else {
                    let mut values = [T::zero(); PANEL];
                    sum.store(values.as_mut_ptr());
                    row.copy_from_nonoverlapping(values.as_ptr(), out.columns);
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

/// `out = start + rows * right`, for the panels that cover `out`'s columns.
pub(super) fn add_product<T: Real>(rows: Rows<'_, T>, right: Packed<'_, T>, start: Start<'_, T>, out: &Output<'_, T>) {
    match right {
        Packed::Panels(panels) => add_panels(rows, panels, start, out),
        Packed::Pairs(pairs) => T::add_pairs(rows, pairs, start, out),
    }
}

/// With panels as [`pack`] makes them.
fn add_panels<T: Real>(rows: Rows<'_, T>, panels: Panels<'_, T>, start: Start<'_, T>, out: &Output<'_, T>) {
    let depth: usize = rows.stretches.iter().map(|&(_, length)| length).sum();
    let count = out.columns.div_ceil(PANEL);
    assert!(panels.len() >= count * depth * PANEL && out.rows == rows.starts.len());
    let left = Strided { values: rows.values, step: 1 };
    let mut buffer = Vec::new();
    for (i, Block { lines, runs }) in blocks_of_runs(rows.stretches).into_iter().enumerate() {
        let start = if i == 0 { start } else { Start::Output };
        for first in (0..out.rows).step_by(BLOCK_ROWS) {
            let block = first..(first + BLOCK_ROWS).min(out.rows);
            for panel in 0..count {
                let columns = panel * PANEL..((panel + 1) * PANEL).min(out.columns);
                let start = start.at(columns.start);
                let lines = panel * depth + lines.start..panel * depth + lines.end;
                let values = panels.part(lines.start * PANEL..lines.end * PANEL).widened(&mut buffer);
                let right = Strided { values, step: PANEL };
                // SAFETY: a block of the block that this task may write.
                let out = unsafe { out.part(block.clone(), columns) };
                add_tiles(left, &rows.starts[block.clone()], right, 0, &runs, start, out);
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
        add_tiles(left, &starts, right, right_start + first, runs, Start::Output, out);
    }
}

/// Some runs of a sum, and the lines of a panel that they need; the runs count from the first of these.
#[derive(Default)]
struct Block {
    lines: Range<usize>,
    runs: Vec<Run>,
}

/// Cuts the stretches of a sum into blocks of about [`DEPTH`] steps.
fn blocks_of_runs(stretches: &[(usize, usize)]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut block = Block::default();
    for &(offset, length) in stretches {
        let pieces = length.div_ceil(DEPTH);
        for piece in 0..pieces {
            let (from, to) = (piece * length / pieces, (piece + 1) * length / pieces);
            let count = to - from;
            if !block.runs.is_empty() && block.lines.len() + count > DEPTH {
                let end = block.lines.end;
                blocks.push(std::mem::replace(&mut block, Block { lines: end..end, runs: Vec::new() }));
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

    /// Tiles of up to twelve rows, which are for registers of sixteen values, give every row what tiles of six give.
    #[test]
    fn the_height_of_tiles_changes_nothing() {
        let value = |i: usize| (i as f32 * 0.37).sin();
        let (left, right): (Vec<f32>, Vec<f32>) =
            ((0..40 * 9).map(value).collect(), (5..5 + 9 * PANEL).map(value).collect());
        let runs = [Run { left: 0, right: 0, count: 9 }];
        for rows in 1..=40 {
            let starts: Vec<usize> = (0..rows).map(|row| row * 9).collect();
            let sums = |most: usize| {
                let mut sums = vec![f32::NAN; rows * PANEL];
                let tiles = Tiles {
                    left: Strided { values: &left, step: 1 },
                    starts: &starts,
                    right: Strided { values: &right, step: PANEL },
                    right_start: 0,
                    runs: &runs,
                    start: Start::Row(&right[..PANEL]),
                    out: Output::new(&mut sums, PANEL),
                };
                // SAFETY: plain arithmetic needs no special instructions.
                unsafe {
                    if most == 6 {
                        tiles.add::<[f32; PANEL], 6>()
                    } else {
                        tiles.add::<[f32; PANEL], 12>()
                    };
                }
                sums
            };
            assert!(sums(6) == sums(12) && sums(6).iter().all(|sum| sum.is_finite()), "{rows} rows");
        }
    }
}
