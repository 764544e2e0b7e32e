//! How strong guidance is, and when.

use crate::NoiseLevel;

/// How the guidance scale develops from noise to data (Wang et al. 2024, "Analysis of classifier-free guidance
/// weight schedulers"). Each has the given scale as its mean over the share of noise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuidanceShape {
    /// The same throughout.
    #[default]
    Constant,
    /// Rising evenly from none at pure noise.
    Linear,
    /// Rising as half a cosine wave from none at pure noise.
    Cosine,
}

/// The share of noise at a level, 1 at pure noise and 0 at data; a run's scheduler says what it is.
pub type NoiseShare<'a> = dyn Fn(&NoiseLevel) -> f64 + 'a;

/// The guidance scale at each noise level.
#[derive(Clone, Copy)]
pub struct GuidanceSchedule<'a> {
    scale: f64,
    shape: Option<(GuidanceShape, &'a NoiseShare<'a>)>,
    /// Noise over signal where there is guidance, the lower first.
    interval: (f64, f64),
}

impl From<f64> for GuidanceSchedule<'_> {
    fn from(scale: f64) -> Self {
        Self::constant(scale)
    }
}

impl<'a> GuidanceSchedule<'a> {
    /// One scale throughout.
    pub fn constant(scale: f64) -> Self {
        Self { scale, shape: None, interval: (0.0, f64::INFINITY) }
    }

    /// A scale that develops by a shape over the share of noise.
    pub fn shaped(scale: f64, shape: GuidanceShape, noise_share: &'a NoiseShare<'a>) -> Self {
        Self { shape: Some((shape, noise_share)), ..Self::constant(scale) }
    }

    /// Guidance only where the noise level `sigma / alpha` lies from `low` to `high` (Kynkäänniemi et al. 2024); elsewhere
    /// the scale is 1.
    #[must_use]
    pub fn between(mut self, low: f64, high: f64) -> Self {
        self.interval = (low, high);
        self
    }

    /// The scale at a level; 1 means no guidance.
    pub fn at(&self, level: &NoiseLevel) -> f64 {
        let (low, high) = self.interval;
        // Pure noise is infinite, which no upper end below that lets in.
        if !(low..=high).contains(&(level.sigma / level.alpha)) {
            return 1.0;
        }
        let Some((shape, noise_share)) = self.shape else { return self.scale };
        let done = (1.0 - noise_share(level)).clamp(0.0, 1.0);
        match shape {
            GuidanceShape::Constant => self.scale,
            GuidanceShape::Linear => 1.0 + (self.scale - 1.0) * 2.0 * done,
            GuidanceShape::Cosine => 1.0 + (self.scale - 1.0) * (1.0 - (std::f64::consts::PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_the_scale_as_its_mean() {
        let share = |level: &NoiseLevel| level.timestep / 999.0;
        for shape in [GuidanceShape::Constant, GuidanceShape::Linear, GuidanceShape::Cosine] {
            let schedule = GuidanceSchedule::shaped(7.5, shape, &share);
            let at = |t: i32| schedule.at(&NoiseLevel::from_sigma(f64::from(t), 1.0));
            let mean = (0..1000).map(at).sum::<f64>() / 1000.0;
            assert!((mean - 7.5).abs() < 1e-9, "{shape:?}: {mean}");
            assert!(shape == GuidanceShape::Constant || at(999) == 1.0);
        }
    }

    /// Whatever the network is told: continuous timesteps are negative below a sigma of 1.
    #[test]
    fn an_interval_is_one_of_noise_over_signal() {
        let schedule = GuidanceSchedule::constant(3.0).between(0.5, 5.0);
        for sigma in [0.01, 0.4999, 0.5001, 1.0, 4.999, 5.001, 80.0] {
            for alpha in [0.5, 1.0, 3.0] {
                for timestep in [-1.5, 0.0, 999.0] {
                    let level = NoiseLevel { timestep, alpha, sigma: sigma * alpha };
                    assert_eq!(schedule.at(&level) == 3.0, (0.5..=5.0).contains(&sigma), "{level:?}");
                }
            }
        }
    }

    #[test]
    fn without_an_interval_pure_noise_is_guided_and_with_one_it_is_not() {
        let (noise, data) = (NoiseLevel::variance_preserving(999.0, 0.0), NoiseLevel::variance_preserving(0.0, 1.0));
        let always = GuidanceSchedule::constant(3.0);
        assert_eq!([always.at(&noise), always.at(&data)], [3.0, 3.0]);
        let some = always.between(0.0, 1e6);
        assert_eq!([some.at(&noise), some.at(&data)], [1.0, 3.0]);
    }
}
