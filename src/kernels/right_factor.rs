//! The right factor of a product, in whichever layout it is.

use super::Real;
use super::bf16::{MatmulPrecision, Pairs, pack as pack_pairs, packed_len};
use super::half_precision::widen_bf16;
use super::int8::Quads;
use super::panel_row::PANEL;
use super::panels::{PanelSource, Panels, pack, packed_at};
use super::turned::Turned;
use super::weight_layout::{pack_shaped, pair_shaped};
use half::bf16;

/// A right factor, as the product reads it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packed<'a, T> {
    /// For sums of type `T`.
    Panels(Panels<'a, T>),
    /// For sums in f32 of products of bf16.
    Pairs(Pairs<'a>),
    /// For sums in whole numbers of products of eight bits.
    Quads(Quads<'a>),
    /// For sums of type `T`, of another one turned round.
    Turned(Turned<'a, T>),
}

impl<'a, T: Real> Packed<'a, T> {
    /// Panels in the type of the sums.
    pub fn wide(values: &'a [T]) -> Self {
        Self::Panels(Panels::Wide(values))
    }

    /// From a panel on, where each has so many values.
    pub fn from(self, start: usize) -> Self {
        match self {
            Self::Panels(panels) => Self::Panels(panels.part(start..panels.len())),
            Self::Pairs(pairs) => Self::Pairs(pairs.from(start)),
            Self::Quads(quads) => Self::Quads(quads.from(start)),
            Self::Turned(turned) => Self::Turned(turned.from(start)),
        }
    }

    /// One value of a matrix of so many rows.
    pub fn at(self, depth: usize, k: usize, column: usize) -> T {
        match self {
            Self::Panels(panels) => panels.at(packed_at(depth, k, column)),
            Self::Pairs(pairs) => T::from_f32(pairs.at(depth, k, column).to_f32()),
            Self::Quads(quads) => T::from_f32(quads.at(k, column)),
            Self::Turned(turned) => turned.at(k, column),
        }
    }

    /// As many rows of a panel as there is room for, from one on.
    #[inline(always)]
    pub fn lines(self, depth: usize, first: usize, panel: usize, out: &mut [[T; PANEL]]) {
        if let Self::Panels(panels) = self {
            return panels.write(depth, panel, first, out.as_flattened_mut());
        }
        out.iter_mut().enumerate().for_each(|(i, line)| *line = self.line(depth, first + i, panel));
    }

    /// Sixteen columns of a row, which are a line of a panel.
    #[inline(always)]
    fn line(self, depth: usize, k: usize, panel: usize) -> [T; PANEL] {
        match self {
            Self::Panels(panels) => panels.line(panel * depth + k),
            Self::Pairs(pairs) => {
                std::array::from_fn(|j| T::from_f32(widen_bf16(pairs.at(depth, k, panel * PANEL + j).to_bits())))
            }
            Self::Quads(quads) => quads.line(k, panel).map(T::from_f32),
            Self::Turned(turned) => std::array::from_fn(|j| turned.at(k, panel * PANEL + j)),
        }
    }
}

/// A right factor that is laid out for one use: of a weight in training, or of keys and values.
#[derive(Debug)]
pub(super) enum Factor<T> {
    /// For full products.
    Panels(Vec<T>),
    /// For those of bf16.
    Pairs(Vec<bf16>),
}

impl<T: Real> Factor<T> {
    /// Of a matrix whose values `at(k, column)` gives.
    pub fn new(depth: usize, columns: usize, products: MatmulPrecision, at: impl Fn(usize, usize) -> T + Sync) -> Self {
        match products {
            MatmulPrecision::Full => Self::Panels(pack(depth, columns, at)),
            MatmulPrecision::Bf16 => Self::Pairs(pack_pairs(depth, columns, |k, column| at(k, column).rounded())),
        }
    }

    /// Of panels that are laid out already.
    pub fn of_panels(panels: Vec<T>, depth: usize, columns: usize, products: MatmulPrecision) -> Self {
        match products {
            MatmulPrecision::Full => Self::Panels(panels),
            MatmulPrecision::Bf16 => {
                let at = |k, column| panels[packed_at(depth, k, column)].rounded();
                Self::Pairs(pack_pairs(depth, columns, at))
            }
        }
    }

    /// Of a weight `[out, in]` or `[out, in, height, width]`.
    pub fn of_weight(weight: &[T], shape: &[usize], products: MatmulPrecision) -> Self {
        match products {
            MatmulPrecision::Full => Self::Panels(pack_shaped(weight, shape)),
            MatmulPrecision::Bf16 => {
                let rounded: Vec<bf16> = weight.iter().map(|value| value.rounded()).collect();
                Self::Pairs(pair_shaped(&rounded, shape))
            }
        }
    }

    /// All of it.
    pub fn packed(&self) -> Packed<'_, T> {
        self.at_column(0, 0)
    }

    /// From a column on, the first of a panel.
    pub fn at_column(&self, depth: usize, column: usize) -> Packed<'_, T> {
        match self {
            Self::Panels(values) => Packed::wide(&values[column * depth..]),
            Self::Pairs(values) => Packed::Pairs(Pairs::new(&values[packed_len(depth, column)..])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::eight_bits::EightBitLines;
    use crate::kernels::numbers::Numbers;
    use crate::kernels::panels::TapLines;

    /// As [`pack`] makes it of the matrix's values one by one, from panels of every type and from pairs.
    #[test]
    fn turned_weights_have_the_values_where_a_transpose_has_them() {
        for (taps, inputs, outputs) in [(1, 32, 16), (1, 7, 40), (9, 32, 33), (9, 40, 5), (4, 64, 20)] {
            let value = |i: usize| (i % 251) as f32 - 125.0;
            let weight: Vec<f32> = (0..taps * inputs * outputs).map(value).collect();
            let at = |k: usize, out: usize| weight[k * outputs + out];
            let depth = taps * inputs;
            let want =
                pack(taps * outputs, inputs, |k, input| at((taps - 1 - k / outputs) * inputs + input, k % outputs));
            let wide = pack(depth, outputs, at);
            let halves: Vec<half::f16> = wide.iter().map(|&value| half::f16::from_f32(value)).collect();
            let pairs = pack_pairs(depth, outputs, |k, out| at(k, out).rounded());
            // Values are whole numbers of eight bits, so that a scale of 1 leaves them.
            let numbers: Vec<i8> = wide.iter().map(|&value| value as i8).collect();
            let ones = vec![1.0; numbers.len()];
            let numbers = Numbers::new(numbers, None);
            let eight_bits = Panels::EightBits(EightBitLines::new(numbers.lines(), &ones, None, 1));
            let forms = [
                Packed::wide(&wide),
                Packed::Panels(Panels::F16(&halves)),
                Packed::Panels(eight_bits),
                Packed::Pairs(Pairs::new(&pairs)),
            ];
            for form in forms {
                let turned = Turned::new(&form, taps, inputs, outputs);
                assert!(turned.panels() == want, "{taps} taps, {inputs} to {outputs}: {form:?}");
                check_parts(turned, &want, (taps, inputs, outputs));
            }
        }
    }
    /// Some lines of some panels, and some channels of all taps, are those of the whole.
    fn check_parts(turned: Turned<'_, f32>, want: &[f32], (taps, inputs, outputs): (usize, usize, usize)) {
        let (depth, mut buffer) = (taps * outputs, Vec::new());
        let line = |panel: usize, line: usize| &want[(panel * depth + line) * PANEL..][..PANEL];
        let last = inputs.div_ceil(PANEL) - 1;
        for lines in [0..depth, 3..depth.min(29), depth - 1..depth, outputs / 2..(outputs + 1).min(depth)] {
            let (values, apart) = turned.from(last * depth * PANEL).widened(depth, &(0..1), &lines, &mut buffer);
            assert_eq!((values.len(), apart), (lines.len() * PANEL, lines.len() * PANEL));
            let each = lines.zip(values.chunks_exact(PANEL));
            each.for_each(|(k, values)| assert_eq!(values, line(last, k)));
        }
        for channels in [0..outputs, 1..outputs.min(20), outputs - 1..outputs] {
            let TapLines { values, first, tap } = turned.tap_lines(last, [taps, outputs], &channels, &mut buffer);
            for (t, (i, channel)) in (0..taps).flat_map(|t| channels.clone().enumerate().map(move |each| (t, each))) {
                assert_eq!(values[(t * tap + first + i) * PANEL..][..PANEL], *line(last, t * outputs + channel));
            }
        }
        assert_eq!(turned.at(depth - 1, inputs - 1), line(last, depth - 1)[(inputs - 1) % PANEL]);
    }
}
