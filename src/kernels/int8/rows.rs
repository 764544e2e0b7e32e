//! The left factor, rounded just before it is multiplied.

use super::super::Real;
use super::super::rows::Rows;
use super::super::simd::multiversion;
use super::PART;
use std::marker::PhantomData;

/// Rows of whole numbers, a scale for each part.
#[derive(Debug, Default)]
pub(super) struct RoundedRows {
    /// `[row][depth]`, numbers of eight bits, perhaps with an offset.
    numbers: Vec<u8>,
    /// `[row][depth / 32]`.
    scales: Vec<f32>,
    depth: usize,
}

impl RoundedRows {
    pub const fn new() -> Self {
        Self { numbers: Vec::new(), scales: Vec::new(), depth: 0 }
    }

    /// A row's numbers and scales.
    #[inline(always)]
    pub fn row(&self, row: usize) -> (&[u8], &[f32]) {
        let parts = self.depth / PART;
        (&self.numbers[row * self.depth..][..self.depth], &self.scales[row * parts..][..parts])
    }
}

/// Rounds rows, as [`EightBits::round`](super::super::EightBits::round) does, and adds an offset to the numbers, of which the bytes
/// are kept.
pub(super) fn round(rows: Rows<'_, f32>, offset: u8, to: &mut RoundedRows) {
    let (depth, count) = (rows.depth(), rows.starts.len());
    to.depth = depth;
    to.numbers.resize(count * depth, 0);
    to.scales.resize(count * depth / PART, 0.0);
    let (mut numbers, mut scales) = (to.numbers.as_mut_slice(), to.scales.as_mut_slice());
    for &start in rows.starts {
        for &(from, length) in rows.stretches {
            let of_row;
            let scales_of_row;
            (of_row, numbers) = numbers.split_at_mut(length);
            (scales_of_row, scales) = scales.split_at_mut(length / PART);
            round_parts(PhantomData::<f32>, &rows.values[start + from..][..length], offset, of_row, scales_of_row);
        }
    }
}

multiversion! {
    fn round_parts<T: Real>(
        of: PhantomData<T>, values: &[f32], offset: u8, numbers: &mut [u8], scales: &mut [f32],
    ) {
        // There is one type of values, and versions are made by type.
        let _ = of;
        // Adding 1.5 * 2^23 rounds to a whole number, two ways to the even one, and leaves it in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let parts = values.as_chunks::<PART>().0.iter().zip(numbers.as_chunks_mut::<PART>().0);
        for ((values, numbers), scale) in parts.zip(scales) {
            // Magnitudes are in the order of their bits, infinity above all numbers and what is none above that: then the scale is
            // none, and with it all that is made of it.
            let mut most = [0u32; 16];
            for half in values.as_chunks::<16>().0 {
                for (most, value) in most.iter_mut().zip(half) {
                    *most = (*most).max(value.abs().to_bits());
                }
            }
            for width in [8, 4, 2, 1] {
                let (low, high) = most.split_at_mut(width);
                low.iter_mut().zip(high).for_each(|(low, high)| *low = (*low).max(*high));
            }
            *scale = f32::from_bits(most[0]) / 127.0;
            let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
            for (number, value) in numbers.iter_mut().zip(values) {
                *number = ((value * inverse + ROUND).to_bits() as u8).wrapping_add(offset);
            }
        }
    }
}
