//! The layout of a right factor: panels of sixteen neighbouring columns, in any float type or in eight bits.

use super::Real;
use super::eight_bits::{EightBitLines, widen_lines};
use super::half_precision::{widen_bf16, widen_f16};
use super::panel_row::PANEL;
use super::simd::multiversion;
use super::values::zeros;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Lays a matrix out as panels `[columns / 16][depth][16]`, zeros after the last column; `at(k, column)` gives
/// its values.
pub(super) fn pack<T: Real>(depth: usize, columns: usize, at: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
    let mut panels = zeros::<T>(columns.div_ceil(PANEL) * depth * PANEL);
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

/// Panels of a matrix, as the product reads them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Panels<'a, T> {
    /// In the type of the sums already.
    Wide(&'a [T]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    EightBits(EightBitLines<'a>),
}

/// Runs `$body` with the slice of values and a function that widens one of them to `$T`; or `$other` with lines in eight bits, whose
/// values do not stand by themselves.
macro_rules! with_values {
    ($panels:expr, $T:ident, |$values:ident, $widen:ident| $body:expr, |$lines:ident| $other:expr) => {
        match $panels {
            Panels::EightBits($lines) => $other,
            Panels::Wide($values) => {
                let $widen = |value: $T| value;
                $body
            }
            Panels::F32($values) => {
                let $widen = |value: f32| $T::from_f32(value);
                $body
            }
            Panels::F64($values) => {
                let $widen = |value: f64| $T::from_f64(value);
                $body
            }
            Panels::F16($values) => {
                let $widen = |value: f16| $T::from_f32(widen_f16(value.to_bits()));
                $body
            }
            Panels::Bf16($values) => {
                let $widen = |value: bf16| $T::from_f32(widen_bf16(value.to_bits()));
                $body
            }
        }
    };
}

/// What products read panels from, a part at a time.
pub(super) trait PanelSource<'a, T: Real>: Copy + Sync {
    /// All lines, if they lie as the product reads them.
    fn wide(self) -> Option<&'a [T]>;

    /// How many there are, of so many lines each.
    fn count(self, depth: usize) -> usize;

    /// Writes lines of a panel of `depth` lines, from one on, in the type of the sums.
    fn write(self, depth: usize, panel: usize, first: usize, out: &mut [T]);

    /// Some lines of some panels of `depth` lines each, in the type of the sums, in `buffer` unless they have it already; and how
    /// far the panels are apart.
    fn widened<'b>(
        self,
        depth: usize,
        panels: &Range<usize>,
        lines: &Range<usize>,
        buffer: &'b mut Vec<T>,
    ) -> (&'b [T], usize)
    where
        'a: 'b,
    {
        if let Some(values) = self.wide() {
            let line = |panel: usize, line: usize| (panel * depth + line) * PANEL;
            return (&values[line(panels.start, lines.start)..line(panels.end - 1, lines.end)], depth * PANEL);
        }
        let len = lines.len() * PANEL;
        buffer.resize(panels.len() * len, T::zero());
        let of_panels = panels.clone().zip(buffer.chunks_exact_mut(len.max(1)));
        of_panels.for_each(|(panel, values)| self.write(depth, panel, lines.start, values));
        (buffer, len)
    }

    /// Of a panel of a kernel of so many taps and channels the lines of some channels, in the type of the sums; in `buffer` unless they
    /// have it already.
    fn tap_lines<'b>(
        self,
        panel: usize,
        [taps, tap]: [usize; 2],
        channels: &Range<usize>,
        buffer: &'b mut Vec<T>,
    ) -> TapLines<'b, T>
    where
        'a: 'b,
    {
        let depth = taps * tap;
        if let Some(values) = self.wide() {
            let values = &values[panel * depth * PANEL..(panel + 1) * depth * PANEL];
            return TapLines { values, first: channels.start, tap };
        }
        let len = channels.len() * PANEL;
        buffer.resize(taps * len, T::zero());
        let of_taps = buffer.chunks_exact_mut(len.max(1)).enumerate();
        of_taps.for_each(|(i, values)| self.write(depth, panel, i * tap + channels.start, values));
        TapLines { values: buffer, first: 0, tap: channels.len() }
    }
}

/// The lines of some channels of a kernel: of tap `t` they begin with the one of number `t * tap + first`.
#[derive(Debug, Clone, Copy)]
pub(super) struct TapLines<'a, T> {
    pub values: &'a [T],
    pub first: usize,
    pub tap: usize,
}

impl<'a, T: Real> Panels<'a, T> {
    pub fn len(self) -> usize {
        with_values!(self, T, |values, _widen| values.len(), |lines| lines.len())
    }

    /// A part of the values.
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Wide(values) => Self::Wide(&values[range]),
            Self::F32(values) => Self::F32(&values[range]),
            Self::F64(values) => Self::F64(&values[range]),
            Self::F16(values) => Self::F16(&values[range]),
            Self::Bf16(values) => Self::Bf16(&values[range]),
            Self::EightBits(lines) => Self::EightBits(lines.part(range)),
        }
    }

    /// One value.
    pub fn at(self, i: usize) -> T {
        with_values!(self, T, |values, widen| widen(values[i]), |lines| T::from_f32(lines.at(i)))
    }

    /// As many values in the type of the sums.
    fn widen(self, out: &mut [T]) {
        match self {
            Self::F16(halves) => T::widen_halves(halves, out),
            Self::EightBits(lines) => widen_lines(lines, out),
            other => widen_all(other, out),
        }
    }

    /// Sixteen values from a multiple of sixteen.
    #[inline(always)]
    pub fn line(self, line: usize) -> [T; PANEL] {
        let mut lanes = [T::zero(); PANEL];
        with_values!(
            self,
            T,
            |values, widen| {
                let values = &values.as_chunks::<PANEL>().0[line];
                for (lane, &value) in lanes.iter_mut().zip(values) {
                    *lane = widen(value);
                }
            },
            |lines| {
                for (lane, value) in lanes.iter_mut().zip(lines.line(line)) {
                    *lane = T::from_f32(value);
                }
            }
        );
        lanes
    }
}

impl<'a, T: Real> PanelSource<'a, T> for Panels<'a, T> {
    fn wide(self) -> Option<&'a [T]> {
        if let Self::Wide(values) = self { Some(values) } else { None }
    }

    fn count(self, depth: usize) -> usize {
        self.len() / (depth * PANEL).max(1)
    }

    fn write(self, depth: usize, panel: usize, first: usize, out: &mut [T]) {
        let start = (panel * depth + first) * PANEL;
        self.part(start..start + out.len()).widen(out);
    }
}

multiversion! {
    fn widen_all<T: Real>(panels: Panels<'_, T>, out: &mut [T]) {
        with_values!(
            panels,
            T,
            |values, widen| {
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = widen(value);
                }
            },
            |lines| widen_lines(lines, out)
        );
    }
}
