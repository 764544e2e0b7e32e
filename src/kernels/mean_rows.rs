//! Means of groups of rows.

use super::simd::multiversion;
use super::{Kernel, Needed, Real, apply_1, copy_to, written, zeros};
use candle_core::{DType, Result, Tensor};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

/// Groups that one task computes.
const TASK_GROUPS: usize = 64;

/// For each image of a batch as many groups of its rows. A row may be in any number of groups.
#[derive(Debug, Clone)]
pub(crate) struct RowGroups {
    groups: Arc<Vec<Vec<Vec<u32>>>>,
}

impl RowGroups {
    /// The groups of each image, by their rows' numbers.
    ///
    /// # Errors
    /// If images have different numbers of groups, or a group is empty.
    pub fn new(groups: Vec<Vec<Vec<u32>>>) -> Result<Self> {
        let count = groups.first().map_or(0, Vec::len);
        if groups.iter().any(|image| image.len() != count || image.iter().any(Vec::is_empty)) {
            candle_core::bail!("{}: images have different numbers of groups, or a group is empty", MeanRows::NAME);
        }
        Ok(Self { groups: Arc::new(groups) })
    }

    /// How many an image has.
    fn count(&self) -> usize {
        self.groups.first().map_or(0, Vec::len)
    }

    fn fit(&self, batch: usize, rows: usize) -> bool {
        self.groups.len() == batch && self.groups.iter().flatten().flatten().all(|&row| (row as usize) < rows)
    }
}

/// The mean of the rows of each group.
///
/// # Shapes
/// `x`: `[batch, rows, channels]`; the result is `[batch, groups, channels]`.
///
/// # Errors
/// If there are not so many rows, or the element type is neither f32 nor f64.
pub(crate) fn mean_rows(x: &Tensor, groups: &RowGroups) -> Result<Tensor> {
    apply_1(MeanRows(groups.clone()), x)
}

/// What [`mean_rows`] computes, in candle's own operations.
///
/// # Errors
/// If there are not so many rows.
pub(crate) fn mean_rows_definition(x: &Tensor, groups: &RowGroups) -> Result<Tensor> {
    let (device, count) = (x.device(), groups.count());
    let images = groups.groups.iter().enumerate().map(|(image, groups)| {
        let rows: Vec<u32> = groups.iter().flatten().copied().collect();
        let of_rows = groups.iter().enumerate().flat_map(|(group, rows)| vec![group as u32; rows.len()]);
        let of_rows: Vec<u32> = of_rows.collect();
        let shares: Vec<f32> = groups.iter().map(|rows| 1.0 / rows.len() as f32).collect();
        let rows = x.get(image)?.contiguous()?.index_select(&Tensor::new(rows, device)?, 0)?;
        // Sums of thousands of values lose what is added to them in half precision.
        let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let sums = Tensor::zeros((count, x.dim(2)?), dtype, device)?;
        let sums = sums.index_add(&Tensor::new(of_rows, device)?, &rows.to_dtype(dtype)?, 0)?;
        let shares = Tensor::from_vec(shares, (count, 1), device)?.to_dtype(dtype)?;
        sums.broadcast_mul(&shares)?.to_dtype(x.dtype())
    });
    Tensor::stack(&images.collect::<Result<Vec<_>>>()?, 0)
}

struct MeanRows(RowGroups);

impl Kernel<1> for MeanRows {
    const NAME: &'static str = "mean-of-rows";

    fn shape(&self, [x]: [&[usize]; 1]) -> Option<Vec<usize>> {
        let &[batch, rows, channels] = x else { return None };
        (channels > 0 && self.0.fit(batch, rows)).then(|| vec![batch, self.0.count(), channels])
    }

    fn forward<T: Real>(&self, [x]: [&[T]; 1], [shape]: [&[usize]; 1]) -> Vec<T> {
        let (rows, channels, count) = (shape[1], shape[2], self.0.count());
        let write = |at: Range<usize>, out: &mut [MaybeUninit<T>]| {
            let first = at.start / channels;
            for (i, mean) in out.chunks_exact_mut(channels).enumerate() {
                let (image, group) = ((first + i) / count, (first + i) % count);
                let of_image = &x[image * rows * channels..][..rows * channels];
                mean_of(of_image, &self.0.groups[image][group], mean);
            }
        };
        // SAFETY: a part is of whole groups, and `mean_of` sets all of each.
        unsafe { written(self.0.groups.len() * count * channels, TASK_GROUPS * channels, write) }
    }

    fn backward<T: Real>(
        &self,
        [x]: [&[T]; 1],
        [shape]: [&[usize]; 1],
        _: &[T],
        grad: &[T],
        _: Needed<1>,
    ) -> [Vec<T>; 1] {
        let (rows, channels) = (shape[1], shape[2]);
        let mut grad_x = zeros::<T>(x.len());
        let groups =
            self.0.groups.iter().enumerate().flat_map(|(image, groups)| groups.iter().map(move |rows| (image, rows)));
        for ((image, group), grad) in groups.zip(grad.chunks_exact(channels)) {
            let share = T::from_f64(1.0 / group.len() as f64);
            for &row in group {
                let of_row = &mut grad_x[(image * rows + row as usize) * channels..][..channels];
                of_row.iter_mut().zip(grad).for_each(|(to, &grad)| *to += share * grad);
            }
        }
        [grad_x]
    }
}

multiversion! {
    /// Sets `mean` to that of some rows, of as many values each.
    fn mean_of<T: Real>(x: &[T], rows: &[u32], mean: &mut [MaybeUninit<T>]) {
        let row = |row: u32| &x[row as usize * mean.len()..][..mean.len()];
        match rows {
            [only] => copy_to(mean, row(*only)),
            [first, others @ ..] => {
                let mut sums = row(*first).to_vec();
                for &other in others {
                    sums.iter_mut().zip(row(other)).for_each(|(sum, &value)| *sum += value);
                }
                let count = T::from_f64(rows.len() as f64);
                sums.iter_mut().for_each(|sum| *sum /= count);
                copy_to(mean, &sums);
            }
            // No group is empty.
            [] => mean.iter_mut().for_each(|mean| _ = mean.write(T::zero())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::{NoiseSource, TorchNoise};
    use candle_core::{Device, Var};

    #[test]
    fn means_and_their_gradients_are_those_of_the_definition() -> crate::Result<()> {
        let groups =
            RowGroups::new(vec![vec![vec![0, 3], vec![1], vec![2, 4, 0]], vec![vec![4], vec![4, 4], vec![1, 2]]])?;
        let (x, weight) = (TorchNoise::shared(1).normal(&[2, 5, 20])?, TorchNoise::shared(2).normal(&[2, 3, 20])?);
        let of = |means: fn(&Tensor, &RowGroups) -> Result<Tensor>| -> Result<[Vec<f32>; 2]> {
            let x = Var::from_tensor(&x)?;
            let out = means(&x, &groups)?;
            let gradients = (&out * &weight)?.sum_all()?.backward()?;
            let gradient = gradients.get(&x).ok_or_else(|| candle_core::Error::Msg("no gradient".into()))?;
            Ok([out.flatten_all()?.to_vec1()?, gradient.flatten_all()?.to_vec1()?])
        };
        for (kernel, defined) in of(mean_rows)?.iter().flatten().zip(of(mean_rows_definition)?.iter().flatten()) {
            assert!((kernel - defined).abs() < 1e-6, "{kernel} {defined}: sums of three numbers of size 1");
        }
        // Means of many values are right in half precision too.
        let many = RowGroups::new(vec![vec![(0..3000).collect()]])?;
        let ones = Tensor::ones((1, 3000, 2), DType::F16, &Device::Cpu)?;
        assert_eq!(
            mean_rows_definition(&ones, &many)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?,
            [1.0; 2]
        );
        assert!(mean_rows(&Tensor::zeros((2, 4, 3), candle_core::DType::F32, &Device::Cpu)?, &groups).is_err());
        assert!(RowGroups::new(vec![vec![vec![0]], vec![vec![0], vec![1]]]).is_err());
        assert!(RowGroups::new(vec![vec![Vec::new()]]).is_err());
        Ok(())
    }
}
