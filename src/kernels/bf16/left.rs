//! The left factor, rounded and laid out in tiles just before it is multiplied.

use super::super::InstructionSet;
use super::super::half_precision::round_to_bf16;
use super::super::rows::Rows;
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::block::BLOCK_ROWS;
use super::pairs::{STEP, TILE, TILE_LEN};
use half::bf16;

/// Values of a left factor, which are bf16 or become so.
pub(in super::super) trait Roundable: Copy {
    /// Writes a row's values to its places in a row of tiles, with zeros after the last. `tiles` begins with the row's first place.
    fn lay_out(row: &[Self], tiles: &mut [bf16], set: InstructionSet);
}

impl Roundable for f32 {
    fn lay_out(row: &[Self], tiles: &mut [bf16], set: InstructionSet) {
        round_steps(row, tiles, TILE_LEN, set);
    }
}

/// Rounds values a step at a time, with zeros after the last, to steps so far apart.
fn round_steps(values: &[f32], to: &mut [bf16], apart: usize, set: InstructionSet) {
    #[cfg(target_arch = "x86_64")]
    if set.multiplies_bf16() {
        // SAFETY: the machine has the instructions of a set that is in use.
        return unsafe { avx512::round_steps(values, to, apart) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = set;
    for (values, to) in values.chunks(STEP).zip(to.chunks_mut(apart)) {
        to[..STEP].fill(bf16::ZERO);
        to.iter_mut().zip(values).for_each(|(to, &value)| *to = round_to_bf16(value));
    }
}

impl Roundable for bf16 {
    fn lay_out(row: &[Self], tiles: &mut [bf16], set: InstructionSet) {
        #[cfg(target_arch = "x86_64")]
        if set.multiplies_bf16() {
            // SAFETY: the machine has the instructions of a set that is in use.
            return unsafe { copy_out_with_avx512(row, tiles) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = set;
        copy_out(row, tiles);
    }
}

/// Copies a row to its places in a row of tiles, with zeros after the last.
#[inline(always)]
fn copy_out(row: &[bf16], tiles: &mut [bf16]) {
    let (steps, rest) = row.as_chunks::<STEP>();
    let mut tiles = tiles.chunks_mut(TILE_LEN);
    for (values, tile) in steps.iter().zip(&mut tiles) {
        // Of a known length, which is a move or a few.
        tile[..STEP].copy_from_slice(values);
    }
    if let (false, Some(tile)) = (rest.is_empty(), tiles.next()) {
        tile[rest.len()..STEP].fill(bf16::ZERO);
        tile[..rest.len()].copy_from_slice(rest);
    }
}

/// As [`copy_out`].
///
/// # Safety
/// The machine has AVX-512 with bf16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn copy_out_with_avx512(row: &[bf16], tiles: &mut [bf16]) {
    copy_out(row, tiles);
}

/// Rounds values as [`Roundable::lay_out`] does, all to one slice.
pub(in super::super) fn round(values: &[f32], to: &mut [bf16], set: InstructionSet) {
    assert!(values.len() == to.len());
    let whole = values.len() / STEP * STEP;
    round_steps(&values[..whole], &mut to[..whole], STEP, set);
    let mut last = [bf16::ZERO; STEP];
    round_steps(&values[whole..], &mut last, STEP, set);
    to[whole..].copy_from_slice(&last[..values.len() - whole]);
}

/// A stretch of each row in tiles `[row / 16][step][row % 16][STEP]`, for whole blocks of rows; what is in rows after the last
/// is of no account.
pub(super) fn lay_out<L: Roundable>(
    rows: Rows<'_, L>,
    (offset, length): (usize, usize),
    tiles: &mut Vec<bf16>,
    set: InstructionSet,
) {
    let strip = length.div_ceil(STEP) * TILE_LEN;
    let len = rows.starts.len().next_multiple_of(BLOCK_ROWS) / TILE * strip;
    if tiles.len() < len {
        tiles.resize(len, bf16::ZERO);
    }
    for (row, &start) in rows.starts.iter().enumerate() {
        let tiles = &mut tiles[row / TILE * strip..][..strip];
        L::lay_out(&rows.values[start + offset..][..length], &mut tiles[(row % TILE * STEP).min(strip)..], set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(count: usize, frequency: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * frequency).sin()).collect()
    }

    /// Rows that were rounded before lie in the same tiles as those that are rounded on the way, on every set of the machine.
    #[test]
    fn rounding_before_changes_nothing() {
        for length in [1, 31, 32, 77, 640] {
            let values = wave(3 * length, 0.37);
            let starts = [length, 0, 2 * length];
            for set in InstructionSet::ALL.into_iter().filter(|&set| set <= InstructionSet::of_machine()) {
                let mut rounded_before = vec![bf16::ZERO; values.len()];
                round(&values, &mut rounded_before, set);
                assert!(
                    rounded_before.iter().zip(&values).all(|(&ours, &value)| ours == round_to_bf16(value)),
                    "{set}"
                );
                let (mut tiles, mut from_rounded) = (Vec::new(), Vec::new());
                let stretches = &[(0, length)][..];
                lay_out(Rows { values: &values, starts: &starts, stretches }, (0, length), &mut tiles, set);
                let rows = Rows { values: &rounded_before, starts: &starts, stretches };
                lay_out(rows, (0, length), &mut from_rounded, set);
                assert!(tiles == from_rounded, "{set}, {length}");
            }
        }
    }
}
