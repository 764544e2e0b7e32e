//! Mean and covariance of features, of any number of pictures in bounded memory.

use super::features::{Features, check_count, check_width};
use crate::{Error, Result};
use nalgebra::{DMatrix, DVector};

/// Pictures whose products are summed at once.
const BLOCK: usize = 1024;

/// How far a covariance may be from symmetric, as a share of its largest value.
const ASYMMETRY: f64 = 1e-6;

/// Mean and covariance of features.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureStatistics {
    pub(super) mean: DVector<f64>,
    pub(super) covariance: DMatrix<f64>,
    count: Option<usize>,
}

impl FeatureStatistics {
    /// From their values.
    ///
    /// # Shapes
    /// `mean`: `[width]`; `covariance`: `[width, width]`, symmetric. `count` says of how many pictures, if it is known.
    ///
    /// # Errors
    /// If the shapes do not fit each other, a value is not finite, or the covariance is not symmetric.
    pub fn new(mean: Vec<f64>, covariance: Vec<f64>, count: Option<usize>) -> Result<Self> {
        let width = mean.len();
        if width == 0 || covariance.len() != width * width {
            let fix = format!("a mean of {width} features has a covariance of {width} by {width}");
            return Err(Error::invalid("the covariance", format!("{} values", covariance.len()), fix));
        }
        if mean.iter().chain(&covariance).any(|value| !value.is_finite()) {
            return Err(Error::invalid("the statistics of features", "not finite", "make them anew"));
        }
        let covariance = DMatrix::from_vec(width, width, covariance);
        let asymmetry = (&covariance - covariance.transpose()).amax();
        if asymmetry > ASYMMETRY * covariance.amax() {
            return Err(Error::invalid("the covariance", "not symmetric", "it is of something else; make it anew"));
        }
        Ok(Self { mean: DVector::from_vec(mean), covariance, count })
    }

    /// How many features a picture has.
    pub fn width(&self) -> usize {
        self.mean.len()
    }

    /// The mean, `[width]`.
    pub fn mean(&self) -> &[f64] {
        self.mean.as_slice()
    }

    /// The covariance with the divisor `n - 1`, `[width, width]`.
    pub fn covariance(&self) -> &[f64] {
        self.covariance.as_slice()
    }

    /// Of how many pictures they are, if that is known.
    pub fn count(&self) -> Option<usize> {
        self.count
    }

    /// Whether features of this width can be compared to them.
    ///
    /// # Errors
    /// If the width is another: they are of another network of features.
    pub fn check_width(&self, width: usize) -> Result<()> {
        check_width(width, self.width())
    }

    /// Whether there were fewer pictures than a covariance of this width needs to have an inverse.
    pub fn too_few(&self) -> bool {
        self.count.is_some_and(|count| count <= self.width())
    }
}

/// Sums from which mean and covariance follow; their size does not depend on the number of pictures.
#[derive(Debug, Clone)]
pub struct Moments {
    count: usize,
    mean: DVector<f64>,
    /// The sum of the products of distances from the mean.
    scatter: DMatrix<f64>,
}

impl Moments {
    /// Those of no picture yet.
    pub fn new(width: usize) -> Self {
        Self { count: 0, mean: DVector::zeros(width), scatter: DMatrix::zeros(width, width) }
    }

    /// Those of some pictures.
    pub fn of(features: &Features) -> Self {
        let mut moments = Self::new(features.width());
        moments.add(features);
        moments
    }

    /// How many pictures were added.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds pictures, by the update of Chan, Golub and LeVeque 1979, which loses nothing where means are large.
    pub fn add(&mut self, features: &Features) {
        for start in (0..features.len()).step_by(BLOCK) {
            let end = (start + BLOCK).min(features.len());
            self.add_block(features.columns(start..end));
        }
    }

    fn add_block(&mut self, mut pictures: DMatrix<f64>) {
        let (before, added) = (self.count as f64, pictures.ncols() as f64);
        let mean = pictures.column_mean();
        pictures.column_iter_mut().for_each(|mut picture| picture -= &mean);
        self.scatter.gemm(1.0, &pictures, &pictures.transpose(), 1.0);
        let apart = mean - &self.mean;
        self.scatter.ger(before * added / (before + added), &apart, &apart, 1.0);
        self.mean.axpy(added / (before + added), &apart, 1.0);
        self.count += pictures.ncols();
    }

    /// Mean and covariance.
    ///
    /// # Errors
    /// If there are fewer than two pictures, which have no covariance.
    pub fn statistics(&self) -> Result<FeatureStatistics> {
        if self.count < 2 {
            let fix = "a covariance needs two pictures at least, and many more to be of use";
            return Err(Error::invalid("the number of pictures", self.count, fix));
        }
        let covariance = &self.scatter / (self.count - 1) as f64;
        Ok(FeatureStatistics { mean: self.mean.clone(), covariance, count: Some(self.count) })
    }
}

/// The statistics of features that are all there.
///
/// # Errors
/// If they are of fewer than two pictures.
pub fn feature_statistics(features: &Features) -> Result<FeatureStatistics> {
    check_count("the number of pictures", features, 2)?;
    Moments::of(features).statistics()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchGenerator;

    /// In pieces of any size, against the two-pass definition, far from zero.
    #[test]
    fn moments_are_those_of_the_definition() -> Result<()> {
        let (count, width) = (1500, 3);
        let values: Vec<f32> = TorchGenerator::new(7).normal(count * width).iter().map(|x| x + 1000.0).collect();
        let features = Features::from_values(width, values.clone())?;
        let mut moments = Moments::new(width);
        for range in [0..1, 1..3, 3..1400, 1400..1500] {
            moments.add(&features.selected(&range.collect::<Vec<_>>()));
        }
        let statistics = moments.statistics()?;
        let of = |i: usize| values.iter().skip(i).step_by(width).map(|&x| f64::from(x));
        let mean: Vec<f64> = (0..width).map(|i| of(i).sum::<f64>() / count as f64).collect();
        for i in 0..width {
            assert!((statistics.mean()[i] - mean[i]).abs() < 1e-10);
            for j in 0..width {
                let sum: f64 = of(i).zip(of(j)).map(|(a, b)| (a - mean[i]) * (b - mean[j])).sum();
                assert!((statistics.covariance()[i * width + j] - sum / (count - 1) as f64).abs() < 1e-11);
            }
        }
        assert_eq!(statistics.count(), Some(count));
        assert!(!statistics.too_few() && feature_statistics(&features.selected(&[0, 1, 2]))?.too_few());
        assert!(feature_statistics(&features.selected(&[0])).is_err());
        Ok(())
    }
}
