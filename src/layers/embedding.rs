//! Tables of vectors.

use super::Weights;
use super::weights::widened;
use crate::Result;
use candle_core::Tensor;

/// A table that gives a vector for an index.
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Tensor,
}

impl Embedding {
    /// From `weight` `[rows, width]`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, rows: usize, width: usize) -> Result<Self> {
        Ok(Self { table: widened(weights.tensor("weight", &[rows, width])?)? })
    }

    /// # Shapes
    /// `indices`: `[...]` of u32; the result is `[..., width]`.
    ///
    /// # Errors
    /// If an index is not below the number of rows.
    pub fn forward(&self, indices: &Tensor) -> Result<Tensor> {
        let mut dims = indices.dims().to_vec();
        dims.push(self.table.dim(1)?);
        Ok(self.table.index_select(&indices.flatten_all()?, 0)?.reshape(dims)?)
    }

    /// The table with `rows`, `[count, width]`, from index `first` on; it grows if they reach beyond its end.
    ///
    /// # Errors
    /// If they would leave a gap, or have another width.
    pub fn with_rows(&self, first: usize, rows: &Tensor) -> Result<Self> {
        let (count, behind) = (self.table.dim(0)?, first + rows.dim(0)?);
        let rows = rows.to_dtype(self.table.dtype())?.to_device(self.table.device())?;
        let mut parts = vec![self.table.narrow(0, 0, first)?, rows];
        if behind < count {
            parts.push(self.table.narrow(0, behind, count - behind)?);
        }
        Ok(Self { table: Tensor::cat(&parts, 0)? })
    }

    /// The number of rows.
    ///
    /// # Errors
    /// Never, for a table that was made from weights.
    pub fn rows(&self) -> Result<usize> {
        Ok(self.table.dim(0)?)
    }

    /// The first `count` rows, `[count, width]`.
    ///
    /// # Errors
    /// If there are not so many.
    pub fn first(&self, count: usize) -> Result<Tensor> {
        Ok(self.table.narrow(0, 0, count)?)
    }
}
