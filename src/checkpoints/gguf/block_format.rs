//! The block formats of GGML: rows in blocks of small whole numbers with scales of their own, widened exactly as `gguf` does in
//! Python: every product and sum in f32, in the same order.

use half::f16;
use rayon::prelude::*;

/// How a block holds its values.
///
/// `Q4_0` to `Q8_0` have 32 values and one scale (`_0`), or a scale and a least value (`_1`). The K formats have 256 values in
/// parts of 16 or 32, each with a scale of a few bits, and some a least value, that share scales of the block. `IQ4` formats look
/// their values up in a table of uneven steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[expect(non_camel_case_types, reason = "the names by which the formats are known")]
pub enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
}

/// Values of a K block.
const SUPER_BLOCK: usize = 256;

/// Blocks that one thread takes at a time, so that it reads from and writes to its caches.
const BLOCKS_OF_A_TASK: usize = 64;

/// What the four bits of `IQ4` formats mean.
const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl BlockFormat {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
    ];

    /// Its number in GGUF files (`ggml_type`).
    pub fn number(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2_K => 10,
            Self::Q3_K => 11,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::IQ4_NL => 20,
            Self::IQ4_XS => 23,
        }
    }

    /// Values of a block.
    pub fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K | Self::IQ4_XS => SUPER_BLOCK,
        }
    }

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
            Self::IQ4_XS => 136,
        }
    }

    /// The values of whole blocks, on all cores.
    ///
    /// # Panics
    /// If there are not as many values as the blocks hold.
    pub fn widen(self, blocks: &[u8], values: &mut [f32]) {
        assert_eq!((blocks.len() % self.bytes(), blocks.len() / self.bytes() * self.values()), (0, values.len()));
        let of_task = (blocks.par_chunks(BLOCKS_OF_A_TASK * self.bytes()))
            .zip(values.par_chunks_mut(BLOCKS_OF_A_TASK * self.values()));
        of_task.for_each(|(blocks, values)| {
            let each = blocks.chunks_exact(self.bytes()).zip(values.chunks_exact_mut(self.values()));
            match self {
                Self::Q4_0 => each.for_each(|(block, values)| legacy(block, values, 0, |d, _, q| d * (q - 8) as f32)),
                Self::Q4_1 => each.for_each(|(block, values)| legacy(block, values, 0, |d, m, q| d * q as f32 + m)),
                Self::Q5_0 => each.for_each(|(block, values)| legacy(block, values, 1, |d, _, q| d * (q - 16) as f32)),
                Self::Q5_1 => each.for_each(|(block, values)| legacy(block, values, 1, |d, m, q| d * q as f32 + m)),
                Self::Q8_0 => each.for_each(|(block, values)| q8_0(block, values)),
                Self::Q2_K => each.for_each(|(block, values)| q2_k(block, values)),
                Self::Q3_K => each.for_each(|(block, values)| q3_k(block, values)),
                Self::Q4_K => each.for_each(|(block, values)| q45_k(&block[..16], &[0; 32], &block[16..], values)),
                Self::Q5_K => {
                    each.for_each(|(block, values)| q45_k(&block[..16], &block[16..48], &block[48..], values))
                }
                Self::Q6_K => each.for_each(|(block, values)| q6_k(block, values)),
                Self::IQ4_NL => each.for_each(|(block, values)| iq4_nl(block, values)),
                Self::IQ4_XS => each.for_each(|(block, values)| iq4_xs(block, values)),
            }
        });
    }
}

/// The number in half precision that stands at a byte.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// A scale, a least value if the block is large enough for one, a fifth bit of each value if there is one, and four bits of each:
/// those of the first half are the lower ones of the bytes.
fn legacy(block: &[u8], values: &mut [f32], fifths: usize, value: impl Fn(f32, f32, i32) -> f32) {
    let scales = block.len() - 16 - 4 * fifths;
    let (d, m) = (half(block, 0), if scales == 4 { half(block, 2) } else { 0.0 });
    let high = match fifths {
        0 => 0,
        _ => u32::from_le_bytes([block[scales], block[scales + 1], block[scales + 2], block[scales + 3]]),
    };
    for (i, &byte) in block[block.len() - 16..].iter().enumerate() {
        let fifth = |at: usize| ((high >> at & 1) << 4) as i32;
        values[i] = value(d, m, i32::from(byte & 15) | fifth(i));
        values[i + 16] = value(d, m, i32::from(byte >> 4) | fifth(i + 16));
    }
}

/// A scale and 32 signed bytes.
fn q8_0(block: &[u8], values: &mut [f32]) {
    let d = half(block, 0);
    values.iter_mut().zip(&block[2..]).for_each(|(value, &q)| *value = f32::from(q as i8) * d);
}

/// 16 pairs of a scale and a least value of four bits each, two bits of every value, and the scales of both.
fn q2_k(block: &[u8], values: &mut [f32]) {
    let (scales, bits) = block[..80].split_at(16);
    let (d, m) = (half(block, 80), half(block, 82));
    for (i, value) in values.iter_mut().enumerate() {
        let scale = scales[i / 16];
        let q = bits[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
        *value = d * f32::from(scale & 15) * f32::from(q) - m * f32::from(scale >> 4);
    }
}

/// A third bit of every value, inverted, the two lower ones, 16 scales of six bits, and theirs.
fn q3_k(block: &[u8], values: &mut [f32]) {
    let (high, bits, packed, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    let scale = |i: usize| {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        i32::from(low | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4) - 32
    };
    let scales: [f32; 16] = std::array::from_fn(|i| d * scale(i) as f32);
    for (i, value) in values.iter_mut().enumerate() {
        let low = i32::from(bits[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3);
        let is_low = high[i % 32] >> (i / 32) & 1 == 0;
        *value = scales[i / 16] * (low - if is_low { 4 } else { 0 }) as f32;
    }
}

/// The scale and the least value of each part of 32 values, of six bits each, in 12 bytes.
fn six_bit_pairs(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|i| match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4),
    })
}

/// Two scales and eight pairs, then a fifth bit of every value (zeros where there is none), and the four lower ones.
fn q45_k(head: &[u8], high: &[u8], bits: &[u8], values: &mut [f32]) {
    let (d, m) = (half(head, 0), half(head, 2));
    let pairs = six_bit_pairs(&head[4..]).map(|(scale, least)| (d * f32::from(scale), m * f32::from(least)));
    for (part, (values, (scale, least))) in values.chunks_exact_mut(32).zip(pairs).enumerate() {
        let bytes = &bits[part / 2 * 32..][..32];
        for (value, (byte, high)) in values.iter_mut().zip(bytes.iter().zip(high)) {
            let q = byte >> (part % 2 * 4) & 15 | (high >> part & 1) << 4;
            *value = scale * f32::from(q) - least;
        }
    }
}

/// Four lower bits of every value, two upper ones, 16 signed scales, and theirs.
fn q6_k(block: &[u8], values: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    for (i, value) in values.iter_mut().enumerate() {
        let (part, inside) = (i / 128, i % 128);
        let q = low[part * 64 + inside % 64] >> (inside / 64 * 4) & 15
            | (high[part * 32 + inside % 32] >> (inside / 32 * 2) & 3) << 4;
        *value = d * f32::from(scales[i / 16] as i8) * (i32::from(q) - 32) as f32;
    }
}

/// A scale and four bits of each value, as in `Q4_0`.
fn iq4_nl(block: &[u8], values: &mut [f32]) {
    uneven(half(block, 0), &block[2..], values);
}

/// A scale, two upper and four lower bits of a scale for each part of 32 values, and four bits of each value.
fn iq4_xs(block: &[u8], values: &mut [f32]) {
    let (d, upper, lower) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]), &block[4..8]);
    for (part, (bytes, values)) in block[8..].chunks_exact(16).zip(values.chunks_exact_mut(32)).enumerate() {
        let scale = lower[part / 2] >> (part % 2 * 4) & 15 | (((upper >> (part * 2)) & 3) as u8) << 4;
        uneven(d * (i32::from(scale) - 32) as f32, bytes, values);
    }
}

fn uneven(scale: f32, bytes: &[u8], values: &mut [f32]) {
    for (i, byte) in bytes.iter().enumerate() {
        values[i] = scale * f32::from(UNEVEN[usize::from(byte & 15)]);
        values[i + 16] = scale * f32::from(UNEVEN[usize::from(byte >> 4)]);
    }
}
