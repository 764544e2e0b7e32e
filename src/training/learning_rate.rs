//! The learning rate over a run.

/// What the learning rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// It stays.
    Constant,
    /// It falls to zero along half a cosine (Loshchilov and Hutter 2017, equation 5, without restarts).
    Cosine,
    /// It stays until half of the run is done, then falls evenly to zero.
    LateLinear,
}

/// A linear warm-up (Goyal et al. 2017) and what follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// The rate after the warm-up.
    pub peak: f64,
    /// The steps of the warm-up.
    pub warmup_steps: u64,
    /// The steps of the run.
    pub total_steps: u64,
    /// What follows the warm-up.
    pub decay: Decay,
}

impl LearningRate {
    /// The rate of a step, counted from 0. The first is above 0, and so is the last of a cosine.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.decay {
            Decay::Constant => self.peak,
            Decay::LateLinear => {
                let left = self.total_steps.saturating_sub(step) as f64;
                self.peak * (2.0 * left / self.total_steps.max(1) as f64).min(1.0)
            }
            Decay::Cosine => {
                let rest = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
                let done = ((step - self.warmup_steps) as f64 / rest).min(1.0);
                self.peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_then_falls() {
        let rate = LearningRate { peak: 0.2, warmup_steps: 10, total_steps: 110, decay: Decay::Cosine };
        let close = |step, expected: f64| (rate.at(step) - expected).abs() < 1e-12;
        assert!(close(0, 0.02) && close(9, 0.2) && close(10, 0.2) && close(60, 0.1));
        assert!(rate.at(109) > 0.0 && rate.at(109) < 1e-4 && close(500, 0.0));
        let late = LearningRate { decay: Decay::LateLinear, total_steps: 100, ..rate };
        assert_eq!([late.at(20), late.at(50), late.at(75), late.at(500)], [0.2, 0.2, 0.1, 0.0]);
        assert!(late.at(99) > 0.0);
        let constant = LearningRate { decay: Decay::Constant, warmup_steps: 0, ..rate };
        assert_eq!((constant.at(0), constant.at(1000)), (0.2, 0.2));
    }
}
