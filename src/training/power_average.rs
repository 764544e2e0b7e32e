//! Averages of weights whose memory grows with the run, several of which are kept so that one is chosen afterwards.

use crate::{Error, Result};
use rayon::prelude::*;

/// Values that one thread takes at a time.
const PIECE: usize = 1 << 14;

/// The average of weights by a power of time (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
/// Models", equations 122 to 126): after `n` steps
///
/// ```text
/// average_n = beta_n average_{n-1} + (1 - beta_n) theta_n,  beta_n = (1 - 1/n)^(gamma + 1),
/// ```
///
/// so that weights count in proportion to the `gamma`-th power of their step, and the first ones not at all. Its length is told
/// by the standard deviation of those shares relative to the run so far.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerAverage {
    relative_deviation: f64,
    gamma: f64,
    pub(super) values: Vec<f32>,
}

impl PowerAverage {
    /// The average of a relative standard deviation, before the first update.
    ///
    /// # Errors
    /// If the deviation is none that a power above 0 has: they lie between 0 and 0.28.
    pub fn new(weights: &[f32], relative_deviation: f64) -> Result<Self> {
        Ok(Self { relative_deviation, gamma: gamma(relative_deviation)?, values: weights.to_vec() })
    }

    /// The standard deviation of the weights' shares relative to the run so far.
    pub fn relative_deviation(&self) -> f64 {
        self.relative_deviation
    }

    /// The average.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Takes the weights after step `n`, counted from 1.
    ///
    /// # Panics
    /// If there are more or fewer weights than averages, or the step is 0.
    pub(super) fn update(&mut self, weights: &[f32], n: u64) {
        assert!(weights.len() == self.values.len() && n > 0);
        let fresh = (1.0 - (1.0 - 1.0 / n as f64).powf(self.gamma + 1.0)) as f32;
        let pieces = self.values.par_chunks_mut(PIECE).zip(weights.par_chunks(PIECE));
        pieces.for_each(|(values, weights)| {
            values.iter_mut().zip(weights).for_each(|(value, weight)| *value -= fresh * (*value - weight));
        });
    }
}

/// The relative standard deviation of a power (equation 126): `sqrt((g + 1) / ((g + 2)^2 (g + 3)))`, which falls with it.
fn deviation(gamma: f64) -> f64 {
    ((gamma + 1.0) / ((gamma + 2.0).powi(2) * (gamma + 3.0))).sqrt()
}

/// The power of a relative standard deviation, by halving an interval.
fn gamma(relative_deviation: f64) -> Result<f64> {
    let (mut low, mut high) = (0.0, 1e6);
    if !(deviation(high)..=deviation(low)).contains(&relative_deviation) {
        let fix = "it lies between 0 and 0.28; 0.05 and 0.1 are usual";
        return Err(Error::invalid("the relative deviation of a moving average", relative_deviation, fix));
    }
    // More halvings than an f64 has digits.
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if deviation(middle) > relative_deviation { low = middle } else { high = middle }
    }
    Ok(0.5 * (low + high))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pairs of the paper's section 3.
    #[test]
    fn powers_are_those_of_the_paper() -> Result<()> {
        assert!((gamma(0.05)? - 16.97).abs() < 0.005 && (gamma(0.10)? - 6.94).abs() < 0.005);
        assert!(gamma(0.3).is_err() && gamma(0.0).is_err() && gamma(f64::NAN).is_err());
        Ok(())
    }

    /// Of weights that grow evenly the average is at the mean of the shares, `(g + 1) / (g + 2)` of the way, and its spread
    /// about that is the relative deviation.
    #[test]
    fn shares_have_their_mean_and_deviation() -> Result<()> {
        let steps = 20_000;
        let mut average = PowerAverage::new(&[5.0, 5.0], 0.1)?;
        for n in 1..=steps {
            let time = n as f32 / steps as f32;
            average.update(&[time, time * time], n);
        }
        let (mean, square) = (f64::from(average.values[0]), f64::from(average.values[1]));
        let expected = (average.gamma + 1.0) / (average.gamma + 2.0);
        // f32 sums, and steps in the place of an integral.
        assert!((mean - expected).abs() < 2e-3, "{mean} {expected}");
        assert!(((square - mean * mean).sqrt() - 0.1).abs() < 2e-3, "{mean} {square}");
        Ok(())
    }
}
