//! The largest value of each row, and its length.

use super::operation::{contiguous, for_real, on_cpu};
use super::simd::multiversion;
use super::{Real, is_dry_run};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

const NAME: &str = "rows";

/// Rows that one task looks at.
const TASK_ROWS: usize = 64;

/// Values that are compared at a time.
const LANES: usize = 32;

/// The column of the largest value of each row, the first of equal ones, and that value: of `x` times a factor for each column. In a
/// dry run it is the first column.
///
/// # Shapes
/// `x`: `[rows, columns]`; `factors`: one for each column.
///
/// # Errors
/// If `x` has another rank, there are no columns or not as many factors, or the element type is neither f32 nor f64.
pub(crate) fn largest_of_rows(x: &Tensor, factors: &[f32]) -> Result<(Vec<usize>, Vec<f32>)> {
    let (rows, columns) = x.dims2()?;
    if columns == 0 || factors.len() != columns {
        candle_core::bail!("{NAME}: there are {columns} columns and {} factors", factors.len());
    }
    if is_dry_run() {
        return Ok((vec![0; rows], vec![0.0; rows]));
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    for_real!(on_cpu(&storage, NAME)?, NAME, T => {
        let values = contiguous::<T>(on_cpu(&storage, NAME)?, layout, NAME)?;
        let factors: Vec<T> = factors.iter().map(|&factor| T::from_f32(factor)).collect();
        let of_row = |row| largest(row, &factors);
        Ok(values.par_chunks_exact(columns).with_min_len(TASK_ROWS).map(of_row).unzip())
    })
}

/// The length of each row as a vector; 0 in a dry run.
///
/// # Shapes
/// `x`: `[..., width]`.
///
/// # Errors
/// If the element type is neither f32 nor f64.
pub(crate) fn lengths_of_rows(x: &Tensor) -> Result<Vec<f32>> {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    if is_dry_run() {
        return Ok(vec![0.0; x.elem_count() / width]);
    }
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    for_real!(on_cpu(&storage, NAME)?, NAME, T => {
        let values = contiguous::<T>(on_cpu(&storage, NAME)?, layout, NAME)?;
        Ok(values.par_chunks_exact(width).with_min_len(TASK_ROWS).map(|row| length(row) as f32).collect())
    })
}

multiversion! {
    fn largest<T: Real>(row: &[T], factors: &[T]) -> (usize, f32) {
        let larger = |a: T, b: T| if b > a { b } else { a };
        // Of lanes, which the compiler puts into registers.
        let mut lanes = [T::NEG_INFINITY; LANES];
        let ((whole, rest), (of_whole, of_rest)) = (row.as_chunks::<LANES>(), factors.as_chunks::<LANES>());
        for (values, factors) in whole.iter().zip(of_whole) {
            for (lane, (&value, &factor)) in lanes.iter_mut().zip(values.iter().zip(factors)) {
                *lane = larger(*lane, value * factor);
            }
        }
        let rest = rest.iter().zip(of_rest).map(|(&value, &factor)| value * factor);
        let most = lanes.into_iter().chain(rest).fold(T::NEG_INFINITY, larger);
        // Where nothing is a number, it is the first column.
        let column = row.iter().zip(factors).position(|(&value, &factor)| value * factor == most);
        (column.unwrap_or(0), most.to_f64() as f32)
    }
}

multiversion! {
    fn length<T: Real>(row: &[T]) -> f64 {
        row.iter().map(|&value| value.to_f64() * value.to_f64()).sum::<f64>().sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_first_of_the_largest_is_found() -> Result<()> {
        let x = Tensor::new(&[[1.0f32, 3.0, 3.0], [-1.0, -2.0, -3.0], [0.0, f32::NEG_INFINITY, 7.5]], &Device::Cpu)?;
        assert_eq!(largest_of_rows(&x, &[1.0; 3])?, (vec![1, 0, 2], vec![3.0, -1.0, 7.5]));
        assert_eq!(largest_of_rows(&x, &[1.0, 0.5, 0.25])?, (vec![1, 2, 2], vec![1.5, -0.75, 1.875]));
        assert_eq!(lengths_of_rows(&x.narrow(0, 0, 2)?)?, [19f32.sqrt(), 14f32.sqrt()]);
        for columns in [31, 32, 77] {
            let value = |i: usize| ((i * 37) % 61) as f32;
            let rows: Vec<f32> = (0..5 * columns).map(value).collect();
            let x = Tensor::from_vec(rows.clone(), (5, columns), &Device::Cpu)?;
            let (found, most) = largest_of_rows(&x, &vec![1.0; columns])?;
            for ((row, found), most) in rows.chunks(columns).zip(found).zip(most) {
                assert!(row.iter().all(|&value| value <= most) && row[found] == most);
                assert!(row[..found].iter().all(|&value| value < most), "the first of equal ones");
            }
        }
        assert!(largest_of_rows(&Tensor::zeros((2, 0), candle_core::DType::F32, &Device::Cpu)?, &[]).is_err());
        Ok(())
    }
}
