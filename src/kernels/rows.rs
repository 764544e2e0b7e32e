//! The left factor of a product.

use std::ops::Range;

/// Rows of a left factor that lie in one slice: row `r` is the stretches `starts[r] + offset..` of `stretches`,
/// each with its length, one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a, T> {
    pub values: &'a [T],
    pub starts: &'a [usize],
    pub stretches: &'a [(usize, usize)],
}

impl<'a, T: Copy> Rows<'a, T> {
    /// The length of a row, which is that of the sums.
    pub fn depth(&self) -> usize {
        self.stretches.iter().map(|&(_, length)| length).sum()
    }

    /// Some of them.
    pub fn some(self, rows: Range<usize>) -> Self {
        Self { starts: &self.starts[rows], ..self }
    }
}
