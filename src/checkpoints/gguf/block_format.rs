//! The block formats of GGML: rows in blocks of small whole numbers with scales of their own, widened exactly as `gguf` does in
//! Python: every product and sum in f32, in the same order. All of them are a whole number of eight bits times a scale, from
//! which some take a least value.

use crate::kernels::{EightBits, is_dry_run};
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

/// Values of a K block, and the most parts of a block.
const SUPER_BLOCK: usize = 256;
const MOST_PARTS: usize = SUPER_BLOCK / 16;

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

    /// Neighbours in a block that share a scale.
    fn part(self) -> usize {
        match self {
            Self::Q2_K | Self::Q3_K | Self::Q6_K => 16,
            _ => 32,
        }
    }

    /// Whether parts have a least value too.
    fn has_leasts(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q2_K | Self::Q4_K | Self::Q5_K)
    }

    /// The least of the sixteen neighbouring numbers that all are among, if they are so few.
    fn least_of_sixteen(self) -> Option<i8> {
        match self {
            Self::Q4_0 => Some(-8),
            Self::Q4_1 | Self::Q2_K | Self::Q4_K => Some(0),
            Self::Q3_K => Some(-4),
            _ => None,
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
            let (mut numbers, mut scales, mut leasts) = ([0; SUPER_BLOCK], [0.0; MOST_PARTS], [0.0; MOST_PARTS]);
            for (block, values) in blocks.chunks_exact(self.bytes()).zip(values.chunks_exact_mut(self.values())) {
                self.split(block, &mut numbers, &mut scales, &mut leasts);
                let parts = values.chunks_exact_mut(self.part()).zip(numbers.chunks_exact(self.part()));
                for ((values, numbers), (scale, least)) in parts.zip(scales.iter().zip(&leasts)) {
                    values.iter_mut().zip(numbers).for_each(|(v, &number)| *v = scale * f32::from(number) - least);
                }
            }
        });
    }

    /// The numbers of whole blocks, on all cores: the same values, in eight bits each.
    ///
    /// # Panics
    /// If the bytes are no whole blocks.
    pub fn eight_bits(self, blocks: &[u8]) -> EightBits {
        assert!(blocks.len().is_multiple_of(self.bytes()));
        let (count, parts) = (blocks.len() / self.bytes(), self.values() / self.part());
        let mut numbers = vec![0; count * self.values()];
        let (least_of_sixteen, part) = (self.least_of_sixteen(), self.part());
        let (mut scales, mut leasts) = (vec![0.0; count * parts], vec![0.0; count * parts]);
        let blocks = if is_dry_run() { &[] } else { blocks };
        let of_task = (blocks.par_chunks(BLOCKS_OF_A_TASK * self.bytes()))
            .zip(numbers.par_chunks_mut(BLOCKS_OF_A_TASK * self.values()))
            .zip(scales.par_chunks_mut(BLOCKS_OF_A_TASK * parts))
            .zip(leasts.par_chunks_mut(BLOCKS_OF_A_TASK * parts));
        of_task.for_each(|(((blocks, numbers), scales), leasts)| {
            let of_block = (blocks.chunks_exact(self.bytes()))
                .zip(numbers.chunks_exact_mut(self.values()))
                .zip(scales.chunks_exact_mut(parts).zip(leasts.chunks_exact_mut(parts)));
            of_block.for_each(|((block, numbers), (scales, leasts))| self.split(block, numbers, scales, leasts));
        });
        EightBits { numbers, scales, leasts: self.has_leasts().then_some(leasts), part, least_of_sixteen }
    }

    /// A block as whole numbers, and of each part the scale and the least value: `scale * number - least`.
    fn split(self, block: &[u8], numbers: &mut [i8], scales: &mut [f32], leasts: &mut [f32]) {
        match self {
            Self::Q4_0 => legacy(block, numbers, (scales, leasts), 8),
            Self::Q5_0 => legacy(block, numbers, (scales, leasts), 16),
            Self::Q4_1 | Self::Q5_1 => legacy(block, numbers, (scales, leasts), 0),
            Self::Q8_0 => q8_0(block, numbers, scales),
            Self::Q2_K => q2_k(block, numbers, scales, leasts),
            Self::Q3_K => q3_k(block, numbers, scales),
            Self::Q4_K => q45_k(&block[..16], &[0; 32], &block[16..], numbers, (scales, leasts)),
            Self::Q5_K => q45_k(&block[..16], &block[16..48], &block[48..], numbers, (scales, leasts)),
            Self::Q6_K => q6_k(block, numbers, scales),
            Self::IQ4_NL => iq4_nl(block, numbers, scales),
            Self::IQ4_XS => iq4_xs(block, numbers, scales),
        }
    }
}

/// The number in half precision that stands at a byte.
fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// A scale, what is added if the block is large enough for it, a fifth bit of each value if there is one, and four bits of each:
/// those of the first half are the lower ones of the bytes. `zero` is the number that stands for 0.
fn legacy(block: &[u8], numbers: &mut [i8], (scales, leasts): (&mut [f32], &mut [f32]), zero: i8) {
    let head = if zero == 0 { 4 } else { 2 };
    let has_fifths = block.len() > head + 16;
    scales[0] = half(block, 0);
    leasts[0] = if zero == 0 { -half(block, 2) } else { 0.0 };
    let high = match has_fifths {
        false => 0,
        true => u32::from_le_bytes([block[head], block[head + 1], block[head + 2], block[head + 3]]),
    };
    for (i, &byte) in block[block.len() - 16..].iter().enumerate() {
        let fifth = |at: usize| ((high >> at & 1) << 4) as i8;
        numbers[i] = ((byte & 15) as i8 | fifth(i)) - zero;
        numbers[i + 16] = ((byte >> 4) as i8 | fifth(i + 16)) - zero;
    }
}

/// A scale and 32 signed bytes.
fn q8_0(block: &[u8], numbers: &mut [i8], scales: &mut [f32]) {
    scales[0] = half(block, 0);
    numbers.iter_mut().zip(&block[2..]).for_each(|(number, &byte)| *number = byte as i8);
}

/// 16 pairs of a scale and a least value of four bits each, two bits of every value, and the scales of both.
fn q2_k(block: &[u8], numbers: &mut [i8], scales: &mut [f32], leasts: &mut [f32]) {
    let (pairs, bits) = block[..80].split_at(16);
    let (d, m) = (half(block, 80), half(block, 82));
    for ((scale, least), pair) in scales.iter_mut().zip(leasts).zip(pairs) {
        (*scale, *least) = (d * f32::from(pair & 15), m * f32::from(pair >> 4));
    }
    for (i, number) in numbers[..SUPER_BLOCK].iter_mut().enumerate() {
        *number = (bits[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) as i8;
    }
}

/// A third bit of every value, inverted, the two lower ones, 16 scales of six bits, and theirs.
fn q3_k(block: &[u8], numbers: &mut [i8], scales: &mut [f32]) {
    let (high, bits, packed, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    for (i, scale) in scales[..16].iter_mut().enumerate() {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        *scale = d * (i32::from(low | (packed[8 + i % 4] >> (i / 4 * 2) & 3) << 4) - 32) as f32;
    }
    for (i, number) in numbers[..SUPER_BLOCK].iter_mut().enumerate() {
        let low = (bits[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) as i8;
        let is_low = high[i % 32] >> (i / 32) & 1 == 0;
        *number = low - if is_low { 4 } else { 0 };
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
fn q45_k(head: &[u8], high: &[u8], bits: &[u8], numbers: &mut [i8], (scales, leasts): (&mut [f32], &mut [f32])) {
    let (d, m) = (half(head, 0), half(head, 2));
    for ((scale, least), pair) in scales.iter_mut().zip(leasts).zip(six_bit_pairs(&head[4..])) {
        (*scale, *least) = (d * f32::from(pair.0), m * f32::from(pair.1));
    }
    for (part, numbers) in numbers[..SUPER_BLOCK].chunks_exact_mut(32).enumerate() {
        let bytes = &bits[part / 2 * 32..][..32];
        for (number, (byte, high)) in numbers.iter_mut().zip(bytes.iter().zip(high)) {
            *number = (byte >> (part % 2 * 4) & 15 | (high >> part & 1) << 4) as i8;
        }
    }
}

/// Four lower bits of every value, two upper ones, 16 signed scales, and theirs.
fn q6_k(block: &[u8], numbers: &mut [i8], scales: &mut [f32]) {
    let (low, high, packed, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    scales.iter_mut().zip(packed).for_each(|(scale, &byte)| *scale = d * f32::from(byte as i8));
    for (i, number) in numbers[..SUPER_BLOCK].iter_mut().enumerate() {
        let (part, inside) = (i / 128, i % 128);
        let q = low[part * 64 + inside % 64] >> (inside / 64 * 4) & 15
            | (high[part * 32 + inside % 32] >> (inside / 32 * 2) & 3) << 4;
        *number = q as i8 - 32;
    }
}

/// A scale and four bits of each value, as in `Q4_0`.
fn iq4_nl(block: &[u8], numbers: &mut [i8], scales: &mut [f32]) {
    scales[0] = half(block, 0);
    uneven(&block[2..], numbers);
}

/// A scale, two upper and four lower bits of a scale for each part of 32 values, and four bits of each value.
fn iq4_xs(block: &[u8], numbers: &mut [i8], scales: &mut [f32]) {
    let (d, upper, lower) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]), &block[4..8]);
    for (part, (bytes, numbers)) in block[8..].chunks_exact(16).zip(numbers.chunks_exact_mut(32)).enumerate() {
        let scale = lower[part / 2] >> (part % 2 * 4) & 15 | (((upper >> (part * 2)) & 3) as u8) << 4;
        scales[part] = d * (i32::from(scale) - 32) as f32;
        uneven(bytes, numbers);
    }
}

fn uneven(bytes: &[u8], numbers: &mut [i8]) {
    for (i, byte) in bytes.iter().enumerate() {
        numbers[i] = UNEVEN[usize::from(byte & 15)];
        numbers[i + 16] = UNEVEN[usize::from(byte >> 4)];
    }
}
