//! Classifier guidance.

use crate::denoising::{Call, Network, PredictionType};
use crate::noise_level::LEAST_ALPHA_CUMPROD;
use crate::{Error, NoiseLevel, Result};
use candle_core::{D, Tensor, Var};

/// Something that tells classes apart, differentiably.
pub trait Classifier {
    /// How many classes it knows.
    fn classes(&self) -> usize;

    /// `log p(y | x_t)` for every class `y`.
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]`, a variance-preserving state at `timestep`, as networks see it; the
    /// result: `[batch, classes]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn log_probabilities(&self, x: &Tensor, timestep: f64) -> Result<Tensor>;
}

/// A network that goes where a classifier sees a class (Dhariwal and Nichol 2021, section 4.2, algorithm 2):
/// `epsilon - sqrt(1 - abar_t) scale grad_x log p(y | x_t)`, whatever the network predicts.
///
/// By Bayes' rule it samples from `p(x) p(y | x)^scale` where the classifier knows noisy images.
pub struct ClassifierGuidance<'a> {
    network: &'a dyn Network,
    classifier: &'a dyn Classifier,
    classes: Tensor,
    scale: f64,
    prediction_type: PredictionType,
}

impl<'a> ClassifierGuidance<'a> {
    /// Guides `network`, which predicts `prediction_type`, towards a class for each image.
    ///
    /// # Errors
    /// If a class is not one that the classifier knows.
    pub fn new(
        network: &'a dyn Network,
        classifier: &'a dyn Classifier,
        classes: &[u32],
        scale: f64,
        prediction_type: PredictionType,
    ) -> Result<Self> {
        let known = classifier.classes();
        if let Some(class) = classes.iter().find(|&&class| class as usize >= known) {
            let fix = format!("the classifier knows {known} classes; take 0 to {}", known.saturating_sub(1));
            return Err(Error::invalid("the class", class, fix));
        }
        let classes = Tensor::from_slice(classes, (classes.len(), 1), &candle_core::Device::Cpu)?;
        Ok(Self { network, classifier, classes, scale, prediction_type })
    }

    /// `grad_x log p(y | x_t)`, of the shape of `x`.
    fn gradient(&self, x: &Tensor, timestep: f64) -> Result<Tensor> {
        let x = Var::from_tensor(&x.detach())?;
        let log_probabilities = self.classifier.log_probabilities(&x, timestep)?;
        let of_class = log_probabilities.gather(&self.classes.to_device(x.device())?, D::Minus1)?;
        // Images do not look at one another, so the gradient of the sum holds that of each.
        let gradients = of_class.sum_all()?.backward()?;
        gradients.get(&x).cloned().ok_or_else(|| {
            Error::invalid("the classifier's gradient", "absent", "it must be differentiable in its input")
        })
    }
}

impl Network for ClassifierGuidance<'_> {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let (raw, x, level) = (self.network.forward(call)?, call.x, call.level()?);
        // Pure noise says nothing of a class, and where there is no signal `x0` and `v` cannot be shifted.
        if self.scale == 0.0 || level.alpha_cumprod() <= LEAST_ALPHA_CUMPROD * 1.001 {
            return Ok(raw);
        }
        let NoiseLevel { timestep, alpha, sigma } = level;
        // d epsilon = -sigma s grad, and x_t = alpha x0 + sigma epsilon stays what it is.
        let per_epsilon = match self.prediction_type {
            PredictionType::Epsilon => 1.0,
            PredictionType::Sample => -sigma / alpha,
            PredictionType::VPrediction => 1.0 / alpha,
            PredictionType::Edm => -1.0 / alpha,
            PredictionType::Flow => (alpha + sigma) / alpha,
        };
        let shift = (self.gradient(x, timestep)? * (-sigma * self.scale * per_epsilon))?;
        let channels = x.dim(1)?;
        if raw.dim(1)? == channels {
            return Ok((raw + shift)?);
        }
        // A learned variance stays as it is.
        let rest = raw.narrow(1, channels, raw.dim(1)? - channels)?;
        Ok(Tensor::cat(&[&(raw.narrow(1, 0, channels)? + shift)?, &rest], 1)?)
    }
}
