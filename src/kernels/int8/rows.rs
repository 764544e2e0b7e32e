//! The left factor, rounded just before it is multiplied.

use super::super::rows::Rows;
use super::{Multiplier, PART};

/// Rows of whole numbers, a scale for each part, so many of them side by side: what a tile reads follows each other.
#[derive(Debug, Default)]
pub(super) struct RoundedRows {
    /// `[row / tile][depth / 4][row % tile][4]`, numbers of eight bits, perhaps with an offset.
    numbers: Vec<i8>,
    /// `[row / tile][depth / 32][row % tile]`.
    scales: Vec<f32>,
    /// Of one row, before they are laid out.
    row: (Vec<i8>, Vec<f32>),
    depth: usize,
    tile: usize,
}

impl RoundedRows {
    pub const fn new() -> Self {
        Self { numbers: Vec::new(), scales: Vec::new(), row: (Vec::new(), Vec::new()), depth: 0, tile: 1 }
    }

    /// The numbers and scales of a tile's rows, and how many rows they are of.
    #[inline(always)]
    pub fn tile(&self, tile: usize) -> (&[i8], &[f32], usize) {
        let (numbers, scales) = (self.depth * self.tile, self.depth / PART * self.tile);
        (&self.numbers[tile * numbers..][..numbers], &self.scales[tile * scales..][..scales], self.tile)
    }

    /// Rounds rows, as [`EightBits::round`](super::super::EightBits::round) does, for the tiles of a multiplier.
    pub fn round(&mut self, rows: Rows<'_, f32>, multiplier: Multiplier) {
        let (tile, offset, rounding) = (multiplier.rows(), multiplier.offset(), multiplier.rounding());
        let (depth, tiles) = (rows.depth(), rows.starts.len().div_ceil(tile));
        (self.depth, self.tile) = (depth, tile);
        self.numbers.resize(tiles * tile * depth, 0);
        self.scales.resize(tiles * tile * depth / PART, 0.0);
        self.row.0.resize(depth, 0);
        self.row.1.resize(depth / PART, 0.0);
        for (row, &start) in rows.starts.iter().enumerate() {
            let (mut numbers, mut scales) = (self.row.0.as_mut_slice(), self.row.1.as_mut_slice());
            for &(from, length) in rows.stretches {
                let of_row;
                let scales_of_row;
                (of_row, numbers) = numbers.split_at_mut(length);
                (scales_of_row, scales) = scales.split_at_mut(length / PART);
                let values = &rows.values[start + from..][..length];
                rounding.round(values, offset, of_row, scales_of_row);
            }
            let fours = self.numbers[row / tile * tile * depth..][..tile * depth].as_chunks_mut::<4>().0;
            let places = fours.iter_mut().skip(row % tile).step_by(tile);
            places.zip(self.row.0.as_chunks::<4>().0).for_each(|(place, four)| *place = *four);
            let parts = &mut self.scales[row / tile * tile * (depth / PART)..][..tile * (depth / PART)];
            let places = parts.iter_mut().skip(row % tile).step_by(tile);
            places.zip(&self.row.1).for_each(|(place, scale)| *place = *scale);
        }
    }
}
