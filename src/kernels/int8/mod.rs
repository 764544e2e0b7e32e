//! The product of factors in eight bits, summed in whole numbers, which some machines have instructions for.
//!
//! The right factor lies as [`Quads`], for good. The left one is rounded just before it is multiplied, some rows at a time: each 32
//! values of a row to whole numbers of 127 to either side of 0 and a scale, as weights are. Of 32 values the sum of products is
//! a whole number, which every machine finds exactly; the sum of these, times both scales, is in f32 and in the order of the row.
//! So the result is the same to the bit on every machine, and does not depend on the rows and columns beside it.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod quads;
mod rows;
#[cfg(target_arch = "x86_64")]
mod vnni;

use quads::ByteQuads;
pub(super) use quads::{PackedQuads, Quads};

use super::InstructionSet;
use super::addend::Start;
use super::eight_bits::round_parts;
use super::output::Output;
use super::panel_row::PANEL;
use super::rows::Rows;
use rows::RoundedRows;
use std::cell::Cell;

/// Values of the sum that share a scale.
pub(super) const PART: usize = super::EightBits::PART;

/// Rows that are rounded at a time: with a panel or two they stay in the second cache.
const ROWS: usize = 96;

/// What multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Multiplier {
    /// Any machine.
    Portable,
    /// AVX2's products of bytes in pairs.
    Avx2,
    /// AVX-512's of bytes in fours.
    Vnni,
}

impl Multiplier {
    /// The best of an instruction set that is in use.
    fn of(set: InstructionSet) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if set >= InstructionSet::Avx512 && std::arch::is_x86_feature_detected!("avx512vnni") {
                return Self::Vnni;
            }
            if set >= InstructionSet::Avx2 {
                return Self::Avx2;
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = set;
        Self::Portable
    }

    /// Rows of a tile.
    fn rows(self) -> usize {
        match self {
            Self::Portable => 1,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => vnni::ROWS,
            #[cfg(not(target_arch = "x86_64"))]
            _ => 1,
        }
    }

    /// Panels of a tile.
    fn panels(self) -> usize {
        if self == Self::Vnni { MOST_PANELS } else { 1 }
    }

    /// How the left factor is rounded.
    fn rounding(self) -> Rounding {
        Rounding(self)
    }

    /// What is added to the numbers of the left factor, whose bytes are kept: nothing, or 128, which is -128 to a byte.
    fn offset(self) -> i8 {
        if self == Self::Vnni { i8::MIN } else { 0 }
    }
}

/// How parts are rounded: with the same result on every machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounding(Multiplier);

impl Rounding {
    /// The best of an instruction set that is in use.
    pub fn of(set: InstructionSet) -> Self {
        Self(Multiplier::of(set))
    }

    /// The nearest numbers of whole parts, plus an offset of which the byte is kept, and their scales.
    #[inline]
    pub fn round(self, values: &[f32], offset: i8, numbers: &mut [i8], scales: &mut [f32]) {
        match self.0 {
            // SAFETY: the machine has the instructions of what was chosen for it.
            #[cfg(target_arch = "x86_64")]
            Multiplier::Vnni => unsafe { vnni::round_parts(values, offset, numbers, scales) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Multiplier::Avx2 => unsafe { avx2::round_parts(values, offset, numbers, scales) },
            _ => round_parts(values, offset, numbers, scales),
        }
    }
}

/// Some rows of the left factor times a panel of the right one, or two.
#[derive(Debug, Clone, Copy)]
struct Tile<'a> {
    rows: &'a RoundedRows,
    /// Which rows.
    tile: usize,
    /// The panels, whose values follow each other.
    panels: ByteQuads<'a>,
}

/// The sums of a row of a tile.
type Totals = [[f32; PANEL]; MOST_PANELS];

/// The left factor, rounded for the products of an instruction set, some rows at a time.
#[derive(Debug, Default)]
pub(super) struct RoundedLeft {
    blocks: Vec<RoundedRows>,
    /// In all blocks; those after them are of earlier factors.
    rows: usize,
}

impl RoundedLeft {
    /// Rounds rows whose stretches are whole parts, in the place of those before.
    pub fn round(&mut self, rows: Rows<'_, f32>, set: InstructionSet) {
        assert!(rows.stretches.iter().all(|&(_, length)| length.is_multiple_of(PART)));
        let multiplier = Multiplier::of(set);
        self.rows = rows.starts.len();
        self.blocks.resize_with(self.blocks.len().max(self.rows.div_ceil(ROWS)), RoundedRows::new);
        for (block, first) in self.blocks.iter_mut().zip((0..self.rows).step_by(ROWS)) {
            let some = first..(first + ROWS).min(self.rows);
            block.round(rows.some(some), multiplier);
        }
    }
}

/// `out = start + rows * quads`.
///
/// The quads are those of the panels that cover `out`'s columns, and as deep as the rows; all stretches of a row are whole parts.
pub(super) fn add_product(
    rows: Rows<'_, f32>,
    quads: Quads<'_>,
    start: Start<'_, f32>,
    out: &mut Output<'_, f32>,
    set: InstructionSet,
) {
    thread_local! {
        static LEFT: Cell<RoundedLeft> = const { Cell::new(RoundedLeft { blocks: Vec::new(), rows: 0 }) };
    }
    assert!(rows.depth() == quads.depth());
    let mut left = LEFT.take();
    left.round(rows, set);
    add_rounded(&left, quads, start, out, set);
    LEFT.set(left);
}

/// The same of rows that were rounded before, for the same instruction set.
pub(super) fn add_rounded(
    left: &RoundedLeft,
    quads: Quads<'_>,
    start: Start<'_, f32>,
    out: &mut Output<'_, f32>,
    set: InstructionSet,
) {
    thread_local! {
        static BYTES: Cell<Vec<i8>> = const { Cell::new(Vec::new()) };
    }
    assert!(out.rows() == left.rows && quads.panels() * PANEL >= out.columns());
    let multiplier = Multiplier::of(set);
    let mut bytes = BYTES.take();
    let columns = out.columns();
    for (rows, first) in left.blocks.iter().zip((0..out.rows()).step_by(ROWS)) {
        let some = first..(first + ROWS).min(out.rows());
        let at_once = multiplier.panels() * PANEL;
        for first in (0..columns).step_by(at_once) {
            let columns = first..(first + at_once).min(columns);
            let mut out = out.part(some.clone(), columns.clone());
            let panels = quads.some(first / PANEL..columns.end.div_ceil(PANEL)).in_bytes(&mut bytes);
            Tile { rows, tile: 0, panels }.add(start, &columns, &mut out, multiplier);
        }
    }
    BYTES.set(bytes);
}

impl Tile<'_> {
    /// `out = start + rows * panel` for all rows of the output, in tiles of some.
    fn add(
        self,
        start: Start<'_, f32>,
        columns: &std::ops::Range<usize>,
        out: &mut Output<'_, f32>,
        multiplier: Multiplier,
    ) {
        let mut line = Totals::default();
        if let Start::Row(row) = start {
            line.as_flattened_mut()[..columns.len()].copy_from_slice(&row[columns.clone()]);
        }
        for (tile, first) in (0..out.rows()).step_by(multiplier.rows()).enumerate() {
            let count = multiplier.rows().min(out.rows() - first);
            let mut totals = [line; MOST_ROWS];
            let totals = &mut totals[..count];
            if matches!(start, Start::Output) {
                for (row, totals) in totals.iter_mut().enumerate() {
                    totals.as_flattened_mut()[..columns.len()].copy_from_slice(out.row(first + row));
                }
            }
            let tile = Tile { tile, ..self };
            match multiplier {
                // SAFETY: the machine has the instructions of what was chosen for it.
                #[cfg(target_arch = "x86_64")]
                Multiplier::Vnni => unsafe { vnni::multiply(tile, totals) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Multiplier::Avx2 => unsafe { avx2::multiply(tile, totals) },
                _ => tile.multiply_portably(&mut totals[0][0]),
            }
            for (row, totals) in totals.iter().enumerate() {
                out.row(first + row).copy_from_slice(&totals.as_flattened()[..columns.len()]);
            }
        }
    }

    /// One row: the definition.
    fn multiply_portably(self, total: &mut [f32; PANEL]) {
        let (numbers, scales, _) = self.rows.tile(self.tile);
        let (right, right_scales, _) = self.panels.panel(0);
        for (part, (numbers, &scale)) in numbers.as_chunks::<PART>().0.iter().zip(scales).enumerate() {
            let mut sums = [0i32; PANEL];
            for (four, x) in numbers.as_chunks::<4>().0.iter().enumerate() {
                let line = &right[(part * PART / 4 + four) * 4 * PANEL..][..4 * PANEL];
                for (sum, y) in sums.iter_mut().zip(line.as_chunks::<4>().0) {
                    *sum += x.iter().zip(y).map(|(&x, &y)| i32::from(x) * i32::from(y)).sum::<i32>();
                }
            }
            let scales = &right_scales[part * PANEL..][..PANEL];
            for ((total, sum), y) in total.iter_mut().zip(sums).zip(scales) {
                *total += sum as f32 * (scale * y);
            }
        }
    }
}

/// The most rows and panels of a tile on any machine.
const MOST_ROWS: usize = 6;
const MOST_PANELS: usize = 2;

#[cfg(test)]
mod tests {
    use super::super::EightBits;
    use super::*;

    type Stretches = &'static [(usize, usize)];

    fn wave(count: usize, frequency: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * frequency).sin() * (1.0 + (i % 7) as f32)).collect()
    }

    /// On every set of the machine, to the bit what the definition says: parts one after the other, of each the sum of products of
    /// rounded numbers in i64, times both scales. And near the product of the numbers as they were.
    #[test]
    fn products_are_those_of_the_rounded_numbers_on_every_set_of_the_machine() {
        let cases: [(usize, Stretches, usize); 6] = [
            (1, &[(3, 32)], 1),
            (33, &[(0, 64)], 48),
            (70, &[(5, 64), (200, 96), (300, 32)], 40),
            (96, &[(0, 1120)], 64),
            (200, &[(0, 320)], 24),
            (7, &[(0, 0)], 20),
        ];
        for (count, stretches, columns) in cases {
            let step = 1200;
            let values = wave(count * step, 0.37);
            let starts: Vec<usize> = (0..count).map(|row| row * step).collect();
            let depth: usize = stretches.iter().map(|&(_, length)| length).sum();
            let weight = wave(depth * columns, 0.61);
            for right in [EightBits::round(&weight), EightBits::round_to_four_bits(&weight)] {
                let is_fine = right.numbers.iter().any(|number| number.abs() > 8);
                let packed = PackedQuads::new(&right, columns, depth);
                let (bias, before) = (wave(columns, 0.83), wave(count * columns, 0.29));
                let rows = Rows { values: &values, starts: &starts, stretches };
                for set in InstructionSet::ALL.into_iter().filter(|&set| set <= InstructionSet::of_machine()) {
                    for (name, start) in [("zero", Start::Zero), ("row", Start::Row(&bias)), ("output", Start::Output)]
                    {
                        let mut out = before.clone();
                        add_product(rows, packed.quads(), start, &mut Output::new(&mut out, columns), set);
                        for (i, &got) in out.iter().enumerate() {
                            let (row, column) = (i / columns, i % columns);
                            let line: Vec<f32> = (stretches.iter())
                                .flat_map(|&(offset, length)| values[starts[row] + offset..][..length].to_vec())
                                .collect();
                            let left = EightBits::round(&line);
                            let (mut want, mut size) = match name {
                                "zero" => (0.0, 0.0),
                                "row" => (bias[column], f64::from(bias[column].abs())),
                                _ => (before[i], f64::from(before[i].abs())),
                            };
                            let mut exact = f64::from(want);
                            for part in 0..depth / PART {
                                let of_part = part * PART..(part + 1) * PART;
                                let y = &right.numbers[column * depth..][of_part.clone()];
                                let sum: i64 = left.numbers[of_part.clone()]
                                    .iter()
                                    .zip(y)
                                    .map(|(&x, &y)| i64::from(x) * i64::from(y))
                                    .sum();
                                want += sum as f32 * (left.scales[part] * right.scales[column * depth / PART + part]);
                                for (x, y) in line[of_part.clone()].iter().zip(&weight[column * depth..][of_part]) {
                                    exact += f64::from(*x) * f64::from(*y);
                                    size += f64::from((x * y).abs());
                                }
                            }
                            assert!(
                                got.to_bits() == want.to_bits(),
                                "{set}, {count} x {depth} x {columns} from {name}"
                            );
                            // Each factor is off by a 254th of its part's largest value at most, which may be many times its own.
                            // In four bits it is a 14th.
                            let most = if is_fine { 0.05 } else { 0.5 };
                            assert!((f64::from(got) - exact).abs() <= most * size + 1e-6, "{got} {exact} {size}");
                        }
                    }
                }
            }
        }
    }

    /// Of numbers, of infinities, and of what is none.
    #[test]
    fn parts_are_rounded_as_by_their_definition_on_every_set_of_the_machine() {
        let mut values = wave(20 * PART, 0.53);
        values[64..96].fill(0.0);
        values[96..128].fill(1e-44);
        values[130] = f32::NAN;
        values[165] = f32::NEG_INFINITY;
        values[200..210].fill(-0.0);
        values[230] = f32::MAX;
        let of = |round: &dyn Fn(&mut [i8], &mut [f32])| {
            let (mut numbers, mut scales) = (vec![7; values.len()], vec![7.0; values.len() / PART]);
            round(&mut numbers, &mut scales);
            (numbers, scales.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        for offset in [0, i8::MIN] {
            let want = of(&|numbers, scales| round_parts(&values, offset, numbers, scales));
            for set in InstructionSet::ALL.into_iter().filter(|&set| set <= InstructionSet::of_machine()) {
                let got = of(&|numbers, scales| Rounding::of(set).round(&values, offset, numbers, scales));
                assert!(got == want, "{set}");
            }
        }
    }

    #[test]
    fn numbers_are_where_their_matrix_has_them() {
        let (columns, depth) = (20, 64);
        let values = wave(columns * depth, 0.31);
        for matrix in [EightBits::round(&values), EightBits::round_to_four_bits(&values)] {
            let (packed, widened) = (PackedQuads::new(&matrix, columns, depth), matrix.widened());
            for column in 0..columns {
                for k in 0..depth {
                    assert_eq!(packed.quads().at(k, column).to_bits(), widened[column * depth + k].to_bits());
                    assert_eq!(packed.quads().line(k, column / PANEL)[column % PANEL], widened[column * depth + k]);
                }
            }
        }
    }
}
