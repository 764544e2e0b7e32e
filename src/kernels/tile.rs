//! The product that every other kernel is made of: a few rows times sixteen columns, or twice as many, summed in registers.
//! MatmulPrecision of bf16 alone have tiles of their own ([`super::bf16`]).
//!
//! Neither factor is copied for it. The left one is a set of rows anywhere in memory, so the patches under a
//! convolution's kernel need not exist; the right one is a panel of sixteen neighbouring columns, so weights
//! are laid out as panels ([`super::panels`]). Each output value is one sum in one order whatever tile it falls into.

use super::addend::Start;
use super::output::Output;
use super::panel_row::{PANEL, PanelRow};
use super::{InstructionSet, Real};

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

/// `out = start + left * right`, where the sums go over `runs`, for as many panels of columns as [`Tiled::panels_at_once`]
/// says, or fewer.
pub(super) fn add_tiles<T: Tiled>(
    left: Left<'_, T>,
    right: Right<'_, T>,
    runs: &[Run],
    start: Start<'_, T>,
    out: Output<'_, T>,
) {
    assert!(left.starts.len() == out.rows() && out.columns() <= T::panels_at_once() * PANEL);
    T::add_tiles(&mut Tiles { left, right, runs, start, out });
}

/// The element types' ways to [`add_tiles`].
pub(super) trait Tiled: Real {
    /// How many panels share what is read of the left factor.
    fn panels_at_once() -> usize {
        1
    }

    fn add_tiles(tiles: &mut Tiles<'_, Self>);
}

impl Tiled for f64 {
    fn add_tiles(tiles: &mut Tiles<'_, Self>) {
        // SAFETY: plain arithmetic needs no special instructions.
        unsafe { tiles.add::<[Self; PANEL], 1, 6>() };
    }
}

impl Tiled for f32 {
    fn panels_at_once() -> usize {
        if InstructionSet::in_use() >= InstructionSet::Avx512 { 2 } else { 1 }
    }

    fn add_tiles(tiles: &mut Tiles<'_, Self>) {
        #[cfg(target_arch = "x86_64")]
        {
            use super::panel_row::{Avx2Row, Avx512Row};

            // Twelve registers of sums, two for a row, leave room for the operands.
            #[target_feature(enable = "avx2,fma")]
            fn avx2(tiles: &mut Tiles<'_, f32>) {
                // SAFETY: this function has the instructions.
                unsafe { tiles.add::<Avx2Row, 1, 6>() };
            }
            // Twelve registers of sums, or sixteen: two panels share what is read of the left factor, since a machine may take
            // as many products as it can read values.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512(tiles: &mut Tiles<'_, f32>) {
                // SAFETY: this function has the instructions.
                unsafe {
                    match tiles.out.columns() {
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
    unsafe fn add<V: PanelRow<T>, const P: usize, const MOST: usize>(&mut self) {
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
    unsafe fn add_tile<V: PanelRow<T>, const P: usize, const R: usize>(&mut self, first: usize) {
        let Self { left, right, runs, start, ref mut out } = *self;
        let (out_columns, stride) = (out.columns(), out.stride());
        let Some(&starts) = left.starts[first..].first_chunk::<R>() else { return };
        assert!(first + R <= out.rows() && (P - 1) * PANEL < out_columns.max(1) && out_columns <= P * PANEL);
        // Of the last panel; the others are whole.
        let columns = out_columns - (P - 1) * PANEL;
        let is_whole = |panel: usize| panel + 1 < P || columns == PANEL;
        // SAFETY: the block has these rows of `columns` values, `stride` apart, and is borrowed. What is
        // read of the factors lies within them: for each run the furthest index of either is asserted.
        unsafe {
            let to = out.first().add(first * stride);
            let load = |row: *const T, panel: usize| {
                let row = row.add(panel * PANEL);
                if is_whole(panel) {
                    return V::load(row);
                }
                let mut values = [T::zero(); PANEL];
                values.as_mut_ptr().copy_from_nonoverlapping(row, columns);
                V::load(values.as_ptr())
            };
            let mut sums: [[V; P]; R] = match start {
                Start::Output => {
                    std::array::from_fn(|row| std::array::from_fn(|panel| load(to.add(row * stride), panel)))
                }
                Start::Zero => [[V::load([T::zero(); PANEL].as_ptr()); P]; R],
                Start::Row(row) => [std::array::from_fn(|panel| load(row[..out_columns].as_ptr(), panel)); R],
            };
            let last_start = starts.into_iter().fold(0, usize::max);
            for run in runs.iter().filter(|run| run.count > 0) {
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
                    let to = to.add(row * stride + panel * PANEL);
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
                let mut tiles = Tiles {
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
