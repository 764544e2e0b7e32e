//! Where a task's part of a result goes, and what is added to it.

use super::Real;
use super::add::add_to;
use super::tile::PANEL;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// The rows of a matrix that one task writes; other tasks write other rows or other columns.
#[derive(Debug)]
pub(super) struct Output<'a, T> {
    pub first: *mut T,
    /// The first of the values that are added to complete sums; they lie as those of the matrix do.
    residual: Option<*const T>,
    pub stride: usize,
    pub columns: usize,
    pub rows: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable borrow of numbers and perhaps a shared one of others, which may go to another thread.
unsafe impl<T: Send + Sync> Send for Output<'_, T> {}
// SAFETY: all that a shared `Output` can do to the matrix is `part`, whose caller promises to keep the parts apart; the residual
// is only read.
unsafe impl<T: Send + Sync> Sync for Output<'_, T> {}

/// A new row-major matrix of `count` values, which need not be cleared before they are written.
///
/// # Safety
/// `write` sets every value before it reads it, and sets all of them.
pub(super) unsafe fn matrix<T: Real>(count: usize, columns: usize, write: impl FnOnce(&Output<'_, T>)) -> Vec<T> {
    // SAFETY: as the caller promises.
    unsafe { matrix_plus(count, columns, None, write) }
}

/// The same where products add a residual to what they write.
///
/// # Safety
/// As [`matrix`].
pub(super) unsafe fn matrix_plus<T: Real>(
    count: usize,
    columns: usize,
    residual: Option<&[T]>,
    write: impl FnOnce(&Output<'_, T>),
) -> Vec<T> {
    assert!(residual.is_none_or(|residual| residual.len() == count));
    let mut values = Vec::<T>::with_capacity(count);
    let (rows, residual) = (count / columns.max(1), residual.map(<[T]>::as_ptr));
    write(&Output { first: values.as_mut_ptr(), residual, stride: columns, columns, rows, matrix: PhantomData });
    // SAFETY: that many values have room, and `write` has set them.
    unsafe { values.set_len(count) };
    values
}

impl<'a, T: Real> Output<'a, T> {
    /// All of a row-major matrix.
    pub fn new(values: &'a mut [T], columns: usize) -> Self {
        let rows = values.len() / columns.max(1);
        Self { first: values.as_mut_ptr(), residual: None, stride: columns, columns, rows, matrix: PhantomData }
    }

    /// A block of it.
    ///
    /// # Safety
    /// Nobody reads or writes the block through another `Output` while this one is in use.
    #[inline]
    pub unsafe fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        let offset = if rows.is_empty() || columns.is_empty() { 0 } else { rows.start * self.stride + columns.start };
        // SAFETY: the block's first value is inside the matrix, as was asserted, or the block is empty; the residual is as large.
        let (first, residual) = unsafe { (self.first.add(offset), self.residual.map(|first| first.add(offset))) };
        Self { first, residual, rows: rows.len(), columns: columns.len(), ..*self }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Where its first value is.
    pub fn first(&self) -> *mut T {
        self.first
    }

    /// From a row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// What is to be added to a row, if anything is.
    #[inline]
    pub fn residual(&self, row: usize) -> Option<&'a [T]> {
        assert!(row < self.rows);
        // SAFETY: the residual has this row of `columns` values, and nobody writes it while there is an output.
        self.residual.map(|first| unsafe { std::slice::from_raw_parts(first.add(row * self.stride), self.columns) })
    }

    /// Adds the residual, for who has summed all that the block is the sum of.
    pub fn add_residual(&self) {
        for row in 0..self.rows {
            let Some(residual) = self.residual(row) else { return };
            // SAFETY: `row` is a row of the block, which is this task's own.
            let sums = unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.columns) };
            add_to(residual, sums);
        }
    }

    /// A row, to be set.
    ///
    /// # Safety
    /// All of it is set.
    pub unsafe fn row(&mut self, row: usize) -> &mut [MaybeUninit<T>] {
        assert!(row < self.rows);
        // SAFETY: a row of the block, which is this task's own and borrowed as long as the row is; the caller leaves values there.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride).cast(), self.columns) }
    }

    /// Sets every row.
    #[inline]
    pub fn fill(&mut self, values: &[T]) {
        assert!(values.len() == self.columns);
        for row in 0..self.rows {
            // SAFETY: `row` is a row of the block, which holds `columns` values, as many as `values`; the
            // block is this task's own.
            unsafe {
                let row = self.first.add(row * self.stride);
                match values.first_chunk::<PANEL>() {
                    Some(panel) if values.len() == PANEL => *row.cast::<[T; PANEL]>() = *panel,
                    _ => row.copy_from_nonoverlapping(values.as_ptr(), self.columns),
                }
            }
        }
    }
}

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

    /// For the first row of an output.
    pub fn values(self, out: &Output<'_, T>) -> Vec<T>
    where
        T: Real,
    {
        match self {
            Self::Zero => vec![T::zero(); out.columns],
            Self::Row(row) => row[..out.columns].to_vec(),
            // SAFETY: the output is that of the caller, who has its rows to himself.
            Self::Output => (0..out.columns).map(|column| unsafe { *out.first.add(column) }).collect(),
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
