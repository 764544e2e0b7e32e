//! The largest value of each row.

use super::operation::{contiguous, for_real, on_cpu};
use super::simd::multiversion;
use super::{Real, is_dry_run};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

const NAME: &str = "largest-of-rows";

/// Rows that one task looks at.
const TASK_ROWS: usize = 64;

/// Values that are compared at a time.
const LANES: usize = 32;

/// The column of the largest value of each row, the first of equal ones, and that value. In a dry run it is the first column.
///
/// # Shapes
/// `x`: `[rows, columns]`.
///
/// # Errors
/// If it has another rank or no columns, or the element type is neither f32 nor f64.
pub(crate) fn largest_of_rows(x: &Tensor) -> Result<(Vec<usize>, Vec<f32>)> {
    let (rows, columns) = x.dims2()?;
    if columns == 0 {
        candle_core::bail!("{NAME}: there are no columns");
    }
    if is_dry_run() {
        return Ok((vec![0; rows], vec![0.0; rows]));
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    for_real!(on_cpu(&storage, NAME)?, NAME, T => {
        let values = contiguous::<T>(on_cpu(&storage, NAME)?, layout, NAME)?;
        Ok(values.par_chunks_exact(columns).with_min_len(TASK_ROWS).map(largest).unzip())
    })
}

multiversion! {
    fn largest<T: Real>(row: &[T]) -> (usize, f32) {
        let larger = |a: T, b: T| if b > a { b } else { a };
        // Of lanes, which the compiler puts into registers.
        let mut lanes = [T::NEG_INFINITY; LANES];
        let (whole, rest) = row.as_chunks::<LANES>();
        for values in whole {
            lanes.iter_mut().zip(values).for_each(|(lane, &value)| *lane = larger(*lane, value));
        }
        let most = lanes.into_iter().chain(rest.iter().copied()).fold(T::NEG_INFINITY, larger);
        // Where nothing is a number, it is the first column.
        (row.iter().position(|&value| value == most).unwrap_or(0), most.to_f64() as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_first_of_the_largest_is_found() -> Result<()> {
        let x = Tensor::new(&[[1.0f32, 3.0, 3.0], [-1.0, -2.0, -3.0], [0.0, f32::NEG_INFINITY, 7.5]], &Device::Cpu)?;
        assert_eq!(largest_of_rows(&x)?, (vec![1, 0, 2], vec![3.0, -1.0, 7.5]));
        for columns in [31, 32, 77] {
            let value = |i: usize| ((i * 37) % 61) as f32;
            let rows: Vec<f32> = (0..5 * columns).map(value).collect();
            let (found, most) = largest_of_rows(&Tensor::from_vec(rows.clone(), (5, columns), &Device::Cpu)?)?;
            for ((row, found), most) in rows.chunks(columns).zip(found).zip(most) {
                assert!(row.iter().all(|&value| value <= most) && row[found] == most);
                assert!(row[..found].iter().all(|&value| value < most), "the first of equal ones");
            }
        }
        assert!(largest_of_rows(&Tensor::zeros((2, 0), candle_core::DType::F32, &Device::Cpu)?).is_err());
        Ok(())
    }
}
