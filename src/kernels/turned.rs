//! A weight turned round, as the gradient of what it was multiplied with takes it: read from the weight's own panels.

use super::Real;
use super::panel_row::PANEL;
use super::panels::PanelSource;
use super::right_factor::Packed;
use super::simd::multiversion;
use super::transpose::{AT_ONCE, across};
use super::values::zeros;
use rayon::prelude::*;

/// Of a kernel `[tap][in]` times outputs the matrix `[last tap to first][out]` times inputs, in the type of the sums; of a matrix, which
/// has one tap, the transpose.
///
/// A product has some lines of some panels made, uses them for all of its rows, and forgets them. Kept whole, they would double a
/// model's memory, and more than that where weights are stored in half precision; and of few rows writing them and reading them back
/// takes longer than the product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turned<'a, T> {
    weight: &'a Packed<'a, T>,
    taps: usize,
    inputs: usize,
    outputs: usize,
    /// Where it begins, if it is a part.
    first_panel: usize,
}

impl<'a, T: Real> Turned<'a, T> {
    pub fn new(weight: &'a Packed<'a, T>, taps: usize, inputs: usize, outputs: usize) -> Self {
        Self { weight, taps, inputs, outputs, first_panel: 0 }
    }

    /// From a panel on, where each has so many values.
    pub fn from(self, start: usize) -> Self {
        Self { first_panel: self.first_panel + start / (self.depth() * PANEL), ..self }
    }

    /// Lines of a panel.
    fn depth(self) -> usize {
        self.taps * self.outputs
    }

    /// One value.
    pub fn at(self, k: usize, column: usize) -> T {
        let (tap, output) = (self.taps - 1 - k / self.outputs, k % self.outputs);
        let input = self.first_panel * PANEL + column;
        self.weight.at(self.taps * self.inputs, tap * self.inputs + input, output)
    }

    /// All of it.
    pub fn panels(self) -> Vec<T> {
        let panels = self.inputs.div_ceil(PANEL) - self.first_panel;
        let mut values = zeros::<T>(panels * self.depth() * PANEL);
        let each = values.par_chunks_mut((self.depth() * PANEL).max(1)).enumerate();
        each.for_each(|(panel, values)| turn(self, panel, 0, values));
        values
    }
}

impl<'a, T: Real> PanelSource<'a, T> for Turned<'a, T> {
    fn wide(self) -> Option<&'a [T]> {
        None
    }

    fn count(self, depth: usize) -> usize {
        assert!(depth == self.depth());
        self.inputs.div_ceil(PANEL) - self.first_panel
    }

    fn write(self, depth: usize, panel: usize, first: usize, out: &mut [T]) {
        assert!(depth == self.depth());
        turn(self, panel, first, out);
    }
}

multiversion! {
    /// Some lines of a panel from one on, sixteen inputs times sixteen outputs at a time.
    fn turn<T: Real>(turned: Turned<'_, T>, panel: usize, first: usize, lines: &mut [T]) {
        let Turned { weight, taps, inputs, outputs, first_panel } = turned;
        let (depth, first_input) = (taps * inputs, (first_panel + panel) * PANEL);
        let mut lines = lines.as_chunks_mut::<PANEL>().0;
        let mut line = first;
        while !lines.is_empty() {
            let (tap, output) = (taps - 1 - line / outputs, line % outputs);
            let mut square = [[T::zero(); PANEL]; PANEL];
            let there = PANEL.min(inputs - first_input);
            weight.lines(depth, tap * inputs + first_input, output / PANEL, &mut square[..there]);
            let rows: [&[T]; PANEL] = square.each_ref().map(|row| &row[..]);
            let skipped = output % PANEL;
            let count = (PANEL - skipped).min(outputs - output).min(lines.len());
            let (these, rest) = lines.split_at_mut(count);
            if count == PANEL {
                for (half, lines) in these.chunks_mut(AT_ONCE).enumerate() {
                    lines.iter_mut().zip(across(&rows, half * AT_ONCE)).for_each(|(line, values)| *line = values);
                }
            } else {
                let all = [across(&rows, 0), across(&rows, AT_ONCE)];
                these.copy_from_slice(&all.as_flattened()[skipped..skipped + count]);
            }
            line += count;
            lines = rest;
        }
    }
}
