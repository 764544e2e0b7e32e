//! Weights in eight bits and less: whole numbers, of which neighbours share a scale, and in some formats a least value.

use super::InstructionSet;
use super::int8::Rounding;
use super::numbers::{NumberLines, Numbers};
use super::panel_row::PANEL;
use super::simd::multiversion;
use super::weight_layout::pack_shaped;
use super::{Real, dry_run};
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix `[out, in]` of values `scale * number - least`, computed in f32 with two roundings. So many neighbours in a row as
/// [`Self::part`] says share a scale and a least value.
#[derive(Debug, Clone, PartialEq)]
pub struct EightBits {
    /// `[out, in]`.
    pub numbers: Vec<i8>,
    /// `[out, in / part]`.
    pub scales: Vec<f32>,
    /// Of the same shape; none where all are 0.
    pub leasts: Option<Vec<f32>>,
    /// A power of two.
    pub part: usize,
    /// The least of sixteen neighbouring numbers that all are among, if they are; two then share a byte in memory.
    pub least_of_sixteen: Option<i8>,
}

/// How finely weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundedTo {
    /// To 255 numbers in a byte each.
    EightBits,
    /// To 16 numbers, two in a byte.
    FourBits,
}

/// How products with a weight in eight bits are summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EightBitSums {
    /// In the type of the activations, as those of the widened weight.
    #[default]
    Full,
    /// In whole numbers, 32 products at a time, with the activations rounded to eight bits too: in linear layers and pointwise
    /// convolutions in f32, with weights in parts of 32 without least values.
    Whole,
}

/// [`EightBits::PART`], for types.
const PART: usize = 32;

/// Parts that one thread rounds at a time.
const PARTS_OF_A_TASK: usize = 1024;

impl EightBits {
    /// The neighbours that share a scale where values are [rounded](Self::round).
    pub const PART: usize = PART;

    /// The nearest numbers of 127 to either side of 0, where the farthest of 32 values is 127 scales away from it (`Q8_0`, whose scale
    /// is rounded to half precision, and this one is not).
    ///
    /// # Panics
    /// If they are no whole parts.
    pub fn round(values: &[f32]) -> Self {
        let rounding = Rounding::of(InstructionSet::in_use());
        Self::of_parts(values, None, |values, numbers, scales| rounding.round(values, 0, numbers, scales))
    }

    /// The numbers from -8 to 7 that are nearest to 32 values at a time, with the scale that leaves the least error (`Q4_0` has such
    /// numbers, the farthest value being -8 scales, with a scale in half precision). Of several scales the best is taken: with each
    /// values are rounded, and then the scale is made that fits these numbers best.
    ///
    /// # Panics
    /// If they are no whole parts.
    pub fn round_to_four_bits(values: &[f32]) -> Self {
        let round = |values: &[f32], numbers: &mut [i8], scales: &mut [f32]| {
            four_bit_parts(PhantomData::<f32>, values, numbers, scales);
        };
        Self::of_parts(values, Some(-8), round)
    }

    /// Rounds many parts at a time: their values to their numbers and their scales.
    fn of_parts(
        values: &[f32],
        least_of_sixteen: Option<i8>,
        round: impl Fn(&[f32], &mut [i8], &mut [f32]) + Sync,
    ) -> Self {
        assert!(values.len().is_multiple_of(PART));
        let mut numbers = vec![0; values.len()];
        let mut scales = vec![0.0; values.len() / PART];
        if dry_run::is_dry_run() {
            return Self { numbers, scales, leasts: None, part: PART, least_of_sixteen };
        }
        let of_task = (values.par_chunks(PARTS_OF_A_TASK * PART))
            .zip(numbers.par_chunks_mut(PARTS_OF_A_TASK * PART))
            .zip(scales.par_chunks_mut(PARTS_OF_A_TASK));
        of_task.for_each(|((values, numbers), scales)| round(values, numbers, scales));
        Self { numbers, scales, leasts: None, part: PART, least_of_sixteen }
    }

    /// The values, in their order.
    pub fn widened(&self) -> Vec<f32> {
        let value = |(i, &number): (usize, &i8)| {
            let part = i / self.part;
            self.scales[part] * f32::from(number) - self.leasts.as_ref().map_or(0.0, |leasts| leasts[part])
        };
        self.numbers.par_iter().enumerate().map(value).collect()
    }
}

/// The value that is added and taken away again to round to a whole number, two ways to the even one: it also leaves it in the low
/// bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// How many scales away from 0 the farthest value of a part is tried to be in four bits.
const FARTHEST: [f32; 16] =
    [-9.1, -8.9, -8.7, -8.5, -8.3, -8.1, -7.9, -7.7, -7.5, -7.3, -7.1, -6.9, -6.7, -6.5, -6.3, -6.1];

/// The sum of sixteen numbers, in an order that every machine has.
#[inline(always)]
fn sum(mut lanes: [f32; 16]) -> f32 {
    for width in [8, 4, 2, 1] {
        let (low, high) = lanes.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    lanes[0]
}

multiversion! {
    /// The numbers of each part in four bits, and their scales.
    fn four_bit_parts<T: Real>(of: PhantomData<T>, values: &[f32], numbers: &mut [i8], scales: &mut [f32]) {
        // There is one type of values, and versions are made by type.
        let _ = of;
        let parts = values.as_chunks::<PART>().0.iter().zip(numbers.as_chunks_mut::<PART>().0);
        for ((values, numbers), scale) in parts.zip(scales) {
            let halves = values.as_chunks::<16>().0;
            // What is no number makes none of all that it is a part of.
            let mut lanes = [0.0; 16];
            halves.iter().for_each(|half| lanes.iter_mut().zip(half).for_each(|(lane, x)| *lane += x * 0.0));
            *scale = sum(lanes);
            let farthest = values.iter().fold(0.0f32, |most, &x| if x.abs() > most.abs() { x } else { most });
            if farthest == 0.0 || scale.is_nan() {
                numbers.fill(0);
                continue;
            }
            // The error of a scale that fits its numbers best is the sum of x^2 less (sum of x n)^2 / sum of n^2.
            let round = |x: f32, inverse: f32| ((x * inverse + ROUND) - ROUND).clamp(-8.0, 7.0);
            let inverses = FARTHEST.map(|step| step / farthest);
            let (mut products, mut squares) = ([0.0f32; 16], [0.0f32; 16]);
            for &x in values {
                let sums = products.iter_mut().zip(&mut squares);
                for (inverse, (product, square)) in inverses.iter().zip(sums) {
                    let n = round(x, *inverse);
                    *product += x * n;
                    *square += n * n;
                }
            }
            let fit = |i: usize| products[i] * products[i] / squares[i];
            let fits = (0..FARTHEST.len()).filter(|&i| fit(i) > 0.0);
            // Of values that are too small for a scale none is left.
            let Some(best) = fits.reduce(|best, i| if fit(i) > fit(best) { i } else { best }) else {
                numbers.fill(0);
                continue;
            };
            *scale = products[best] / squares[best];
            numbers.iter_mut().zip(values).for_each(|(number, &x)| *number = round(x, inverses[best]) as i8);
        }
    }
}

/// A matrix as [`EightBitLines`] read it: numbers, scales and leasts in the order of panels.
#[derive(Debug)]
pub(super) struct EightBitPanels {
    numbers: Numbers,
    scales: Vec<f32>,
    leasts: Option<Vec<f32>>,
    part: usize,
}

impl EightBitPanels {
    /// Of a matrix `[outputs, inputs]`.
    pub fn new(matrix: &EightBits, outputs: usize, inputs: usize) -> Self {
        let EightBits { numbers, scales, leasts, part, least_of_sixteen } = matrix;
        let pack = |values: &[f32]| pack_shaped(values, &[outputs, inputs / part]);
        Self {
            numbers: Numbers::new(pack_shaped(numbers, &[outputs, inputs]), *least_of_sixteen),
            scales: pack(scales),
            leasts: leasts.as_deref().map(pack),
            part: *part,
        }
    }

    /// All lines.
    pub fn lines(&self) -> EightBitLines<'_> {
        EightBitLines::new(self.numbers.lines(), &self.scales, self.leasts.as_deref(), self.part)
    }
}

/// The nearest numbers of each part, plus an offset of which the byte is kept, and their scales: the definition.
pub(super) fn round_parts(values: &[f32], offset: i8, numbers: &mut [i8], scales: &mut [f32]) {
    let parts = values.as_chunks::<PART>().0.iter().zip(numbers.as_chunks_mut::<PART>().0);
    for ((values, numbers), scale) in parts.zip(scales) {
        // Magnitudes are in the order of their bits, infinity above all numbers and what is none above that: then the scale is
        // none, and with it all that is made of it.
        *scale = scale_of(values.iter().fold(0, |most, value| most.max(value.abs().to_bits())));
        let inverse = inverse_of(*scale);
        for (number, value) in numbers.iter_mut().zip(values) {
            *number = ((value * inverse + ROUND).to_bits() as i8).wrapping_add(offset);
        }
    }
}

/// The scale of a part, from the bits of its largest magnitude.
#[inline(always)]
pub(super) fn scale_of(most: u32) -> f32 {
    f32::from_bits(most) / 127.0
}

/// What values are multiplied by to be in scales.
#[inline(always)]
pub(super) fn inverse_of(scale: f32) -> f32 {
    if scale > 0.0 { 1.0 / scale } else { 0.0 }
}

/// Lines of panels in eight bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct EightBitLines<'a> {
    /// Of these lines.
    numbers: NumberLines<'a>,
    /// Of all lines of the weight, sixteen for every part of a panel.
    scales: &'a [f32],
    leasts: Option<&'a [f32]>,
    /// Two to this power are a part.
    part: u32,
    /// The first line.
    first: usize,
}

impl<'a> EightBitLines<'a> {
    /// All lines of panels that are whole parts high.
    pub fn new(numbers: NumberLines<'a>, scales: &'a [f32], leasts: Option<&'a [f32]>, part: usize) -> Self {
        assert!(part.is_power_of_two() && numbers.len() == scales.len() * part);
        assert!(leasts.is_none_or(|leasts| leasts.len() == scales.len()));
        Self { numbers, scales, leasts, part: part.ilog2(), first: 0 }
    }

    pub fn len(self) -> usize {
        self.numbers.len()
    }

    /// A part of the values that begins with a line.
    pub fn part(self, range: Range<usize>) -> Self {
        assert!(range.start.is_multiple_of(PANEL));
        Self { first: self.first + range.start / PANEL, numbers: self.numbers.part(range), ..self }
    }

    /// One value.
    pub fn at(self, i: usize) -> f32 {
        self.line(i / PANEL)[i % PANEL]
    }

    /// Sixteen values from a multiple of sixteen.
    #[inline(always)]
    pub fn line(self, line: usize) -> [f32; PANEL] {
        let part = (self.first + line) >> self.part;
        let numbers = self.numbers.line(line);
        let scales = &self.scales.as_chunks::<PANEL>().0[part];
        let mut values = [0.0; PANEL];
        for ((value, scale), number) in values.iter_mut().zip(scales).zip(numbers) {
            *value = scale * f32::from(number);
        }
        if let Some(leasts) = self.leasts {
            values.iter_mut().zip(&leasts.as_chunks::<PANEL>().0[part]).for_each(|(value, least)| *value -= least);
        }
        values
    }
}

multiversion! {
    /// All lines, in the type of the sums.
    pub(super) fn widen_lines<T: Real>(lines: EightBitLines<'_>, out: &mut [T]) {
        for (i, out) in out.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
            out.iter_mut().zip(lines.line(i)).for_each(|(out, value)| *out = T::from_f32(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.37).sin() * (1.0 + i as f32 * 0.01)).collect()
    }

    /// Half a step at most, of the part's own size; what is 0, or one number alone, is exact.
    #[test]
    fn rounding_is_to_the_nearest_number_of_a_part() {
        let mut values = wave(96);
        values[32..64].fill(0.0);
        values[64..].fill(-3.5);
        let rounded = EightBits::round(&values);
        let widened = rounded.widened();
        for (i, (value, found)) in values.iter().zip(&widened).enumerate() {
            // A rounding of the product beside.
            assert!((value - found).abs() <= rounded.scales[i / 32] * 0.5 + value.abs() * 1e-6, "{value} {found}");
        }
        assert!(widened[32..64].iter().all(|value| value.to_bits() == 0));
        assert!(widened[64..].iter().all(|value| (value + 3.5).abs() < 1e-6));
    }

    /// No scale of a fine grid fits better than half a step of the scale's grid, and what has one number alone is exact.
    #[test]
    fn four_bits_are_nearly_the_best_of_a_part() {
        let mut values = wave(128);
        values[32..64].fill(0.0);
        values[64..96].fill(-3.5);
        values[96..].fill(1e-44);
        let rounded = EightBits::round_to_four_bits(&values);
        assert!(rounded.numbers.iter().all(|number| (-8..=7).contains(number)));
        let widened = rounded.widened();
        let error = |found: &dyn Fn(usize) -> f32| (0..32).map(|i| (values[i] - found(i)).powi(2)).sum::<f32>();
        let found = error(&|i| widened[i]);
        let best = (1..4000).map(|step| {
            let scale = if step % 2 == 0 { 1e-4 } else { -1e-4 } * step as f32;
            error(&|i| (values[i] / scale).round().clamp(-8.0, 7.0) * scale)
        });
        let best = best.fold(f32::INFINITY, f32::min);
        assert!(found <= 1.1 * best, "{found} {best}");
        assert!(widened[32..64].iter().chain(&widened[96..]).all(|value| value.abs() < 1e-40));
        assert!(widened[64..96].iter().all(|value| (value + 3.5).abs() < 1e-6));
    }

    /// Lines are those of the panels of the widened matrix, from wherever they are taken.
    #[test]
    fn panels_have_the_values_of_the_widened_matrix() {
        for (outputs, inputs, part) in [(20, 64, 32), (16, 32, 16), (33, 48, 16)] {
            // The one kind needs whole bytes, the other halves.
            let of_range = |range: usize| (0..outputs * inputs).map(move |i| (i * 37 % range) as u8 as i8).collect();
            let kinds: [(Vec<i8>, _); 2] = [(of_range(256), None), (of_range(16), Some(0))];
            let scales = wave(outputs * inputs / part);
            let leasts = scales.iter().map(|scale| scale * 0.3 - 1.0).collect();
            let leasts: [Option<Vec<f32>>; 2] = [None, Some(leasts)];
            for (kind, leasts) in kinds.iter().flat_map(|kind| leasts.iter().map(move |leasts| (kind, leasts))) {
                let ((numbers, least_of_sixteen), leasts) = (kind.clone(), leasts.clone());
                let matrix = EightBits { numbers, scales: scales.clone(), leasts, part, least_of_sixteen };
                let want = pack_shaped(&matrix.widened(), &[outputs, inputs]);
                let panels = EightBitPanels::new(&matrix, outputs, inputs);
                let lines = panels.lines();
                let start = 5 * PANEL;
                let mut found = vec![f32::NAN; lines.len() - start];
                widen_lines(lines.part(start..lines.len()), &mut found);
                assert!(found == want[start..], "{outputs} {inputs} {part}");
                assert!((0..lines.len()).all(|i| lines.at(i) == want[i]));
            }
        }
    }
}
