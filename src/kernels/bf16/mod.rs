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
mod pairs;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(super) use amx::is_available as amx_is_available;
pub(super) use pairs::{Pairs, index, pack, packed_len};

use super::output::{Output, Start};
use super::tile::Rows;
use super::{InstructionSet, Real};
use block::{BLOCK_COLUMNS, BLOCK_ROWS, Block};
use half::bf16;
use std::cell::Cell;

/// Values of the sum in a tile.
pub(super) const STEP: usize = 32;

/// Rows or columns of a tile.
const TILE: usize = super::tile::PANEL;

/// Values of a tile.
const TILE_LEN: usize = TILE * STEP;

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

/// Values of a left factor, which are bf16 or become so.
pub(super) trait Roundable: Copy {
    /// Writes a row's values to its places in a row of tiles, with zeros after the last. `tiles` begins with the row's first place.
    fn lay_out(row: &[Self], tiles: &mut [bf16], set: InstructionSet);
}

impl Roundable for f32 {
    fn lay_out(row: &[Self], tiles: &mut [bf16], set: InstructionSet) {
        round_steps(row, tiles, TILE_LEN, set);
    }
}

/// Rounds values a step at a time, with zeros after the last, to steps so far apart.
fn round_steps(values: &[f32], to: &mut [bf16], apart: usize, set: InstructionSet) {
    #[cfg(target_arch = "x86_64")]
    if set.multiplies_bf16() {
        // SAFETY: the machine has the instructions of a set that is in use.
        return unsafe { avx512::round_steps(values, to, apart) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = set;
    for (values, to) in values.chunks(STEP).zip(to.chunks_mut(apart)) {
        to[..STEP].fill(bf16::ZERO);
        to.iter_mut().zip(values).for_each(|(to, &value)| *to = rounded(value));
    }
}

impl Roundable for bf16 {
    fn lay_out(row: &[Self], tiles: &mut [bf16], set: InstructionSet) {
        #[cfg(target_arch = "x86_64")]
        if set.multiplies_bf16() {
            // SAFETY: the machine has the instructions of a set that is in use.
            return unsafe { avx512::copy_out(row, tiles) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = set;
        copy_out(row, tiles);
    }
}

/// Copies a row to its places in a row of tiles, with zeros after the last.
#[inline(always)]
fn copy_out(row: &[bf16], tiles: &mut [bf16]) {
    let (steps, rest) = row.as_chunks::<STEP>();
    let mut tiles = tiles.chunks_mut(TILE_LEN);
    for (values, tile) in steps.iter().zip(&mut tiles) {
        // Of a known length, which is a move or a few.
        tile[..STEP].copy_from_slice(values);
    }
    if let (false, Some(tile)) = (rest.is_empty(), tiles.next()) {
        tile[rest.len()..STEP].fill(bf16::ZERO);
        tile[..rest.len()].copy_from_slice(rest);
    }
}

/// Rounds values as [`Roundable::lay_out`] does, all to one slice.
pub(super) fn round(values: &[f32], to: &mut [bf16], set: InstructionSet) {
    assert!(values.len() == to.len());
    let whole = values.len() / STEP * STEP;
    round_steps(&values[..whole], &mut to[..whole], STEP, set);
    let mut last = [bf16::ZERO; STEP];
    round_steps(&values[whole..], &mut last, STEP, set);
    to[whole..].copy_from_slice(&last[..values.len() - whole]);
}

/// The nearest bf16, of two the even one, without a branch; not-a-number stays one.
#[inline(always)]
pub(crate) fn rounded(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if value.is_nan() { quiet } else { nearest } as u16)
}

/// `out = start + rows * pairs`, both factors rounded to bf16.
///
/// The pairs are those of the panels that cover `out`'s columns, and as deep as the rows; all stretches of a row but the
/// last are whole steps.
pub(super) fn add_product<L: Roundable>(
    rows: Rows<'_, L>,
    pairs: Pairs<'_>,
    start: Start<'_, f32>,
    out: &Output<'_, f32>,
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
    let pieces = pieces(rows.stretches);
    for first in (0..out.rows()).step_by(ROWS) {
        let some = first..(first + ROWS).min(out.rows());
        let rows = Rows { starts: &rows.starts[some.clone()], ..rows };
        // SAFETY: a block of the block that this task may write.
        let out = unsafe { out.part(some, 0..out.columns()) };
        let (mut start, mut done) = (start, 0);
        for &piece in &pieces {
            let steps = piece.1.div_ceil(STEP);
            lay_out(rows, piece, &mut left, set);
            for first in (0..out.columns()).step_by(BLOCK_COLUMNS) {
                let columns = first..(first + BLOCK_COLUMNS).min(out.columns());
                let right = pairs.from(columns.start * depth + done * TILE_LEN).values();
                // A last panel without a second is its own: nobody looks at what comes of it.
                let panel = if columns.len() > TILE { depth * TILE } else { 0 };
                for first in (0..out.rows()).step_by(BLOCK_ROWS) {
                    let rows = first..(first + BLOCK_ROWS).min(out.rows());
                    let left = &left[first * steps * STEP..];
                    Block { left, right, panel, steps }.add(start, &out, rows, &columns, set);
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

/// A stretch of each row in tiles `[row / 16][step][row % 16][STEP]`, for whole blocks of rows; what is in rows after the last
/// is of no account.
fn lay_out<L: Roundable>(
    rows: Rows<'_, L>,
    (offset, length): (usize, usize),
    tiles: &mut Vec<bf16>,
    set: InstructionSet,
) {
    let strip = length.div_ceil(STEP) * TILE_LEN;
    let len = rows.starts.len().next_multiple_of(BLOCK_ROWS) / TILE * strip;
    if tiles.len() < len {
        tiles.resize(len, bf16::ZERO);
    }
    for (row, &start) in rows.starts.iter().enumerate() {
        let tiles = &mut tiles[row / TILE * strip..][..strip];
        L::lay_out(&rows.values[start + offset..][..length], &mut tiles[(row % TILE * STEP).min(strip)..], set);
    }
}

/// `out = start + rows * pairs` in `T`, for who computes in more than f32.
pub(super) fn add_widened<T: Real>(rows: Rows<'_, T>, pairs: Pairs<'_>, start: Start<'_, T>, out: &Output<'_, T>) {
    let depth: usize = rows.stretches.iter().map(|&(_, length)| length).sum();
    let columns = 0..out.columns();
    for (row, &first) in rows.starts.iter().enumerate() {
        // SAFETY: the caller's block; each row is borrowed once.
        let mut out = unsafe { out.part(row..row + 1, columns.clone()) };
        let values = rows.stretches.iter().flat_map(|&(offset, length)| &rows.values[first + offset..][..length]);
        let mut sums = start.values(&out);
        for (k, &x) in values.enumerate() {
            for (column, sum) in sums.iter_mut().enumerate() {
                *sum += x * T::from_f32(pairs.at(depth, k, column).to_f32());
            }
        }
        out.fill(&sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Stretches = &'static [(usize, usize)];

    fn wave(count: usize, frequency: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * frequency).sin()).collect()
    }

    #[test]
    fn rounding_is_to_the_nearest_and_of_two_to_the_even() {
        for i in 0..200_000_u32 {
            let value = f32::from_bits(i.wrapping_mul(21_503));
            let (ours, theirs) = (rounded(value), bf16::from_f32(value));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{value:e}: {ours} and {theirs}");
        }
        assert!(rounded(f32::NAN).is_nan() && rounded(f32::from_bits(0xffff_ffff)).is_nan());
        assert_eq!(rounded(f32::from_bits(0x3f80_8000)), bf16::from_bits(0x3f80));
        assert_eq!(rounded(f32::from_bits(0x3f81_8000)), bf16::from_bits(0x3f82));
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
                    add_product(rows, Pairs::new(&packed), start, &Output::new(&mut out, columns), set);
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

    /// Rows that were rounded before lie in the same tiles as those that are rounded on the way, on every set of the machine.
    #[test]
    fn rounding_before_changes_nothing() {
        for length in [1, 31, 32, 77, 640] {
            let values = wave(3 * length, 0.37);
            let starts = [length, 0, 2 * length];
            for set in InstructionSet::ALL.into_iter().filter(|&set| set <= InstructionSet::of_machine()) {
                let mut rounded_before = vec![bf16::ZERO; values.len()];
                round(&values, &mut rounded_before, set);
                assert!(rounded_before.iter().zip(&values).all(|(&ours, &value)| ours == rounded(value)), "{set}");
                let (mut tiles, mut from_rounded) = (Vec::new(), Vec::new());
                let stretches = &[(0, length)][..];
                lay_out(Rows { values: &values, starts: &starts, stretches }, (0, length), &mut tiles, set);
                let rows = Rows { values: &rounded_before, starts: &starts, stretches };
                lay_out(rows, (0, length), &mut from_rounded, set);
                assert!(tiles == from_rounded, "{set}, {length}");
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
            add_product(rows, Pairs::new(&packed), Start::Zero, &Output::new(&mut out, columns_used), set);
            out
        };
        let all = product(&starts, columns);
        let some = product(&starts[33..36], 17);
        for (i, line) in some.chunks_exact(17).enumerate() {
            assert_eq!(line, &all[(33 + i) * columns..][..17]);
        }
    }
}
