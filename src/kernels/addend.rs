//! What products begin with, and what is added to them.

use std::ops::Range;

/// What the sums of a product begin with.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start<'a, T> {
    /// With what is in the output.
    Output,
    /// With nothing.
    Zero,
    /// Each row with these values, as many as there are columns: a bias.
    Row(&'a [T]),
}

impl<'a, T> Start<'a, T> {
    /// For the columns from the first of a panel.
    pub fn at(self, column: usize) -> Self {
        match self {
            Self::Row(row) => Self::Row(&row[column..]),
            other => other,
        }
    }
}

/// What is added to a product: a bias, to all rows the same or to those of each image its own, or none; and perhaps a residual,
/// which has the product's shape and is added to the complete sums.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addend<'a, T> {
    bias: &'a [T],
    pub outputs: usize,
    pub residual: Option<&'a [T]>,
}

impl<'a, T: Copy> Addend<'a, T> {
    /// `bias`: `[outputs]`, or `[images, outputs]`.
    pub fn new(bias: &'a [T], outputs: usize) -> Self {
        Self { bias, outputs, residual: None }
    }

    pub fn none(outputs: usize) -> Self {
        Self::new(&[], outputs)
    }

    pub fn with_residual(self, residual: &'a [T]) -> Self {
        Self { residual: Some(residual), ..self }
    }

    pub fn differs_by_image(self) -> bool {
        self.bias.len() > self.outputs
    }

    /// What the sums of an image's rows begin with in these columns.
    pub fn of(self, image: usize, columns: &Range<usize>) -> Start<'a, T> {
        let row = if self.differs_by_image() { image * self.outputs } else { 0 };
        if self.bias.is_empty() { Start::Zero } else { Start::Row(&self.bias[row..][columns.clone()]) }
    }
}
