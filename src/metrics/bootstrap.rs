//! How far a figure may be off because the samples are only so many: the bootstrap (Efron 1979, "Bootstrap methods: another
//! look at the jackknife").

use crate::Result;
use crate::training::data::SplitMix64;
use rayon::prelude::*;

/// The share of resampled figures that an interval holds.
const CONFIDENCE: f64 = 0.95;

/// Where a figure lies with a probability of 95 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// The interval around a figure that resampled ones give.
    ///
    /// Resampled sets have pictures twice. A figure that grows with what is missing, such as FID, is larger on them in the mean; so
    /// the quantiles of their distances from their own mean are put around the figure. Of a mean of single pictures' values this is
    /// the interval of the percentiles.
    ///
    /// Nothing if there are fewer than two.
    pub fn around(value: f64, resampled: &[f64]) -> Option<Self> {
        if resampled.len() < 2 {
            return None;
        }
        let mean = resampled.iter().sum::<f64>() / resampled.len() as f64;
        let mut sorted = resampled.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let below = place.floor() as usize;
            let above = (below + 1).min(sorted.len() - 1);
            sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
        };
        let tail = (1.0 - CONFIDENCE) / 2.0;
        Some(Self { low: value + quantile(tail) - mean, high: value + quantile(1.0 - tail) - mean })
    }
}

/// A figure and how sure it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Where it lies with a probability of 95 %, if that was asked for.
    pub interval: Option<Interval>,
}

/// How samples are drawn again, with repeats, as many as there are. The reference is taken as given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bootstrap {
    /// How often; below 2 there are no intervals.
    pub resamples: usize,
    /// From which the draws follow.
    pub seed: u64,
}

impl Bootstrap {
    /// Without intervals.
    pub const NONE: Self = Self { resamples: 0, seed: 0 };

    /// The pictures of a resample.
    pub(super) fn indices(&self, resample: usize, count: usize) -> Vec<usize> {
        let mut draws = SplitMix64::numbered(self.seed, resample as u64);
        (0..count).map(|_| draws.below(count as u64) as usize).collect()
    }

    /// A figure of `count` pictures, and of their resamples: `resampled` is given which pictures are in one.
    pub(super) fn figure(
        &self,
        value: f64,
        count: usize,
        resampled: impl Fn(&[usize]) -> Result<f64> + Sync,
    ) -> Result<Figure> {
        let draw = |resample| resampled(&self.indices(resample, count));
        // One picture is all of every resample.
        let resamples = if count < 2 { 0 } else { self.resamples };
        let resampled = (0..resamples).into_par_iter().map(draw).collect::<Result<Vec<_>>>()?;
        Ok(Figure { value, interval: Interval::around(value, &resampled) })
    }

    /// The mean of single pictures' values.
    pub(super) fn mean(&self, values: &[f64]) -> Result<Figure> {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        self.figure(mean, count, |indices| Ok(indices.iter().map(|&i| values[i]).sum::<f64>() / count as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchGenerator;

    /// The interval of a mean of normal values is 1.96 standard errors to either side.
    #[test]
    fn the_interval_of_a_mean_is_that_of_the_normal_distribution() -> Result<()> {
        let values: Vec<f64> = TorchGenerator::new(3).normal(2000).into_iter().map(f64::from).collect();
        let figure = Bootstrap { resamples: 4000, seed: 1 }.mean(&values)?;
        let variance = values.iter().map(|value| (value - figure.value).powi(2)).sum::<f64>() / values.len() as f64;
        let reach = 1.96 * (variance / values.len() as f64).sqrt();
        let interval = figure.interval.ok_or_else(|| crate::Error::invalid("the interval", "none", ""))?;
        for got in [figure.value - interval.low, interval.high - figure.value] {
            assert!((got / reach - 1.0).abs() < 0.08, "{got} {reach}");
        }
        Ok(())
    }

    #[test]
    fn quantiles_are_interpolated_and_centred() {
        // Of 0, 1, ..., 40 the mean is 20 and the quantiles are 1 and 39; around 5 they are -14 and 24.
        let resampled: Vec<f64> = (0..=40).rev().map(f64::from).collect();
        assert_eq!(Interval::around(5.0, &resampled), Some(Interval { low: -14.0, high: 24.0 }));
        assert_eq!(Interval::around(5.0, &[1.0]), None);
    }
}
