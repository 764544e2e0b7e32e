//! The Frechet inception distance (Heusel et al. 2017, "GANs trained by a two time-scale update rule converge to a local Nash
//! equilibrium", equation 6), and what it would be of infinitely many samples (Chong and Forsyth 2020, "Effectively unbiased FID
//! and Inception score and where to find them").

use super::bootstrap::{Bootstrap, Figure, Interval};
use super::features::{Features, check_width};
use super::moments::{FeatureStatistics, Moments};
use crate::training::data::permutation;
use crate::{Error, Result};
use nalgebra::{DMatrix, DVector, SymmetricEigen};
use rayon::prelude::*;

/// Numbers of samples through which a line is laid.
const SAMPLE_SIZES: usize = 15;

/// The most samples of the smallest of them, as in the paper.
const SMALLEST_SAMPLE: usize = 5000;

/// `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`: the squared 2-Wasserstein distance of two normal distributions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FrechetDistance {
    /// The distance, never below 0.
    pub distance: f64,
    /// The part of the means, `|m1 - m2|^2`.
    pub of_means: f64,
    /// Directions in which one of the two does not vary, as far as numbers can tell. Where there are some a covariance has no
    /// inverse; the distance is right all the same, but of few samples it says little.
    pub null_directions: usize,
}

/// What samples are compared to, with what needs to be computed once.
#[derive(Debug, Clone)]
pub struct FrechetReference {
    mean: DVector<f64>,
    trace: f64,
    /// A factor of the covariance, `S = F F^T`, `[width, rank]`: eigenvectors times roots of the eigenvalues that are not null.
    factor: DMatrix<f64>,
}

impl FrechetReference {
    /// Prepares the reference.
    pub fn new(reference: &FeatureStatistics) -> Self {
        let SymmetricEigen { eigenvectors, eigenvalues } = SymmetricEigen::new(reference.covariance.clone());
        let least = null(&eigenvalues);
        let kept: Vec<usize> = (0..eigenvalues.len()).filter(|&i| eigenvalues[i] > least).collect();
        let mut factor = eigenvectors.select_columns(&kept);
        for (mut column, &i) in factor.column_iter_mut().zip(&kept) {
            column *= eigenvalues[i].sqrt();
        }
        Self { mean: reference.mean.clone(), trace: reference.covariance.trace(), factor }
    }

    /// The distance of samples.
    ///
    /// With `S1 = F F^T` the matrix `F^T S2 F` has the eigenvalues of `S1^(1/2) S2 S1^(1/2)` that are not null, so the trace of the
    /// root is the sum of their roots. Taken so, every number is real and nothing is added to a diagonal.
    ///
    /// # Errors
    /// If the samples have another number of features, or values are too large for their products.
    pub fn distance(&self, samples: &FeatureStatistics) -> Result<FrechetDistance> {
        let width = self.mean.len();
        check_width(samples.width(), width)?;
        let product = self.factor.transpose() * (&samples.covariance * &self.factor);
        // The two halves differ by rounding.
        let product = (&product + product.transpose()) * 0.5;
        if product.iter().any(|value| !value.is_finite()) {
            let fix = "they are not of pictures as networks see them; make the statistics anew";
            return Err(Error::invalid("the covariances of the features", "too large to be compared", fix));
        }
        let eigenvalues = match product.is_empty() {
            true => DVector::zeros(0),
            false => product.symmetric_eigenvalues(),
        };
        let least = null(&eigenvalues);
        let root: f64 = eigenvalues.iter().map(|value| value.max(0.0).sqrt()).sum();
        let of_means = (&self.mean - &samples.mean).norm_squared();
        let of_covariances = self.trace + samples.covariance.trace() - 2.0 * root;
        let rank = eigenvalues.iter().filter(|value| **value > least).count();
        Ok(FrechetDistance { distance: (of_means + of_covariances).max(0.0), of_means, null_directions: width - rank })
    }

    /// The distance of samples of which all features are there, with its interval.
    ///
    /// # Errors
    /// As [`Self::distance`], or if there are fewer than two samples.
    pub fn figure(&self, samples: &Features, bootstrap: &Bootstrap) -> Result<Figure> {
        let distance = |features: &Features| Ok(self.distance(&Moments::of(features).statistics()?)?.distance);
        bootstrap.figure(distance(samples)?, samples.len(), |indices| distance(&samples.selected(indices)))
    }

    /// What the distance would be of infinitely many samples: where the line through the distances of subsets, over the inverse of
    /// their sizes, meets zero. There are 15 sizes up to all samples, evenly spaced; they start at a tenth of the samples, at most 5,000
    /// and at least twice the number of features, if there are so many. For each size the samples are shuffled anew and taken apart
    /// into as many subsets as there are, whose mean distance is less of an accident than the one of the paper.
    ///
    /// The interval draws the distances from the line again.
    ///
    /// # Errors
    /// As [`Self::distance`], or if there are fewer than 30 samples.
    pub fn infinity(&self, samples: &Features, bootstrap: &Bootstrap) -> Result<Figure> {
        let count = samples.len();
        if count < 2 * SAMPLE_SIZES {
            let fix = format!("the line to infinitely many is laid through {SAMPLE_SIZES} subsets; give more samples");
            return Err(Error::invalid("the number of samples", count, fix));
        }
        let first = (count / 10).max(2 * samples.width()).min(SMALLEST_SAMPLE).min(count / 2);
        let sizes = (0..SAMPLE_SIZES).map(|i| first + i * (count - first) / (SAMPLE_SIZES - 1)).collect::<Vec<_>>();
        let distance = |(i, &size): (usize, &usize)| {
            let shuffled = permutation(count, bootstrap.seed, i as u64);
            let subsets = shuffled.chunks_exact(size);
            let distance = |subset| Ok(self.distance(&Moments::of(&samples.selected(subset)).statistics()?)?.distance);
            let distances = subsets.map(distance).collect::<Result<Vec<f64>>>()?;
            Ok(distances.iter().sum::<f64>() / distances.len() as f64)
        };
        let distances = sizes.par_iter().enumerate().map(distance).collect::<Result<Vec<_>>>()?;
        let inverse: Vec<f64> = sizes.iter().map(|&size| 1.0 / size as f64).collect();
        let line = Line::through(&inverse, &distances);
        let fitted: Vec<f64> = inverse.iter().map(|&x| line.at_zero + line.slope * x).collect();
        let resampled: Vec<f64> = (0..bootstrap.resamples)
            .map(|resample| {
                let drawn = bootstrap.indices(resample, distances.len());
                let moved = fitted.iter().zip(drawn).map(|(value, i)| value + distances[i] - fitted[i]);
                Line::through(&inverse, &moved.collect::<Vec<_>>()).at_zero
            })
            .collect();
        Ok(Figure { value: line.at_zero, interval: Interval::around(line.at_zero, &resampled) })
    }
}

/// The distance of two sets of statistics.
///
/// # Errors
/// As [`FrechetReference::distance`].
pub fn frechet_distance(samples: &FeatureStatistics, reference: &FeatureStatistics) -> Result<FrechetDistance> {
    FrechetReference::new(reference).distance(samples)
}

/// The line of least squares.
struct Line {
    at_zero: f64,
    slope: f64,
}

impl Line {
    fn through(x: &[f64], y: &[f64]) -> Self {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let (mean_x, mean_y) = (mean(x), mean(y));
        let product: f64 = x.iter().zip(y).map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let square: f64 = x.iter().map(|x| (x - mean_x).powi(2)).sum();
        let slope = product / square;
        Self { at_zero: mean_y - slope * mean_x, slope }
    }
}

/// Eigenvalues up to this are rounding.
fn null(eigenvalues: &DVector<f64>) -> f64 {
    eigenvalues.len() as f64 * f64::EPSILON * eigenvalues.iter().fold(0.0, |max: f64, value| max.max(*value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::moments::feature_statistics;
    use crate::noise::TorchGenerator;

    /// `Q diag(v) Q^T` with `Q = I - 2 u u^T`, which is its own inverse.
    fn turned(variances: &[f64], u: &[f64]) -> Vec<f64> {
        let n = variances.len();
        let length: f64 = u.iter().map(|x| x * x).sum();
        let q = DMatrix::from_fn(n, n, |i, j| f64::from(u8::from(i == j)) - 2.0 * u[i] * u[j] / length);
        (&q * DMatrix::from_diagonal(&DVector::from_row_slice(variances)) * &q).as_slice().to_vec()
    }

    /// Of covariances with the same axes the distance is the sum of `(s1 - s2)^2`, with or without axes that do not vary.
    #[test]
    fn normal_distributions_with_the_same_axes() -> Result<()> {
        let u = [1.0, -2.0, 0.5, 3.0];
        for (first, second, null) in [
            ([1.0, 4.0, 0.25, 9.0], [2.25, 1.0, 0.25, 16.0], 0),
            ([1.0, 4.0, 0.0, 9.0], [2.25, 0.0, 0.0, 16.0], 2),
            ([0.0; 4], [2.25, 0.0, 1.0, 16.0], 4),
        ] {
            let statistics = |mean: f64, v: &[f64; 4]| FeatureStatistics::new(vec![mean; 4], turned(v, &u), None);
            let got = frechet_distance(&statistics(1.0, &first)?, &statistics(-0.5, &second)?)?;
            let of_deviations = first.iter().zip(&second).map(|(a, b): (&f64, &f64)| (a.sqrt() - b.sqrt()).powi(2));
            let want = 4.0 * 2.25 + of_deviations.sum::<f64>();
            assert!((got.distance - want).abs() < 1e-6 * want, "{got:?} {want}");
            assert!((got.of_means - 9.0).abs() < 1e-12);
            assert_eq!(got.null_directions, null);
        }
        Ok(())
    }

    /// In the plane `tr (S1 S2)^(1/2) = (tr S1 S2 + 2 (det S1 det S2)^(1/2))^(1/2)`, whatever the axes.
    #[test]
    fn normal_distributions_of_the_plane() -> Result<()> {
        let (a, b) = ([2.0, 0.7, 0.7, 1.0], [1.0, -0.4, -0.4, 3.0]);
        let statistics = |covariance: &[f64; 4]| FeatureStatistics::new(vec![0.0; 2], covariance.to_vec(), None);
        let product = a.iter().zip(&b).map(|(x, y)| x * y).sum::<f64>();
        let determinant = |m: &[f64; 4]| m[0] * m[3] - m[1] * m[2];
        let root = (product + 2.0 * (determinant(&a) * determinant(&b)).sqrt()).sqrt();
        let want = a[0] + a[3] + b[0] + b[3] - 2.0 * root;
        let got = frechet_distance(&statistics(&a)?, &statistics(&b)?)?.distance;
        assert!((got - want).abs() < 1e-12, "{got} {want}");
        Ok(())
    }

    /// Also where there are fewer samples than features.
    #[test]
    fn a_set_has_no_distance_from_itself() -> Result<()> {
        for count in [5, 400] {
            let features = Features::from_values(8, TorchGenerator::new(2).normal(8 * count))?;
            let statistics = feature_statistics(&features)?;
            let FrechetDistance { distance, null_directions, .. } = frechet_distance(&statistics, &statistics)?;
            assert!(distance < 1e-6, "{distance}");
            assert_eq!(null_directions, if count == 5 { 4 } else { 0 });
        }
        let other = FeatureStatistics::new(vec![0.0; 2], vec![1.0, 0.0, 0.0, 1.0], None)?;
        let mine = FeatureStatistics::new(vec![0.0], vec![1.0], None)?;
        let message = frechet_distance(&mine, &other).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(message.contains("is 2") && message.contains("have 1"), "{message}");
        Ok(())
    }

    /// Samples of the reference's own distribution are at the distance 0, which few samples hide and the line finds.
    #[test]
    fn the_line_finds_the_distance_of_infinitely_many() -> Result<()> {
        let (width, count) = (12, 2000);
        let mut covariance = vec![0.0; width * width];
        (0..width).for_each(|i| covariance[i * width + i] = 1.0);
        let reference = FrechetReference::new(&FeatureStatistics::new(vec![0.0; width], covariance, None)?);
        let bootstrap = Bootstrap { resamples: 100, seed: 4 };
        let (mut biased, mut found) = (0.0, 0.0);
        for seed in 0..8 {
            let samples = Features::from_values(width, TorchGenerator::new(seed).normal(width * count))?;
            let (all, line) = (reference.figure(&samples, &bootstrap)?, reference.infinity(&samples, &bootstrap)?);
            for Figure { value, interval } in [all, line] {
                assert!(interval.is_some_and(|interval| interval.low < value && value < interval.high));
            }
            biased += all.value / 8.0;
            found += line.value / 8.0;
        }
        // The expected distance of n samples is near (d + d (d + 1) / 4) / n.
        let want = (width * (width + 5)) as f64 / (4 * count) as f64;
        assert!((biased / want - 1.0).abs() < 0.2, "{biased} {want}");
        assert!(found.abs() < 0.35 * want, "{found} {want}");
        let few = Features::from_values(width, vec![0.0; width * 29])?;
        assert!(reference.infinity(&few, &bootstrap).is_err());
        Ok(())
    }
}
