//! The exponential moving average of weights that samples are made with.

use rayon::prelude::*;

/// Values that one thread takes at a time.
const PIECE: usize = 1 << 14;

/// A moving average of all weights (Polyak and Juditsky 1992; in diffusion models since Ho et al. 2020, appendix B).
#[derive(Debug, Clone, PartialEq)]
pub struct Ema {
    /// The share that the average keeps in each update, 0.9999 in the paper; a short run needs less.
    pub decay: f64,
    /// Whether early updates keep less, so that the random start is forgotten: `(1 + n) / (10 + n)` after `n` updates
    /// and nothing in the first, as diffusers' `EMAModel` does.
    pub warm_up: bool,
    /// The averaged weights.
    pub values: Vec<f32>,
    /// Updates so far.
    pub updates: u64,
}

impl Ema {
    /// The average before the first update.
    pub fn new(weights: &[f32], decay: f64, warm_up: bool) -> Self {
        Self { decay, warm_up, values: weights.to_vec(), updates: 0 }
    }

    /// The share that the next update keeps.
    pub fn next_decay(&self) -> f64 {
        let n = self.updates as f64;
        match (self.warm_up, self.updates) {
            (false, _) => self.decay,
            (true, 0) => 0.0,
            (true, _) => self.decay.min((1.0 + n) / (10.0 + n)),
        }
    }

    /// `average = decay * average + (1 - decay) * weights`.
    ///
    /// # Panics
    /// If there are more or fewer weights than averages.
    pub fn update(&mut self, weights: &[f32]) {
        assert_eq!(weights.len(), self.values.len());
        let fresh = (1.0 - self.next_decay()) as f32;
        self.updates += 1;
        let pieces = self.values.par_chunks_mut(PIECE).zip(weights.par_chunks(PIECE));
        pieces.for_each(|(values, weights)| {
            values.iter_mut().zip(weights).for_each(|(value, weight)| *value -= fresh * (*value - weight));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of constant weights the average is at `1 - decay^n` of the way.
    #[test]
    fn it_moves_by_powers_of_the_decay() {
        let mut ema = Ema::new(&[0.0], 0.9, false);
        (0..7).for_each(|_| ema.update(&[1.0]));
        assert!((f64::from(ema.values[0]) - (1.0 - 0.9f64.powi(7))).abs() < 1e-6);
    }

    #[test]
    fn the_warm_up_forgets_the_start() {
        let mut ema = Ema::new(&[5.0], 0.99, true);
        ema.update(&[1.0]);
        assert_eq!(ema.values, [1.0]);
        assert_eq!(ema.next_decay(), 2.0 / 11.0);
        ema.updates = 10_000;
        assert_eq!(ema.next_decay(), 0.99);
    }
}
