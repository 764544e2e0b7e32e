//! The right factor's layout.

use super::super::EightBits;
use super::super::numbers::{NumberLines, Numbers};
use super::super::panel_row::PANEL;
use super::super::weight_layout::pack_shaped;
use super::PART;
use rayon::prelude::*;
use std::ops::Range;

/// A matrix in eight bits as [`Quads`].
#[derive(Debug)]
pub(in super::super) struct PackedQuads {
    numbers: Numbers,
    scales: Vec<f32>,
    sums: Vec<i16>,
    depth: usize,
}

/// Panels of sixteen columns, in each lines of four values for each column: `[column / 16][k / 4][column % 16][k % 4]`, zeros after
/// the last column. The scales lie as `[column / 16][k / 32][column % 16]`, and so do the sums of the numbers under each.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Quads<'a> {
    numbers: NumberLines<'a>,
    scales: &'a [f32],
    sums: &'a [i16],
    depth: usize,
}

impl PackedQuads {
    /// Of a matrix `[out, in]` of parts without least values.
    pub fn new(matrix: &EightBits, outputs: usize, depth: usize) -> Self {
        assert!(matrix.part == PART && matrix.leasts.is_none() && matrix.numbers.len() == outputs * depth);
        let lines = pack_shaped(&matrix.numbers, &[outputs, depth]);
        let len = outputs.div_ceil(PANEL) * PANEL * depth;
        let mut numbers = vec![0; len];
        let fours = numbers.par_chunks_mut(4 * PANEL).zip(lines.par_chunks(4 * PANEL));
        fours.for_each(|(quads, lines)| {
            for (k, line) in lines.as_chunks::<PANEL>().0.iter().enumerate() {
                quads.iter_mut().skip(k).step_by(4).zip(line).for_each(|(quad, &number)| *quad = number);
            }
        });
        let mut sums = vec![0; len / PART];
        sums.par_chunks_mut(PANEL).zip(lines.par_chunks(PART * PANEL)).for_each(|(sums, lines)| {
            for line in lines.as_chunks::<PANEL>().0 {
                sums.iter_mut().zip(line).for_each(|(sum, &number)| *sum += i16::from(number));
            }
        });
        let scales = pack_shaped(&matrix.scales, &[outputs, depth / PART]);
        Self { numbers: Numbers::new(numbers, matrix.least_of_sixteen), scales, sums, depth }
    }

    /// All of them.
    pub fn quads(&self) -> Quads<'_> {
        Quads { numbers: self.numbers.lines(), scales: &self.scales, sums: &self.sums, depth: self.depth }
    }
}

impl<'a> Quads<'a> {
    pub fn depth(self) -> usize {
        self.depth
    }

    /// How many panels there are.
    pub fn panels(self) -> usize {
        self.numbers.len().checked_div(self.depth * PANEL).unwrap_or(usize::MAX / PANEL)
    }

    /// From a value on, the first of a panel.
    pub fn from(self, start: usize) -> Self {
        assert!(start == 0 || start.is_multiple_of(self.depth * PANEL));
        let parts = start / PART;
        let numbers = self.numbers.part(start..self.numbers.len());
        Self { numbers, scales: &self.scales[parts..], sums: &self.sums[parts..], ..self }
    }

    /// Some panels.
    pub fn some(self, panels: Range<usize>) -> Self {
        let (len, parts) = (self.depth * PANEL, self.depth / PART * PANEL);
        let parts = panels.start * parts..panels.end * parts;
        Self {
            numbers: self.numbers.part(panels.start * len..panels.end * len),
            scales: &self.scales[parts.clone()],
            sums: &self.sums[parts],
            ..self
        }
    }

    /// The same with a byte for each number, in `buffer` unless it is so.
    pub(super) fn in_bytes<'b>(self, buffer: &'b mut Vec<i8>) -> ByteQuads<'b>
    where
        'a: 'b,
    {
        let Self { numbers, scales, sums, depth } = self;
        ByteQuads { numbers: numbers.in_bytes(buffer), scales, sums, depth }
    }

    /// One value.
    pub fn at(self, k: usize, column: usize) -> f32 {
        self.line(k, column / PANEL)[column % PANEL]
    }

    /// Sixteen columns of a row.
    pub fn line(self, k: usize, panel: usize) -> [f32; PANEL] {
        let first = panel * self.depth + k / 4 * 4;
        let scales = &self.scales[(panel * self.depth / PART + k / PART) * PANEL..];
        let lines: [[i8; PANEL]; 4] = std::array::from_fn(|line| self.numbers.line(first + line));
        let numbers = lines.as_flattened();
        std::array::from_fn(|j| scales[j] * f32::from(numbers[4 * j + k % 4]))
    }
}

/// [`Quads`] as the products read them.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteQuads<'a> {
    numbers: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i16],
    depth: usize,
}

impl<'a> ByteQuads<'a> {
    /// How many panels there are.
    pub fn panels(self) -> usize {
        self.numbers.len().checked_div(self.depth * PANEL).unwrap_or(usize::MAX / PANEL)
    }

    /// A panel's numbers, scales and sums.
    pub fn panel(self, panel: usize) -> (&'a [i8], &'a [f32], &'a [i16]) {
        let (len, parts) = (self.depth * PANEL, self.depth / PART * PANEL);
        let of_panel = panel * parts..(panel + 1) * parts;
        (&self.numbers[panel * len..][..len], &self.scales[of_panel.clone()], &self.sums[of_panel])
    }
}
