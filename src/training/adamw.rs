//! AdamW (Loshchilov and Hutter 2019, algorithm 2), with PyTorch's formulas and a state that can be saved.

use rayon::prelude::*;

/// Values that one thread takes at a time.
const PIECE: usize = 1 << 14;

/// The constants of [`AdamW`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub epsilon: f64,
    /// Weights shrink by this times the learning rate in each step.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// PyTorch's.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01 }
    }
}

/// The optimiser's state: both moments of every parameter and the number of steps.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// The constants.
    pub config: AdamWConfig,
    /// The decayed mean of gradients.
    pub first_moment: Vec<f32>,
    /// The decayed mean of their squares.
    pub second_moment: Vec<f32>,
    /// Steps taken.
    pub steps: u64,
}

impl AdamW {
    /// Before the first step, for so many values.
    pub fn new(config: AdamWConfig, values: usize) -> Self {
        Self { config, first_moment: vec![0.0; values], second_moment: vec![0.0; values], steps: 0 }
    }

    /// One step, in one pass over memory.
    ///
    /// # Panics
    /// If the lengths of weights and gradients are not that of the state.
    pub fn step(&mut self, weights: &mut [f32], gradients: &[f32], learning_rate: f64) {
        assert!(weights.len() == self.first_moment.len() && gradients.len() == weights.len());
        self.steps += 1;
        let AdamWConfig { beta1, beta2, epsilon, weight_decay } = self.config;
        let correction = |beta: f64| 1.0 - beta.powf(self.steps as f64);
        let shrink = (1.0 - learning_rate * weight_decay) as f32;
        let step_size = (learning_rate / correction(beta1)) as f32;
        let root_correction = correction(beta2).sqrt() as f32;
        let (fresh, beta2, fresh_square, epsilon) =
            ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32, epsilon as f32);
        let moments = self.first_moment.par_chunks_mut(PIECE).zip(self.second_moment.par_chunks_mut(PIECE));
        let pieces = weights.par_chunks_mut(PIECE).zip(gradients.par_chunks(PIECE)).zip(moments);
        pieces.for_each(|((weights, gradients), (first, second))| {
            let values = weights.iter_mut().zip(gradients).zip(first.iter_mut().zip(second));
            for ((weight, &gradient), (m, v)) in values {
                *m += (gradient - *m) * fresh;
                *v = *v * beta2 + gradient * gradient * fresh_square;
                let denominator = v.sqrt() / root_correction + epsilon;
                *weight = *weight * shrink - step_size * (*m / denominator);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Algorithm 2 with scalars in f64, as it is printed, with the learning rate in the place of `eta`.
    fn by_the_paper(config: AdamWConfig, mut weight: f64, gradients: &[f64], learning_rate: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (i, gradient) in gradients.iter().enumerate() {
            let t = i as i32 + 1;
            m = config.beta1 * m + (1.0 - config.beta1) * gradient;
            v = config.beta2 * v + (1.0 - config.beta2) * gradient * gradient;
            let (m_hat, v_hat) = (m / (1.0 - config.beta1.powi(t)), v / (1.0 - config.beta2.powi(t)));
            let decay = config.weight_decay * weight;
            weight -= learning_rate * (m_hat / (v_hat.sqrt() + config.epsilon) + decay);
        }
        weight
    }

    #[test]
    fn steps_are_those_of_the_paper() {
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let count = PIECE + 3;
        let gradient = |i: usize, step: usize| ((i * 37 + step * 11) % 100) as f32 / 50.0 - 1.0;
        let start = |i: usize| (i % 17) as f32 / 17.0;
        let mut weights: Vec<f32> = (0..count).map(start).collect();
        let mut optimizer = AdamW::new(config, count);
        for step in 0..20 {
            let gradients: Vec<f32> = (0..count).map(|i| gradient(i, step)).collect();
            optimizer.step(&mut weights, &gradients, 0.01);
        }
        for i in [0, 1, 500, PIECE - 1, PIECE, count - 1] {
            let gradients: Vec<f64> = (0..20).map(|step| f64::from(gradient(i, step))).collect();
            let expected = by_the_paper(config, f64::from(start(i)), &gradients, 0.01);
            // Twenty steps of rounding to f32.
            assert!((f64::from(weights[i]) - expected).abs() < 1e-6, "{i}: {} {expected}", weights[i]);
        }
    }
}
