//! How strong guidance is, and when.

use crate::schedulers::NoiseSchedule;

/// How the guidance scale develops from noise to data (Wang et al. 2024, "Analysis of classifier-free guidance
/// weight schedulers"). Each has the given scale as its mean.
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

/// The guidance scale at each timestep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GuidanceSchedule {
    scale: f64,
    shape: GuidanceShape,
    /// The timesteps at which there is guidance, the lower first.
    interval: (f64, f64),
    /// The last training timestep, which is pure noise to the shape.
    last_timestep: f64,
}

impl From<f64> for GuidanceSchedule {
    fn from(scale: f64) -> Self {
        Self::new(scale, GuidanceShape::Constant)
    }
}

impl GuidanceSchedule {
    /// A scale that develops by a shape over 1,000 training timesteps.
    pub fn new(scale: f64, shape: GuidanceShape) -> Self {
        Self { scale, shape, interval: (0.0, f64::INFINITY), last_timestep: 999.0 }
    }

    /// For a model of another number of training timesteps.
    #[must_use]
    pub fn over(mut self, schedule: &NoiseSchedule) -> Self {
        self.last_timestep = (schedule.num_train_timesteps() - 1).max(1) as f64;
        self
    }

    /// Guidance only at timesteps from `low` to `high`; elsewhere the scale is 1.
    #[must_use]
    pub fn between(mut self, low: f64, high: f64) -> Self {
        self.interval = (low, high);
        self
    }

    /// Guidance only where the noise level `sigma / alpha` lies in the interval (Kynkäänniemi et al. 2024).
    #[must_use]
    pub fn between_sigmas(self, schedule: &NoiseSchedule, low: f64, high: f64) -> Self {
        let inside = |abar: &f64| (low..=high).contains(&((1.0 - abar) / abar).sqrt());
        let abar = schedule.alphas_cumprod();
        let first = abar.iter().position(inside);
        let last = abar.iter().rposition(inside);
        match first.zip(last) {
            Some((first, last)) => self.between(first as f64, last as f64),
            None => self.between(f64::INFINITY, f64::INFINITY),
        }
    }

    /// The scale at a timestep; 1 means no guidance.
    pub fn at(&self, timestep: f64) -> f64 {
        let (low, high) = self.interval;
        if timestep < low || timestep > high {
            return 1.0;
        }
        let done = (1.0 - timestep / self.last_timestep).clamp(0.0, 1.0);
        match self.shape {
            GuidanceShape::Constant => self.scale,
            GuidanceShape::Linear => 1.0 + (self.scale - 1.0) * 2.0 * done,
            GuidanceShape::Cosine => 1.0 + (self.scale - 1.0) * (1.0 - (std::f64::consts::PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedulers::BetaSchedule;

    #[test]
    fn every_shape_has_the_scale_as_its_mean() {
        for shape in [GuidanceShape::Constant, GuidanceShape::Linear, GuidanceShape::Cosine] {
            let schedule = GuidanceSchedule::new(7.5, shape);
            let mean = (0..1000).map(|t| schedule.at(f64::from(t))).sum::<f64>() / 1000.0;
            assert!((mean - 7.5).abs() < 1e-9, "{shape:?}: {mean}");
            assert!(shape == GuidanceShape::Constant || schedule.at(999.0) == 1.0);
        }
    }

    #[test]
    fn an_interval_of_noise_levels_is_one_of_timesteps() -> crate::Result<()> {
        let noise = NoiseSchedule::from_betas(&BetaSchedule::ScaledLinear.betas(0.00085, 0.012, 1000))?;
        let schedule = GuidanceSchedule::from(3.0).between_sigmas(&noise, 0.5, 5.0);
        for (t, abar) in noise.alphas_cumprod().iter().enumerate() {
            let sigma = ((1.0 - abar) / abar).sqrt();
            assert_eq!(schedule.at(t as f64) == 3.0, (0.5..=5.0).contains(&sigma), "{t}: {sigma}");
        }
        assert_eq!(GuidanceSchedule::from(3.0).between_sigmas(&noise, 1e4, 1e5).at(500.0), 1.0);
        Ok(())
    }
}
