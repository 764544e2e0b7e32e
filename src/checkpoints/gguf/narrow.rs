//! From floats to blocks.
//!
//! The formats with 32 values are rounded as GGML's reference does it, to equal bytes. For the K formats, whose scales anybody may
//! choose, each part of a block tries some twenty scales and takes the one whose rounded values are nearest by least squares.

use super::BlockFormat;
use half::f16;
use rayon::prelude::*;

impl BlockFormat {
    /// Whether floats can be brought into the format here.
    pub fn can_be_written(self) -> bool {
        !matches!(self, Self::IQ4_NL | Self::IQ4_XS)
    }

    /// Whole blocks of values, on all cores.
    ///
    /// # Panics
    /// If the values make no whole blocks, or the format cannot be written.
    pub fn narrow(self, values: &[f32]) -> Vec<u8> {
        assert!(values.len().is_multiple_of(self.values()) && self.can_be_written());
        let mut blocks = vec![0; values.len() / self.values() * self.bytes()];
        let each = values.par_chunks_exact(self.values()).zip(blocks.par_chunks_exact_mut(self.bytes()));
        each.for_each(|(values, block)| match self {
            Self::Q4_0 => legacy_symmetric(values, 16, block),
            Self::Q4_1 => legacy_from_least(values, 15, block),
            Self::Q5_0 => legacy_symmetric(values, 32, block),
            Self::Q5_1 => legacy_from_least(values, 31, block),
            Self::Q8_0 => q8_0(values, block),
            Self::Q2_K => q2_k(values, block),
            Self::Q3_K => q3_k(values, block),
            Self::Q4_K => q45_k(values, 15, block),
            Self::Q5_K => q45_k(values, 31, block),
            Self::Q6_K => q6_k(values, block),
            Self::IQ4_NL | Self::IQ4_XS => {}
        });
        blocks
    }
}

/// Puts a number in half precision at a byte, and gives what it has become.
fn put_half(block: &mut [u8], at: usize, value: f32) -> f32 {
    let value = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&value.to_le_bytes());
    value.to_f32()
}

fn inverse(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}

/// The value that is farthest from 0; of several the first.
fn farthest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most: f32, &value| if value.abs() > most.abs() { value } else { most })
}

/// Whole numbers from 0 of four bits each, or five, behind the scales of a block.
fn put_legacy(block: &mut [u8], number: impl Fn(usize) -> u8) {
    let low = block.len() - 16;
    for i in 0..16 {
        block[low + i] = number(i) & 15 | number(i + 16) << 4;
    }
    let scales = if matches!(block.len(), 18 | 22) { 2 } else { 4 };
    if low > scales {
        let fifths = (0..32).fold(0u32, |bits, i| bits | u32::from(number(i) >> 4) << i);
        block[scales..low].copy_from_slice(&fifths.to_le_bytes());
    }
}

/// The value that is farthest from 0 becomes the lowest of `levels`.
fn legacy_symmetric(values: &[f32], levels: u8, block: &mut [u8]) {
    let middle = levels / 2;
    let scale = farthest(values) / -f32::from(middle);
    put_half(block, 0, scale);
    let inverse = f64::from(inverse(scale));
    put_legacy(block, |i| {
        let level = (f64::from(values[i]) * inverse + f64::from(middle) + 0.5) as f32;
        level.trunc().clamp(0.0, f32::from(levels - 1)) as u8
    });
}

/// The least value becomes 0, the greatest `most`.
fn legacy_from_least(values: &[f32], most: u8, block: &mut [u8]) {
    let least = values.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (greatest - least) / f32::from(most);
    put_half(block, 0, scale);
    put_half(block, 2, least);
    let inverse = inverse(scale);
    put_legacy(block, |i| ((values[i] - least) * inverse + 0.5).trunc().clamp(0.0, f32::from(most)) as u8);
}

fn q8_0(values: &[f32], block: &mut [u8]) {
    let scale = farthest(values).abs() / 127.0;
    put_half(block, 0, scale);
    let inverse = inverse(scale);
    block[2..].iter_mut().zip(values).for_each(|(q, value)| *q = (value * inverse).round() as i8 as u8);
}

/// The scale with which whole numbers from `-levels` to `levels - 1` come nearest to the values, those that are far from 0
/// counting most.
fn symmetric_scale(values: &[f32], levels: f32) -> f32 {
    let farthest = farthest(values);
    if farthest == 0.0 {
        return 0.0;
    }
    let (mut best, mut most) = (0.0, f32::NEG_INFINITY);
    for step in -9i8..=9 {
        let inverse = -(levels + 0.1 * f32::from(step)) / farthest;
        let (mut with_values, mut with_itself) = (0.0, 0.0);
        for &value in values {
            let (level, weight) = ((inverse * value).round().clamp(-levels, levels - 1.0), value * value);
            with_values += weight * value * level;
            with_itself += weight * level * level;
        }
        if with_itself > 0.0 && with_values * with_values / with_itself > most {
            (best, most) = (with_values / with_itself, with_values * with_values / with_itself);
        }
    }
    best
}

/// The scale and what is subtracted, 0 or above, with which whole numbers from 0 to `most` come nearest to the values.
fn scale_and_least(values: &[f32], most: f32) -> (f32, f32) {
    let least = values.iter().copied().fold(0.0, f32::min);
    let greatest = values.iter().copied().fold(least, f32::max);
    if greatest == least {
        return (0.0, -least);
    }
    let count = values.len() as f32;
    let size = (values.iter().map(|value| value * value).sum::<f32>() / count).sqrt();
    let weights = values.iter().map(|value| size + value.abs());
    let error = |scale: f32, subtracted: f32, levels: &[f32]| {
        let each = values.iter().zip(levels).zip(weights.clone());
        each.map(|((value, level), weight)| weight * (scale * level - subtracted - value).powi(2)).sum::<f32>()
    };
    let mut best = ((greatest - least) / most, -least);
    let rounded = |inverse: f32| -> Vec<f32> {
        values.iter().map(|value| (inverse * (value - least)).round().clamp(0.0, most)).collect()
    };
    let mut smallest = error(best.0, best.1, &rounded(1.0 / best.0));
    for step in -10i8..=10 {
        let levels = rounded((most + 0.1 * f32::from(step)) / (greatest - least));
        // The line through the levels: sums of weights, of values and levels, and of their products.
        let [mut w, mut x, mut l, mut ll, mut xl] = [0.0f32; 5];
        for ((&value, &level), weight) in values.iter().zip(&levels).zip(weights.clone()) {
            w += weight;
            x += weight * value;
            l += weight * level;
            ll += weight * level * level;
            xl += weight * value * level;
        }
        let determinant = w * ll - l * l;
        if determinant <= 0.0 {
            continue;
        }
        let (mut scale, mut subtracted) = ((w * xl - x * l) / determinant, -(ll * x - l * xl) / determinant);
        if subtracted < 0.0 {
            (scale, subtracted) = (xl / ll, 0.0);
        }
        let this = error(scale, subtracted, &levels);
        if this < smallest {
            (best, smallest) = ((scale, subtracted), this);
        }
    }
    best
}

/// The whole number nearest to a value in steps of a scale; 0 where there is no scale.
fn level(value: f32, scale: f32, least: f32, most: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (value / scale).round().clamp(least, most) }
}

/// What is put down of the parts of a K block of which each has a scale and a least value: theirs, written at a byte, and the pair of
/// each part in whole numbers up to `levels`.
fn pairs_of_parts(
    values: &[f32],
    (width, most): (usize, f32),
    levels: f32,
    (block, at): (&mut [u8], usize),
) -> (f32, f32, Vec<(f32, f32)>) {
    let pairs: Vec<_> = values.chunks_exact(width).map(|part| scale_and_least(part, most)).collect();
    let greatest = |of: fn(&(f32, f32)) -> f32| pairs.iter().map(of).fold(0.0, f32::max);
    let d = put_half(block, at, greatest(|pair| pair.0) / levels);
    let m = put_half(block, at + 2, greatest(|pair| pair.1) / levels);
    let whole = |(scale, least)| (level(scale, d, 0.0, levels), level(least, m, 0.0, levels));
    (d, m, pairs.into_iter().map(whole).collect())
}

fn q2_k(values: &[f32], block: &mut [u8]) {
    let (d, m, pairs) = pairs_of_parts(values, (16, 3.0), 15.0, (block, 80));
    for (i, ((scale, least), values)) in pairs.into_iter().zip(values.chunks_exact(16)).enumerate() {
        block[i] = scale as u8 | (least as u8) << 4;
        for (j, value) in values.iter().enumerate() {
            let at = i * 16 + j;
            let q = level(value + m * least, d * scale, 0.0, 3.0) as u8;
            block[16 + at / 128 * 32 + at % 32] |= q << (at % 128 / 32 * 2);
        }
    }
}

/// The scales of the parts of a K block in whole numbers from `-levels` to `levels - 1`, and theirs.
fn scales_of_parts(values: &[f32], of_values: f32, levels: f32) -> (f32, [f32; 16]) {
    let mut scales = [0.0; 16];
    scales.iter_mut().zip(values.chunks_exact(16)).for_each(|(scale, part)| *scale = symmetric_scale(part, of_values));
    let d = f16::from_f32(-farthest(&scales) / levels).to_f32();
    (d, scales.map(|scale| level(scale, d, -levels, levels - 1.0)))
}

fn q3_k(values: &[f32], block: &mut [u8]) {
    let (d, scales) = scales_of_parts(values, 4.0, 32.0);
    put_half(block, 108, d);
    for (i, (scale, values)) in scales.iter().zip(values.chunks_exact(16)).enumerate() {
        let packed = (*scale as i32 + 32) as u8;
        block[96 + i % 8] |= (packed & 15) << (i / 8 * 4);
        block[96 + 8 + i % 4] |= packed >> 4 << (i / 4 * 2);
        for (j, value) in values.iter().enumerate() {
            let at = i * 16 + j;
            let q = (level(*value, d * scale, -4.0, 3.0) + 4.0) as u8;
            block[at % 32] |= (q >> 2) << (at / 32);
            block[32 + at / 128 * 32 + at % 32] |= (q & 3) << (at % 128 / 32 * 2);
        }
    }
}

/// `Q4_K` and `Q5_K`, whose blocks differ by the fifth bits.
fn q45_k(values: &[f32], most: u8, block: &mut [u8]) {
    let (d, m, pairs) = pairs_of_parts(values, (32, f32::from(most)), 63.0, (block, 0));
    let (fifths, fourths) = if most > 15 { (16, 48) } else { (0, 16) };
    for (i, ((scale, least), values)) in pairs.into_iter().zip(values.chunks_exact(32)).enumerate() {
        let (packed_scale, packed_least) = (scale as u8, least as u8);
        if i < 4 {
            block[4 + i] |= packed_scale;
            block[8 + i] |= packed_least;
        } else {
            block[8 + i] |= packed_scale & 15 | packed_least << 4;
            block[i] |= packed_scale >> 4 << 6;
            block[4 + i] |= packed_least >> 4 << 6;
        }
        for (j, value) in values.iter().enumerate() {
            let q = level(value + m * least, d * scale, 0.0, f32::from(most)) as u8;
            block[fourths + i / 2 * 32 + j] |= (q & 15) << (i % 2 * 4);
            if most > 15 {
                block[fifths + j] |= (q >> 4) << i;
            }
        }
    }
}

fn q6_k(values: &[f32], block: &mut [u8]) {
    let (d, scales) = scales_of_parts(values, 32.0, 128.0);
    put_half(block, 208, d);
    for (i, (scale, values)) in scales.iter().zip(values.chunks_exact(16)).enumerate() {
        block[192 + i] = *scale as i8 as u8;
        for (j, value) in values.iter().enumerate() {
            let (part, inside) = (i / 8, (i * 16 + j) % 128);
            let q = (level(*value, d * scale, -32.0, 31.0) + 32.0) as u8;
            block[part * 64 + inside % 64] |= (q & 15) << (inside / 64 * 4);
            block[128 + part * 32 + inside % 32] |= (q >> 4) << (inside / 32 * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchGenerator;

    /// Values of a K block.
    const SUPER_BLOCK: usize = 256;

    /// Values of weights: normal, of a small and of a larger block.
    fn weights() -> Vec<f32> {
        let mut values = TorchGenerator::new(7).normal(64 * SUPER_BLOCK);
        values[SUPER_BLOCK..].iter_mut().for_each(|value| *value *= 0.02);
        values
    }

    #[test]
    fn what_is_narrowed_is_near_when_it_is_widened() {
        let values = weights();
        // Levels that lie evenly over a range r have an error of r / levels / sqrt(12). The ranges are those of 16 or 32 normal
        // values, some 3.5 and 4.1 deviations: 0.5 % of the deviation with 8 bits, 1.6 with 6, 3.8 with 5, 7.9 with 4, 15 with 3 and
        // 34 with 2. The bounds are a quarter above that, and with two bits below, where the choice of scales counts.
        let most = |format| match format {
            BlockFormat::Q8_0 => 0.006,
            BlockFormat::Q6_K => 0.02,
            BlockFormat::Q5_K | BlockFormat::Q5_0 | BlockFormat::Q5_1 => 0.05,
            BlockFormat::Q4_K | BlockFormat::Q4_0 | BlockFormat::Q4_1 => 0.1,
            BlockFormat::Q3_K => 0.17,
            _ => 0.33,
        };
        for format in BlockFormat::ALL.into_iter().filter(|format| format.can_be_written()) {
            let mut widened = vec![0.0; values.len()];
            format.widen(&format.narrow(&values), &mut widened);
            for part in [0..SUPER_BLOCK, SUPER_BLOCK..values.len()] {
                let square =
                    |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
                let off = square(&mut values[part.clone()].iter().zip(&widened[part.clone()]).map(|(a, b)| a - b));
                let share = (off / square(&mut values[part].iter().copied())).sqrt();
                assert!(share < most(format), "{format:?} is off by {share}");
            }
        }
    }

    #[test]
    fn what_is_widened_is_narrowed_to_itself() {
        // Values that a format has exactly need no other ones.
        for format in BlockFormat::ALL.into_iter().filter(|format| format.can_be_written()) {
            let mut once = vec![0.0; 64 * SUPER_BLOCK];
            format.widen(&format.narrow(&weights()), &mut once);
            let mut twice = vec![0.0; once.len()];
            format.widen(&format.narrow(&once), &mut twice);
            for part in [0..SUPER_BLOCK, SUPER_BLOCK..once.len()] {
                let square =
                    |values: &mut dyn Iterator<Item = f32>| values.map(|value| f64::from(value).powi(2)).sum::<f64>();
                let pairs = once[part.clone()].iter().zip(&twice[part.clone()]);
                let off = square(&mut pairs.map(|(a, b)| a - b));
                let share = (off / square(&mut once[part].iter().copied())).sqrt();
                // Scales of scales are chosen anew, of values that are multiples of them already.
                assert!(share < 0.1, "{format:?} is off by {share}");
            }
        }
    }

    #[test]
    fn zeros_stay_zeros() {
        for format in BlockFormat::ALL.into_iter().filter(|format| format.can_be_written()) {
            let mut widened = vec![1.0; 2 * SUPER_BLOCK];
            format.widen(&format.narrow(&[0.0; 2 * SUPER_BLOCK]), &mut widened);
            assert!(widened.iter().all(|value| *value == 0.0), "{format:?}");
        }
    }
}
