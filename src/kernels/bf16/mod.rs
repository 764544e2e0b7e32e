//! The product of factors rounded to bf16 and summed in f32, which some machines have instructions for.
//!
//! Both factors lie in tiles of [`TILE`] rows or columns and [`STEP`] values of the sum: the right one as [`Pairs`], for good;
//! the left one is rounded and laid out just before it is multiplied, some rows and [`DEPTH`] values at a time. What is
//! summed into one value of the result, and in which order, does not depend on the rows and columns beside it.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod block;
mod left;
mod pairs;

pub(super) use left::round;
pub(super) use pairs::{Pairs, STEP, index, pack, packed_len};

use super::InstructionSet;
use super::addend::Start;
use super::output::Output;
use super::rows::Rows;
use block::{BLOCK_COLUMNS, BLOCK_ROWS, Block, Sums};
use half::bf16;
use left::{Roundable, lay_out};
use pairs::{TILE, TILE_LEN};
use std::cell::Cell;
use std::ops::Range;

/// Length of the sums between two visits to the output: two panels of this depth stay in the first cache.
const DEPTH: usize = 512;

/// Rows that are laid out at a time, whole blocks of them: with that depth they stay in the second cache.
const ROWS: usize = 192;

/// How exactly the factors of products are taken: a choice of whoever builds a model, which nothing here makes by the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// In the type of the activations.
    #[default]
    Full,
    /// Rounded to bf16, and summed in f32.
    Bf16,
}

impl MatmulPrecision {
    /// Full in any case where the inputs are no whole steps, or the outputs fewer than a tile has.
    pub(super) fn of_matrix(self, inputs: usize, outputs: usize) -> Self {
        if inputs.is_multiple_of(STEP) && outputs >= TILE { self } else { Self::Full }
    }
}

/// `out = start + rows * pairs`, both factors rounded to bf16.
///
/// The pairs are those of the panels that cover `out`'s columns, and as deep as the rows; all stretches of a row but the
/// last are whole steps.
pub(super) fn add_product<L: Roundable>(
    rows: Rows<'_, L>,
    pairs: Pairs<'_>,
    start: Start<'_, f32>,
    out: &mut Output<'_, f32>,
    set: InstructionSet,
) {
    thread_local! {
        static TILES: Cell<Vec<bf16>> = const { Cell::new(Vec::new()) };
    }
    let (last, whole) = rows.stretches.split_last().map_or((0, &[][..]), |(last, rest)| (last.1, rest));
    assert!(whole.iter().all(|&(_, length)| length.is_multiple_of(STEP)));
    let depth = whole.iter().map(|&(_, length)| length).sum::<usize>() + last.next_multiple_of(STEP);
    assert!(pairs.len() >= packed_len(depth, out.columns()) && out.rows() == rows.starts.len());

    #[cfg(target_arch = "x86_64")]
    let _tiles = (set == InstructionSet::Amx).then(amx::Tiles::configure);
    let mut left = TILES.take();
    let columns = out.columns();
    let pieces = pieces(rows.stretches);
    for first in (0..out.rows()).step_by(ROWS) {
        let some = first..(first + ROWS).min(out.rows());
        let rows = rows.some(some.clone());
        let mut out = out.part(some, 0..columns);
        let (mut start, mut done) = (start, 0);
        for &piece in &pieces {
            let steps = piece.1.div_ceil(STEP);
            lay_out(rows, piece, &mut left, set);
            for first in (0..columns).step_by(BLOCK_COLUMNS) {
                let columns = first..(first + BLOCK_COLUMNS).min(columns);
                let right = pairs.from(columns.start * depth + done * TILE_LEN).values();
                // A last panel without a second is its own: nobody looks at what comes of it.
                let panel = if columns.len() > TILE { depth * TILE } else { 0 };
                for first in (0..out.rows()).step_by(BLOCK_ROWS) {
                    let rows = first..(first + BLOCK_ROWS).min(out.rows());
                    let left = &left[first * steps * STEP..];
                    Block { left, right, panel, steps }.add(start, &mut out, rows, &columns, set);
                }
            }
            start = Start::Output;
            done += steps;
        }
    }
    TILES.set(left);
}

/// Cuts stretches to pieces of at most [`DEPTH`], whole steps all but the last of each. A sum of nothing is one empty piece.
fn pieces(stretches: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut pieces = Vec::new();
    for &(offset, length) in stretches {
        let (steps, count) = (length.div_ceil(STEP), length.div_ceil(DEPTH));
        let edge = |i: usize| (i * steps / count * STEP).min(length);
        pieces.extend((0..count).map(|i| (offset + edge(i), edge(i + 1) - edge(i))));
    }
    if pieces.is_empty() {
        pieces.push((0, 0));
    }
    pieces
}

impl Block<'_> {
    /// `out = start + left * right` for some rows and columns of the output.
    fn add(
        self,
        start: Start<'_, f32>,
        out: &mut Output<'_, f32>,
        rows: Range<usize>,
        columns: &Range<usize>,
        set: InstructionSet,
    ) {
        let mut line = [0f32; BLOCK_COLUMNS];
        if let Start::Row(row) = start {
            line[..columns.len()].copy_from_slice(&row[columns.clone()]);
        }
        let from_output = matches!(start, Start::Output);
        let mut out = out.part(rows.clone(), columns.clone());
        let (first, stride) = (out.first(), out.stride());
        if rows.len() == BLOCK_ROWS && columns.len() == BLOCK_COLUMNS {
            let start = if from_output { (first.cast_const(), stride) } else { (line.as_ptr(), 0) };
            // SAFETY: the output has the whole block.
            return unsafe { self.multiply(Sums { start, out: (first, stride) }, set) };
        }
        let mut copy = [0f32; BLOCK_ROWS * BLOCK_COLUMNS];
        // SAFETY: the copy is a whole block, and what is copied from the output and to it lies in its part.
        unsafe {
            let copy = copy.as_mut_ptr();
            let each_row = (0..rows.len()).map(|row| (first.add(row * stride), copy.add(row * BLOCK_COLUMNS)));
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
                InstructionSet::Amx => amx::multiply(self, sums),
                #[cfg(target_arch = "x86_64")]
                InstructionSet::Avx512Bf16 => avx512::multiply(self, sums),
                _ => self.multiply_portably(sums),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::half_precision::round_to_bf16 as rounded;
    use super::*;

    type Stretches = &'static [(usize, usize)];

    fn wave(count: usize, frequency: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * frequency).sin()).collect()
    }

    /// Against sums in f64 of the rounded factors. A sum of n values in f32 is off by at most n * 2^-24 of the sum of
    /// magnitudes.
    #[test]
    fn products_are_those_of_the_rounded_factors_on_every_set_of_the_machine() {
        // Rows, stretches of each, columns: whole blocks, remainders of each kind, and sums of several pieces.
        let cases: [(usize, Stretches, usize); 8] = [
            (32, &[(0, 32)], 32),
            (1, &[(3, 7)], 1),
            (33, &[(0, 40)], 48),
            (70, &[(5, 64), (200, 96), (300, 33)], 40),
            (96, &[(0, 1100)], 64),
            (16, &[(0, 512), (600, 544)], 17),
            (200, &[(0, 640)], 24),
            (5, &[(0, 0)], 20),
        ];
        for (count, stretches, columns) in cases {
            let step = 1200;
            let values = wave(count * step, 0.37);
            let starts: Vec<usize> = (0..count).map(|row| row * step).collect();
            let depth: usize = stretches.iter().map(|&(_, length)| length).sum();
            let right = wave(depth * columns, 0.61);
            let packed = pack(depth, columns, |k, column| rounded(right[k * columns + column]));
            let bias = wave(columns, 0.83);
            let before = wave(count * columns, 0.29);
            let rows = Rows { values: &values, starts: &starts, stretches };
            for set in InstructionSet::ALL.into_iter().filter(|&set| set <= InstructionSet::of_machine()) {
                for (name, start) in [("zero", Start::Zero), ("row", Start::Row(&bias)), ("output", Start::Output)] {
                    let mut out = before.clone();
                    add_product(rows, Pairs::new(&packed), start, &mut Output::new(&mut out, columns), set);
                    for (i, &got) in out.iter().enumerate() {
                        let (row, column) = (i / columns, i % columns);
                        let mut want = match name {
                            "zero" => 0.0,
                            "row" => f64::from(bias[column]),
                            _ => f64::from(before[i]),
                        };
                        let mut size = want.abs();
                        let line =
                            stretches.iter().flat_map(|&(offset, length)| &values[starts[row] + offset..][..length]);
                        for (k, &x) in line.enumerate() {
                            let product = rounded(x).to_f64() * rounded(right[k * columns + column]).to_f64();
                            want += product;
                            size += product.abs();
                        }
                        let allowed = (depth + 2) as f64 * 2f64.powi(-24) * size + 1e-30;
                        assert!(
                            (f64::from(got) - want).abs() <= allowed,
                            "{set}, {count} x {depth} x {columns} from {name}: {got} for {want} at {row}, {column}"
                        );
                    }
                }
            }
        }
    }

    /// The same sums whichever rows and columns are beside them.
    #[test]
    fn neighbours_change_nothing() {
        let (count, depth, columns) = (40, 96, 50);
        let values = wave(count * depth, 0.37);
        let right = wave(depth * columns, 0.61);
        let starts: Vec<usize> = (0..count).map(|row| row * depth).collect();
        let product = |starts: &[usize], columns_used: usize| {
            let packed = pack(depth, columns_used, |k, column| rounded(right[k * columns + column]));
            let mut out = vec![0f32; starts.len() * columns_used];
            let rows = Rows { values: &values, starts, stretches: &[(0, depth)] };
            let set = InstructionSet::in_use();
            add_product(rows, Pairs::new(&packed), Start::Zero, &mut Output::new(&mut out, columns_used), set);
            out
        };
        let all = product(&starts, columns);
        let some = product(&starts[33..36], 17);
        for (i, line) in some.chunks_exact(17).enumerate() {
            assert_eq!(line, &all[(33 + i) * columns..][..17]);
        }
    }
}
