//! Where results are written. An [`Output`] is to a block of a matrix what a mutable slice is to some values: it splits into
//! blocks for tasks.

use super::Real;
use super::panel_row::PANEL;
use super::simd::multiversion;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

/// A block of a matrix, and what is added to it once its sums are complete.
///
/// While it lives, nobody else reads or writes the block's values: it is made of a mutable borrow of a whole matrix, and from
/// it come only blocks that borrow it ([`Self::part`]) or that share nothing ([`Self::split`]). So a task that has one needs to
/// know nothing of the others. [`Matrix`] is the exception, whose user says which blocks share nothing.
#[derive(Debug)]
pub(super) struct Output<'a, T> {
    /// The block has `rows` rows of `columns` values from here on, `stride` apart, all within one allocation.
    first: *mut T,
    stride: usize,
    columns: usize,
    rows: usize,
    /// The values that are added to complete sums, from the block's first on; they lie as those of the matrix do.
    residual: Option<&'a [T]>,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable borrow of numbers and perhaps a shared one of others, which may go to another thread.
unsafe impl<T: Send + Sync> Send for Output<'_, T> {}

/// A new row-major matrix, whose values need not be cleared before they are written; products add the residual, if there is
/// one, to what they write.
///
/// # Safety
/// `write` sets every value before it reads it, and sets all of them.
pub(super) unsafe fn matrix<T: Real>(
    rows: usize,
    columns: usize,
    residual: Option<&[T]>,
    write: impl FnOnce(Output<'_, T>),
) -> Vec<T> {
    let count = rows * columns;
    assert!(residual.is_none_or(|residual| residual.len() == count));
    let mut values = Vec::<T>::with_capacity(count);
    write(Output { first: values.as_mut_ptr(), stride: columns, columns, rows, residual, matrix: PhantomData });
    // SAFETY: that many values have room, and `write` has set them.
    unsafe { values.set_len(count) };
    values
}

impl<'a, T: Real> Output<'a, T> {
    /// All of a row-major matrix.
    pub fn new(values: &'a mut [T], columns: usize) -> Self {
        let rows = values.len() / columns.max(1);
        Self { first: values.as_mut_ptr(), stride: columns, columns, rows, residual: None, matrix: PhantomData }
    }

    /// A block of it.
    #[inline]
    pub fn part(&mut self, rows: Range<usize>, columns: Range<usize>) -> Output<'_, T> {
        // SAFETY: `self` is borrowed as long as the block is in use.
        unsafe { self.block(rows, columns) }
    }

    /// The blocks where ranges of rows meet ranges of columns, each for a task: those of the first rows first. Ranges of either
    /// kind are in ascending order and do not overlap.
    pub fn split(self, rows: &[Range<usize>], columns: &[Range<usize>]) -> Vec<Self> {
        assert!(rows.is_sorted_by(|a, b| a.end <= b.start) && columns.is_sorted_by(|a, b| a.end <= b.start));
        let blocks_of = |rows: &Range<usize>| {
            let rows = rows.clone();
            // SAFETY: of two blocks either the rows or the columns are different, and `self` is used no more.
            columns.iter().map(|columns| unsafe { self.block(rows.clone(), columns.clone()) }).collect::<Vec<_>>()
        };
        rows.iter().flat_map(blocks_of).collect()
    }

    /// A block of it.
    ///
    /// # Safety
    /// While it is in use, nobody reads or writes its values through another `Output`.
    #[inline]
    unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(columns.start <= columns.end && columns.end <= self.columns);
        let offset = if rows.is_empty() || columns.is_empty() { 0 } else { rows.start * self.stride + columns.start };
        // SAFETY: the block's first value is inside this one, as was asserted, or the block is empty.
        let first = unsafe { self.first.add(offset) };
        let residual = self.residual.map(|residual| &residual[offset..]);
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

    /// Where its first value is. The pointer is good for all values of the block, until the block is used in another way.
    pub fn first(&mut self) -> *mut T {
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
        self.residual.map(|residual| &residual[row * self.stride..][..self.columns])
    }

    /// Adds the residual, for who has summed all that the block is the sum of.
    pub fn add_residual(&mut self) {
        for row in 0..self.rows {
            let Some(residual) = self.residual(row) else { return };
            add_to(residual, self.row(row));
        }
    }

    /// A row, which has been set.
    #[inline]
    pub fn row(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: a row of the block, which is borrowed as long as the row is. Where the matrix began with no values, whoever made
        // it has promised that they are set before they are read.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.columns) }
    }

    /// A row, to be set.
    ///
    /// # Safety
    /// All of it is set.
    pub unsafe fn unset_row(&mut self, row: usize) -> &mut [MaybeUninit<T>] {
        assert!(row < self.rows);
        // SAFETY: a row of the block, which is borrowed as long as the row is; the caller leaves values there.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride).cast(), self.columns) }
    }

    /// Sets every row.
    #[inline]
    pub fn fill(&mut self, values: &[T]) {
        assert!(values.len() == self.columns);
        for row in 0..self.rows {
            // SAFETY: a row of the block, which has `columns` values, as many as `values`.
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

/// A matrix that threads take blocks of, where the blocks of a task are no ranges of rows and columns.
#[derive(Debug)]
pub(super) struct Matrix<'a, T>(Output<'a, T>);

// SAFETY: all that a shared one can do is `block`, which touches no value of the matrix.
unsafe impl<T: Send + Sync> Sync for Matrix<'_, T> {}

impl<'a, T: Real> Matrix<'a, T> {
    /// Of all of an output.
    pub fn new(output: Output<'a, T>) -> Self {
        Self(output)
    }

    /// A block of it.
    ///
    /// # Safety
    /// While it is in use, no other block has a value of it, on any thread.
    #[inline]
    pub unsafe fn block(&self, rows: Range<usize>, columns: Range<usize>) -> Output<'_, T> {
        // SAFETY: as the caller promises; the output that the matrix was made of is used for nothing else.
        unsafe { self.0.block(rows, columns) }
    }
}

multiversion! {
    fn add_to<T: Real>(values: &[T], sums: &mut [T]) {
        for (sum, &value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_where_rows_and_columns_meet() {
        let residual: Vec<f32> = (0..30).map(|i| i as f32).collect();
        // SAFETY: the blocks cover the matrix, and each is filled.
        let values = unsafe {
            matrix(5, 6, Some(&residual), |whole| {
                for (i, mut block) in whole.split(&[0..2, 2..2, 2..5], &[0..1, 1..6]).into_iter().enumerate() {
                    block.fill(&vec![100.0 * i as f32; block.columns()]);
                    block.add_residual();
                }
            })
        };
        for (i, &value) in values.iter().enumerate() {
            let (row, column) = (i / 6, i % 6);
            let block = if row < 2 { 0 } else { 4 } + usize::from(column > 0);
            assert_eq!(value, 100.0 * block as f32 + i as f32);
        }
    }

    #[test]
    #[should_panic(expected = "assertion")]
    fn blocks_that_share_rows_are_refused() {
        Output::new(&mut [0f32; 12], 3).split(&[0..2, 1..4], &[0..1, 1..3]);
    }

    #[test]
    #[should_panic(expected = "assertion")]
    fn blocks_beyond_the_matrix_are_refused() {
        Output::new(&mut [0f32; 12], 3).split(&[0..2, 2..5], &[0..1, 1..3]);
    }
}
