//! Tiles, and the right factor's layout in them.

use super::super::panel_row::PANEL;
use half::bf16;
use rayon::prelude::*;

/// Values of the sum in a tile.
pub(in super::super) const STEP: usize = 32;

/// Rows or columns of a tile.
pub(super) const TILE: usize = PANEL;

/// Values of a tile.
pub(super) const TILE_LEN: usize = TILE * STEP;

/// A matrix laid out for the product: panels of sixteen columns, in each the steps of the sum, in each sixteen lines of a
/// pair of values for each column: `[column / 16][k / 32][k % 32 / 2][column % 16][k % 2]`, zeros after the last of each.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Pairs<'a>(&'a [bf16]);

impl<'a> Pairs<'a> {
    /// Of values that [`pack`] laid out, from the first of a panel or of a step.
    pub fn new(values: &'a [bf16]) -> Self {
        Self(values)
    }

    /// From a value on.
    pub fn from(self, start: usize) -> Self {
        Self(&self.0[start..])
    }

    pub fn len(self) -> usize {
        self.0.len()
    }

    pub(super) fn values(self) -> &'a [bf16] {
        self.0
    }

    /// One value of a matrix of so many rows.
    pub fn at(self, depth: usize, k: usize, column: usize) -> bf16 {
        self.0[index(depth, k, column)]
    }
}

/// Where the value of a row and a column is.
#[inline(always)]
pub(in super::super) fn index(depth: usize, k: usize, column: usize) -> usize {
    let panel = column / TILE * (depth.next_multiple_of(STEP) * TILE);
    panel + k / 2 * (2 * TILE) + column % TILE * 2 + k % 2
}

/// How many values a packed matrix has.
pub(in super::super) fn packed_len(depth: usize, columns: usize) -> usize {
    columns.div_ceil(TILE) * depth.div_ceil(STEP) * TILE_LEN
}

/// Lays a matrix out; `at(k, column)` gives its values.
pub(in super::super) fn pack(depth: usize, columns: usize, at: impl Fn(usize, usize) -> bf16 + Sync) -> Vec<bf16> {
    let mut pairs = vec![bf16::ZERO; packed_len(depth, columns)];
    let panel_len = depth.div_ceil(STEP) * TILE_LEN;
    pairs.par_chunks_mut(panel_len.max(1)).enumerate().for_each(|(panel, values)| {
        let first = panel * TILE;
        let width = TILE.min(columns - first);
        for (line, values) in values.chunks_exact_mut(2 * TILE).enumerate().take(depth.div_ceil(2)) {
            let next = 2 * line + 1 < depth;
            for j in 0..width {
                values[2 * j] = at(2 * line, first + j);
                values[2 * j + 1] = if next { at(2 * line + 1, first + j) } else { bf16::ZERO };
            }
        }
    });
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_values_are_where_their_index_says_and_the_rest_are_zeros() {
        for (depth, columns) in [(1, 1), (32, 16), (33, 17), (40, 48), (77, 5)] {
            let value = |k: usize, column: usize| bf16::from_f32((1 + k * columns + column) as f32);
            let packed = pack(depth, columns, value);
            let mut rest = packed.clone();
            for k in 0..depth {
                for column in 0..columns {
                    let index = index(depth, k, column);
                    assert_eq!(packed[index], value(k, column), "{depth} x {columns}: {k}, {column}");
                    rest[index] = bf16::ZERO;
                }
            }
            assert!(packed.len() == packed_len(depth, columns) && rest.iter().all(|&value| value == bf16::ZERO));
        }
    }
}
