//! Tables of vectors.

use super::Weights;
use super::weights::widened;
use crate::{Error, Result};
use candle_core::Tensor;

/// A table that gives a vector for an index.
///
/// Rows that are put into it stand beside it: tables with different ones share its memory, and the result is differentiable in
/// them where they are variables.
#[derive(Debug, Clone)]
pub struct Embedding {
    table: Tensor,
    /// First indices and rows, `[count, width]`; later ones take the place of earlier ones.
    placed: Vec<(usize, Tensor)>,
    rows: usize,
}

impl Embedding {
    /// From `weight` `[rows, width]`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, rows: usize, width: usize) -> Result<Self> {
        Ok(Self { table: widened(weights.tensor("weight", &[rows, width])?)?, placed: Vec::new(), rows })
    }

    /// # Shapes
    /// `indices`: `[...]` of u32; the result is `[..., width]`.
    ///
    /// # Errors
    /// If an index is not below the number of rows.
    pub fn forward(&self, indices: &Tensor) -> Result<Tensor> {
        let mut dims = indices.dims().to_vec();
        dims.push(self.table.dim(1)?);
        let indices = indices.flatten_all()?;
        let vectors = match &self.placed[..] {
            [] => self.table.index_select(&indices, 0)?,
            placed => self.with_placed(&indices.to_vec1()?, placed)?,
        };
        Ok(vectors.reshape(dims)?)
    }

    /// The vectors of indices, some of which may be of rows beside the table: they are taken from the table's vectors of all indices
    /// and those rows together, which are few.
    fn with_placed(&self, indices: &[u32], placed: &[(usize, Tensor)]) -> Result<Tensor> {
        let device = self.table.device();
        let mut of_table = indices.to_vec();
        let mut sources: Vec<u32> = (0..indices.len() as u32).collect();
        let mut parts = Vec::with_capacity(1 + placed.len());
        let mut behind = indices.len();
        for (first, rows) in placed {
            let count = rows.dim(0)?;
            for (i, &index) in indices.iter().enumerate() {
                if let Some(row) = (index as usize).checked_sub(*first).filter(|&row| row < count) {
                    // Any row that is there: nothing is taken of it.
                    of_table[i] = 0;
                    sources[i] = (behind + row) as u32;
                }
            }
            behind += count;
            parts.push(rows.to_dtype(self.table.dtype())?.to_device(device)?);
        }
        parts.insert(0, self.table.index_select(&Tensor::new(of_table, device)?, 0)?);
        Ok(Tensor::cat(&parts, 0)?.index_select(&Tensor::new(sources, device)?, 0)?)
    }

    /// The table with `rows`, `[count, width]`, from index `first` on; it grows if they reach beyond its end.
    ///
    /// # Errors
    /// If they would leave a gap, or have another width.
    pub fn with_rows(&self, first: usize, rows: &Tensor) -> Result<Self> {
        let (count, width) = rows.dims2()?;
        let own = self.table.dim(1)?;
        if first > self.rows {
            let fix = format!("the table has {}; rows follow each other", self.rows);
            return Err(Error::invalid("the first of the rows to put into a table", first, fix));
        }
        if width != own {
            return Err(Error::invalid(
                "the width of rows for a table",
                width,
                format!("those of the table have {own}"),
            ));
        }
        let mut placed = self.placed.clone();
        placed.push((first, rows.clone()));
        Ok(Self { table: self.table.clone(), placed, rows: self.rows.max(first + count) })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The table, `[rows, width]`, without the rows that were put into it.
    pub fn table(&self) -> &Tensor {
        &self.table
    }

    /// The first `count` rows, `[count, width]`.
    ///
    /// # Errors
    /// If there are not so many.
    pub fn first(&self, count: usize) -> Result<Tensor> {
        match &self.placed[..] {
            [] => Ok(self.table.narrow(0, 0, count)?),
            _ => self.forward(&Tensor::arange(0, count as u32, self.table.device())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::WeightSource;
    use candle_core::{Device, Var};

    struct Rows(Tensor);

    impl WeightSource for Rows {
        fn tensor(&self, _: &str, _: &[usize]) -> Result<Tensor> {
            Ok(self.0.clone())
        }

        fn contains(&self, _: &str) -> bool {
            true
        }

        fn device(&self) -> &Device {
            &Device::Cpu
        }
    }

    /// Rows beside a table are what they would be in it, and gradients are how often each is read.
    #[test]
    fn rows_beside_a_table_are_as_if_in_it() -> Result<()> {
        let table = Tensor::arange(0f32, 8.0, &Device::Cpu)?.reshape((4, 2))?;
        let new = Var::from_tensor(&(Tensor::arange(0f32, 6.0, &Device::Cpu)?.reshape((3, 2))? + 100.0)?)?;
        let plain = Embedding::new(&Weights::new(&Rows(table.clone())), 4, 2)?;
        // From the third row on, two beyond its end; then one in their midst.
        let last = Tensor::new(&[[7f32, 9.0]], &Device::Cpu)?;
        let changed = plain.with_rows(2, new.as_tensor())?.with_rows(3, &last)?;
        assert_eq!((plain.rows(), changed.rows()), (4, 5));
        let whole = Tensor::cat(&[&table.narrow(0, 0, 2)?, &new.narrow(0, 0, 1)?, &last, &new.narrow(0, 2, 1)?], 0)?;
        let indices = Tensor::new(&[[4u32, 0, 3], [2, 4, 1]], &Device::Cpu)?;
        let read = changed.forward(&indices)?;
        let wanted = whole.index_select(&indices.flatten_all()?, 0)?.reshape((2, 3, 2))?;
        assert_eq!(read.to_vec3::<f32>()?, wanted.to_vec3::<f32>()?);
        assert_eq!(changed.first(5)?.to_vec2::<f32>()?, whole.to_vec2::<f32>()?);
        let gradients = read.sum_all()?.backward()?;
        let gradient = gradients.get(new.as_tensor()).map(|gradient| gradient.to_vec2::<f32>()).transpose()?;
        assert_eq!(gradient, Some(vec![vec![1.0, 1.0], vec![0.0, 0.0], vec![2.0, 2.0]]));
        // A variable that moves is read where it is then.
        new.set(&new.zeros_like()?)?;
        assert_eq!(changed.forward(&Tensor::new(&[4u32], &Device::Cpu)?)?.to_vec2::<f32>()?, [[0.0, 0.0]]);
        assert!(changed.with_rows(6, &last).is_err() && changed.with_rows(0, &last.t()?).is_err());
        assert!(changed.forward(&Tensor::new(&[5u32], &Device::Cpu)?).is_err());
        Ok(())
    }
}
