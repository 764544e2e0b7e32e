//! The kernel inception distance (Binkowski, Sutherland, Arbel and Gretton 2018, "Demystifying MMD GANs", section 4).

use super::bootstrap::{Bootstrap, Figure, Interval};
use super::features::{Features, check_comparable};
use crate::training::data::permutation;
use crate::{Error, Result};
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;
use std::ops::Range;

/// Subsets of samples and reference that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelDistanceOptions {
    /// How many.
    pub subsets: usize,
    /// Pictures of each, if there are so many; else all there are.
    pub subset_size: usize,
    /// From which the subsets follow.
    pub seed: u64,
}

impl Default for KernelDistanceOptions {
    /// A hundred subsets of 1,000 pictures, as the paper's program has them.
    fn default() -> Self {
        Self { subsets: 100, subset_size: 1000, seed: 0 }
    }
}

/// The squared maximum mean discrepancy with the kernel `(x . y / d + 1)^3`, without bias, so it may be below 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KernelDistance {
    /// The mean over the subsets. The interval is that of all samples together.
    pub distance: Figure,
    /// The standard deviation over the subsets.
    pub deviation: f64,
    /// Pictures of each subset.
    pub subset_size: usize,
}

/// The kernel inception distance.
///
/// # Errors
/// If the widths differ, or either has fewer than two pictures; if there are no subsets, or they are of fewer than two.
pub fn kernel_distance(
    samples: &Features,
    reference: &Features,
    options: &KernelDistanceOptions,
    bootstrap: &Bootstrap,
) -> Result<KernelDistance> {
    check_comparable(samples, reference, 2)?;
    let KernelDistanceOptions { subsets, subset_size, seed } = *options;
    if subsets == 0 {
        return Err(Error::invalid("the number of subsets", subsets, "give 1 or more"));
    }
    if subset_size < 2 {
        return Err(Error::invalid("the size of subsets", subset_size, "give 2 or more"));
    }
    let size = subset_size.min(samples.len()).min(reference.len());
    let chosen = |features: &Features, number| features.selected(&permutation(features.len(), seed, number)[..size]);
    let subset = |i: usize| {
        // Samples and reference that are the same pictures must not come in the same order.
        let (x, y) = (chosen(samples, 2 * i as u64), chosen(reference, 2 * i as u64 + 1));
        discrepancy(&x, &y)
    };
    let distances: Vec<f64> = (0..subsets).into_par_iter().map(subset).collect();
    let mean = distances.iter().sum::<f64>() / subsets as f64;
    let variance = distances.iter().map(|distance| (distance - mean).powi(2)).sum::<f64>() / subsets as f64;
    let interval = match bootstrap.resamples {
        0 | 1 => None,
        _ => Interval::around(mean, &resampled(samples, reference, bootstrap)),
    };
    Ok(KernelDistance { distance: Figure { value: mean, interval }, deviation: variance.sqrt(), subset_size: size })
}

/// The unbiased estimate of the squared discrepancy: equation 4 of the paper, with the means of all pairs that are not of a
/// picture with itself.
fn discrepancy(x: &Features, y: &Features) -> f64 {
    let (n, m) = (x.len() as f64, y.len() as f64);
    let within = |z: &Features| sum(z, z) - (0..z.len()).map(|i| of_itself(z, i)).sum::<f64>();
    within(x) / (n * (n - 1.0)) + within(y) / (m * (m - 1.0)) - 2.0 * sum(x, y) / (n * m)
}

/// The kernels of a tile of pairs, `[rows, columns]`.
fn kernels(rows: &DMatrix<f64>, columns: &DMatrix<f64>) -> DMatrix<f64> {
    let width = rows.ncols() as f64;
    (rows * columns).map(|product| (product / width + 1.0).powi(3))
}

/// The kernel of a picture with itself.
fn of_itself(features: &Features, i: usize) -> f64 {
    let row = features.row(i).unwrap_or_default();
    let square: f64 = row.iter().map(|&value| f64::from(value).powi(2)).sum();
    (square / features.width() as f64 + 1.0).powi(3)
}

/// The sum of the kernels of all pairs.
fn sum(x: &Features, y: &Features) -> f64 {
    let columns: Vec<_> = y.tiles().into_iter().map(|tile| y.columns(tile)).collect();
    let of_rows = |tile| {
        let rows = x.rows(tile);
        columns.iter().map(|columns| kernels(&rows, columns).sum()).sum::<f64>()
    };
    x.tiles().into_iter().map(of_rows).sum()
}

/// What resampling changes of the discrepancy: with `w` how often each sample is drawn, pairs of samples count `w_i w_j` times, a
/// sample that is drawn again is another one of the same kernel, and the reference's own pairs stay as they are.
fn resampled(samples: &Features, reference: &Features, bootstrap: &Bootstrap) -> Vec<f64> {
    let (n, m) = (samples.len(), reference.len());
    let mut weights = DMatrix::<f64>::zeros(n, bootstrap.resamples);
    for (resample, mut column) in weights.column_iter_mut().enumerate() {
        bootstrap.indices(resample, n).into_iter().for_each(|i| column[i] += 1.0);
    }
    let of_rows = |tile: Range<usize>| -> Vec<f64> {
        let rows = samples.rows(tile.clone());
        let mut own = DMatrix::zeros(tile.len(), bootstrap.resamples);
        for columns in samples.tiles() {
            let kernels = kernels(&rows, &samples.columns(columns.clone()));
            own += kernels * weights.rows(columns.start, columns.len());
        }
        let mut crossed = DVector::zeros(tile.len());
        for columns in reference.tiles() {
            crossed += kernels(&rows, &reference.columns(columns)).column_sum();
        }
        let alone = DVector::from_iterator(tile.len(), tile.clone().map(|i| of_itself(samples, i)));
        let of_resample = |resample: usize| {
            let weights = weights.column(resample);
            let weights = weights.rows(tile.start, tile.len());
            let within = weights.dot(&own.column(resample)) - weights.dot(&alone);
            within / (n * (n - 1)) as f64 - 2.0 * weights.dot(&crossed) / (n * m) as f64
        };
        (0..bootstrap.resamples).map(of_resample).collect()
    };
    let add = |mut sums: Vec<f64>, more: Vec<f64>| {
        sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        sums
    };
    // In the order of the tiles, so that no sum depends on the threads.
    let parts: Vec<Vec<f64>> = samples.tiles().into_par_iter().map(of_rows).collect();
    parts.into_iter().fold(vec![0.0; bootstrap.resamples], add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchGenerator;

    fn features(seed: u64, count: usize, width: usize, scale: f32) -> Result<Features> {
        let values = TorchGenerator::new(seed).normal(count * width).into_iter().map(|x| scale * x);
        Features::from_values(width, values.collect())
    }

    /// The definition, pair by pair, over several tiles and with lengths of their own.
    #[test]
    fn the_discrepancy_is_its_definition() -> Result<()> {
        let (x, y) = (features(1, 300, 5, 1.0)?, features(2, 270, 5, 1.5)?);
        let kernel = |a: &[f32], b: &[f32]| {
            let product: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            (product / 5.0 + 1.0).powi(3)
        };
        let rows = |z: &Features| (0..z.len()).filter_map(|i| z.row(i).map(<[f32]>::to_vec)).collect::<Vec<_>>();
        let (a, b) = (rows(&x), rows(&y));
        let mean = |a: &[Vec<f32>], b: &[Vec<f32>], same: bool| {
            let pairs = a.iter().enumerate().flat_map(|(i, x)| b.iter().enumerate().map(move |(j, y)| (i, x, j, y)));
            let kernels = pairs.filter(|(i, _, j, _)| !same || i != j).map(|(_, x, _, y)| kernel(x, y));
            kernels.sum::<f64>() / (a.len() * (b.len() - usize::from(same))) as f64
        };
        let want = mean(&a, &a, true) + mean(&b, &b, true) - 2.0 * mean(&a, &b, false);
        assert!((discrepancy(&x, &y) - want).abs() < 1e-12 * want, "{} {want}", discrepancy(&x, &y));
        Ok(())
    }

    /// In one dimension the expectation follows from moments, and the mean of many estimates meets it: there is no bias.
    #[test]
    fn normal_distributions_in_one_dimension() -> Result<()> {
        // (x y + 1)^3 compares the moments of order 1, 2 and 3, counted 3, 3 and once: a, a^2 + 1 and a^3 + 3a of N(a, 1).
        let a = 0.5f64;
        let want = 3.0 * a.powi(2) + 3.0 * a.powi(4) + (a.powi(3) + 3.0 * a).powi(2);
        let runs = 100;
        let estimate = |seed: u64| {
            let shifted = TorchGenerator::new(2 * seed).normal(300).into_iter().map(|x| x + a as f32);
            Ok(discrepancy(&Features::from_values(1, shifted.collect())?, &features(2 * seed + 1, 300, 1, 1.0)?))
        };
        let estimates = (0..runs).map(estimate).collect::<Result<Vec<f64>>>()?;
        let mean = estimates.iter().sum::<f64>() / runs as f64;
        let variance = estimates.iter().map(|estimate| (estimate - mean).powi(2)).sum::<f64>() / runs as f64;
        let error = (variance / runs as f64).sqrt();
        assert!((mean - want).abs() < 4.0 * error && error < 0.1 * want, "{mean} {want} {error}");
        Ok(())
    }

    /// The mean over subsets has the deviation of single ones around it, and its interval around it.
    #[test]
    fn subsets_spread_around_their_mean() -> Result<()> {
        let (x, y) = (features(1, 900, 3, 1.2)?, features(2, 800, 3, 1.0)?);
        let options = KernelDistanceOptions { subsets: 40, subset_size: 200, seed: 2 };
        let got = kernel_distance(&x, &y, &options, &Bootstrap { resamples: 100, seed: 1 })?;
        let all = discrepancy(&x, &y);
        assert!((got.distance.value - all).abs() < 4.0 * got.deviation / 40f64.sqrt() + 1e-3, "{got:?} {all}");
        assert!(got.deviation > 0.0 && got.subset_size == 200);
        let interval = got.distance.interval.ok_or_else(|| Error::invalid("the interval", "none", ""))?;
        // All samples together are surer than a subset of them.
        let reach = (interval.high - interval.low) / 4.0;
        assert!(interval.low < got.distance.value && got.distance.value < interval.high);
        assert!(reach < got.deviation, "{reach} {}", got.deviation);
        Ok(())
    }

    /// What is summed by weights is what resampled sets have.
    #[test]
    fn resampling_by_weights_is_resampling() -> Result<()> {
        let (x, y) = (features(1, 300, 4, 1.0)?, features(2, 50, 4, 1.2)?);
        let bootstrap = Bootstrap { resamples: 3, seed: 8 };
        let by_weights = resampled(&x, &y, &bootstrap);
        let of_reference = discrepancy(&y, &y) + 2.0 * sum(&y, &y) / 2500.0;
        for (resample, got) in by_weights.into_iter().enumerate() {
            let want = discrepancy(&x.selected(&bootstrap.indices(resample, 300)), &y);
            let got = got + of_reference / 2.0;
            assert!((got - want).abs() < 1e-10, "{got} {want}");
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_compared_is_refused() -> Result<()> {
        let x = features(1, 5, 2, 1.0)?;
        let options = KernelDistanceOptions::default();
        let fails = |reference: &Features, options| kernel_distance(&x, reference, &options, &Bootstrap::NONE).is_err();
        assert!(fails(&features(1, 5, 3, 1.0)?, options) && fails(&features(1, 1, 2, 1.0)?, options));
        assert!(fails(&x, KernelDistanceOptions { subsets: 0, ..options }));
        assert!(fails(&x, KernelDistanceOptions { subset_size: 1, ..options }));
        assert_eq!(kernel_distance(&x, &x, &options, &Bootstrap::NONE)?.subset_size, 5);
        Ok(())
    }
}
