//! What a network predicts, and how that becomes `x0` and `epsilon`.

use crate::config::ConfigFields;
use crate::{Error, NoiseLevel, Result};
use candle_core::{D, DType, Device, Tensor};

/// The quantity that the network was trained to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise (Ho et al. 2020).
    Epsilon,
    /// `v = alpha * epsilon - sigma * x0` (Salimans and Ho 2022).
    VPrediction,
    /// The clean sample.
    Sample,
    /// The velocity of rectified flow, `epsilon - x0` (Liu et al. 2023, equation 1, with time from data to noise);
    /// a scheduler's class implies it.
    Flow,
    /// `F = -v`, the network inside EDM's preconditioning (Karras et al. 2022, equation 7); no scheduler's
    /// file names it.
    Edm,
}

const PREDICTION_TYPES: [(&str, PredictionType); 3] = [
    ("epsilon", PredictionType::Epsilon),
    ("v_prediction", PredictionType::VPrediction),
    ("sample", PredictionType::Sample),
];

impl PredictionType {
    /// What the network should give for `x = alpha * x0 + sigma * epsilon`: the factors of `x0` and `epsilon`.
    /// All but flow's are for variance-preserving levels.
    pub fn target_factors(self, level: &NoiseLevel) -> (f64, f64) {
        match self {
            Self::Epsilon => (0.0, 1.0),
            Self::VPrediction => (-level.sigma, level.alpha),
            Self::Edm => (level.sigma, -level.alpha),
            Self::Sample => (1.0, 0.0),
            Self::Flow => (-1.0, 1.0),
        }
    }

    /// The clean sample that an output stands for: the factors of the state and of the output. All but flow's are
    /// for variance-preserving levels.
    pub fn x0_factors(self, level: &NoiseLevel) -> (f64, f64) {
        let NoiseLevel { alpha, sigma, .. } = *level;
        match self {
            Self::Epsilon => (1.0 / alpha, -sigma / alpha),
            Self::VPrediction => (alpha, -sigma),
            Self::Edm => (alpha, sigma),
            Self::Sample => (0.0, 1.0),
            Self::Flow => (1.0 / (alpha + sigma), -sigma / (alpha + sigma)),
        }
    }
}

/// Which limits a class of schedulers has, in the fields of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitFields {
    /// None.
    None,
    /// `thresholding`, `dynamic_thresholding_ratio`, `sample_max_value`.
    Threshold,
    /// `clip_sample`, `clip_sample_range`.
    Clip {
        /// Whether it clips if the file does not say.
        by_default: bool,
    },
    /// Both; the threshold goes first.
    ThresholdOrClip {
        /// Whether it clips if the file does not say.
        by_default: bool,
    },
}

/// How the estimate of the clean sample is kept in range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// It is not.
    None,
    /// To `[-range, range]`.
    Clip {
        /// The largest magnitude.
        range: f64,
    },
    /// Dynamic thresholding (Saharia et al. 2022): to a quantile of the magnitudes, then divided by it.
    Threshold {
        /// Which quantile.
        ratio: f64,
        /// The quantile is taken as at least 1 and at most this.
        max: f64,
    },
}

/// What one evaluation of the network says, each part straight from the raw output.
#[derive(Debug, Clone)]
pub struct Prediction {
    /// The estimate of the clean sample, limited if the parameterization says so.
    pub x0: Tensor,
    /// The estimate of the noise, untouched by the limit.
    pub epsilon: Tensor,
    /// The network's output, without variance channels.
    pub raw: Tensor,
    /// The output's further channels, if the network predicts a variance.
    pub variance: Option<Tensor>,
}

/// The meaning of a network's raw output.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameterization {
    /// The predicted quantity.
    pub prediction_type: PredictionType,
    /// The limit on `x0`.
    pub limit: Limit,
    /// Whether a second half of the output channels is a variance.
    pub learned_variance: bool,
}

impl Parameterization {
    /// A prediction without limit or variance.
    pub fn new(prediction_type: PredictionType) -> Self {
        Self { prediction_type, limit: Limit::None, learned_variance: false }
    }

    /// From a scheduler's file whose class can threshold and clip; `clip_by_default` is its default of
    /// `clip_sample`.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config(config: &ConfigFields, clip_by_default: bool) -> Result<Self> {
        Self::from_config_with(config, LimitFields::ThresholdOrClip { by_default: clip_by_default })
    }

    /// From a scheduler's file whose class has the given limits; fields of others are ignored.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config_with(config: &ConfigFields, fields: LimitFields) -> Result<Self> {
        let thresholds = matches!(fields, LimitFields::Threshold | LimitFields::ThresholdOrClip { .. });
        let limit = if thresholds && config.bool("thresholding", false)? {
            Limit::Threshold {
                ratio: config.f64("dynamic_thresholding_ratio", 0.995)?,
                max: config.f64("sample_max_value", 1.0)?,
            }
        } else if let LimitFields::Clip { by_default } | LimitFields::ThresholdOrClip { by_default } = fields
            && config.bool("clip_sample", by_default)?
        {
            Limit::Clip { range: config.f64("clip_sample_range", 1.0)? }
        } else {
            Limit::None
        };
        let prediction_type = config.choice("prediction_type", &PREDICTION_TYPES, PredictionType::Epsilon)?;
        Ok(Self { prediction_type, limit, learned_variance: false })
    }

    /// The same with or without variance channels.
    #[must_use]
    pub fn with_learned_variance(mut self, learned_variance: bool) -> Self {
        self.learned_variance = learned_variance;
        self
    }

    /// What a state at `level` is multiplied with before the network sees it: networks of flow are trained on
    /// states as they are, all others on variance-preserving ones.
    pub fn input_scale(&self, level: &NoiseLevel) -> f64 {
        if self.prediction_type == PredictionType::Flow { 1.0 } else { level.input_scale() }
    }

    /// Turns a raw output for the state `x` at `level` into `x0` and `epsilon`.
    ///
    /// With `s = sqrt(alpha^2 + sigma^2)` the network saw `x / s`, a variance-preserving state with
    /// `alpha / s` and `sigma / s`.
    ///
    /// # Shapes
    /// `x`: `[batch, channels, height, width]`; `raw` the same, or with twice the channels if the variance
    /// is learned.
    ///
    /// # Errors
    /// If an epsilon is asked to give `x0` where there is no signal (`alpha = 0`).
    pub fn convert(&self, raw: Tensor, x: &Tensor, level: &NoiseLevel) -> Result<Prediction> {
        let channels = x.dim(1)?;
        let (raw, variance) = if self.learned_variance && raw.dim(1)? == 2 * channels {
            (raw.narrow(1, 0, channels)?, Some(raw.narrow(1, channels, channels)?))
        } else {
            (raw, None)
        };
        let NoiseLevel { alpha, sigma, .. } = *level;
        let (x0, epsilon) = match self.prediction_type {
            PredictionType::Epsilon if alpha == 0.0 => {
                return Err(Error::invalid(
                    "prediction_type",
                    "epsilon",
                    "at zero terminal SNR only v_prediction or sample can start; \
                     turn rescale_betas_zero_snr off or use another timestep spacing",
                ));
            }
            PredictionType::Epsilon => (((x - (&raw * sigma)?)? / alpha)?, raw.clone()),
            PredictionType::VPrediction | PredictionType::Edm => {
                let raw = if self.prediction_type == PredictionType::Edm { raw.neg()? } else { raw.clone() };
                let scale = level.input_scale();
                let (signal, noise) = (alpha * scale, sigma * scale);
                let x0 = ((x * (signal * scale))? - (&raw * noise)?)?;
                (x0, ((&raw * signal)? + (x * (noise * scale))?)?)
            }
            PredictionType::Flow => {
                let whole = alpha + sigma;
                let x0 = ((x - (&raw * sigma)?)? / whole)?;
                (x0, ((x + (&raw * alpha)?)? / whole)?)
            }
            PredictionType::Sample => (raw.clone(), ((x - (&raw * alpha)?)? / sigma)?),
        };
        Ok(Prediction { x0: self.limit.apply(x0)?, epsilon, raw, variance })
    }
}

impl Prediction {
    /// The noise that is left of the state `x` at `level` when `x0` is taken out: [`Self::epsilon`], but for
    /// what a limit on `x0` changes.
    ///
    /// # Shapes
    /// All `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn noise_left(&self, x: &Tensor, level: &NoiseLevel) -> Result<Tensor> {
        Ok(((x - (&self.x0 * level.alpha)?)? / level.sigma)?)
    }
}

impl Limit {
    fn apply(self, x0: Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x0),
            Self::Clip { range } => Ok(x0.clamp(-range, range)?),
            Self::Threshold { ratio, max } => {
                let images = x0.chunk(x0.dim(0)?, 0)?;
                let limited = images.iter().map(|image| {
                    let bound = quantile(&image.abs()?, ratio)?.max(1.0).min(max);
                    Ok((image.clamp(-bound, bound)? / bound)?)
                });
                Ok(Tensor::cat(&limited.collect::<Result<Vec<_>>>()?, 0)?)
            }
        }
    }
}

/// A quantile of all values, linear between neighbours.
fn quantile(values: &Tensor, ratio: f64) -> Result<f64> {
    // Metal has no f64.
    let flat = values.flatten_all()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)?;
    let mut sorted = flat.to_vec1::<f64>()?;
    sorted.sort_by(f64::total_cmp);
    let position = ratio.clamp(0.0, 1.0) * (flat.dim(D::Minus1)? - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    Ok(sorted[below] + (position - below as f64) * (sorted[above] - sorted[below]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However the network predicts, a perfect prediction gives back the clean sample and the noise, in
    /// variance-preserving and in sigma space.
    #[test]
    fn perfect_predictions_give_back_what_was_mixed() -> Result<()> {
        let x0 = Tensor::new(&[0.3f64, -0.9, 0.5, 0.1], &Device::Cpu)?.reshape((1, 1, 2, 2))?;
        let noise = Tensor::new(&[-1.2f64, 0.4, 2.0, 0.7], &Device::Cpu)?.reshape((1, 1, 2, 2))?;
        let levels =
            [NoiseLevel::variance_preserving(500.0, 0.3), NoiseLevel { timestep: 500.0, alpha: 1.0, sigma: 3.5 }];
        for level in levels {
            let x = level.add_noise(&x0, &noise)?;
            let scale = level.input_scale();
            let v = ((&noise * (level.alpha * scale))? - (&x0 * (level.sigma * scale))?)?;
            for (kind, raw) in [
                (PredictionType::Epsilon, noise.clone()),
                (PredictionType::VPrediction, v.clone()),
                (PredictionType::Edm, v.neg()?),
                (PredictionType::Sample, x0.clone()),
                (PredictionType::Flow, (&noise - &x0)?),
            ] {
                let prediction = Parameterization::new(kind).convert(raw, &x, &level)?;
                let left = prediction.noise_left(&x, &level)?;
                for (got, want) in [(&prediction.x0, &x0), (&prediction.epsilon, &noise), (&left, &noise)] {
                    let worst = (got - want)?.abs()?.max_all()?.to_scalar::<f64>()?;
                    assert!(worst < 1e-12, "{kind:?} at {level:?}: {worst}");
                }
            }
        }
        Ok(())
    }

    /// The factors say the same as the conversion, with numbers in the place of tensors.
    #[test]
    fn targets_give_back_the_clean_sample() {
        let (x0, noise) = (0.3, -1.2);
        let preserving = NoiseLevel::variance_preserving(500.0, 0.3);
        let straight = NoiseLevel { timestep: 700.0, alpha: 0.3, sigma: 0.7 };
        for (kind, level) in [
            (PredictionType::Epsilon, preserving),
            (PredictionType::VPrediction, preserving),
            (PredictionType::Edm, preserving),
            (PredictionType::Sample, preserving),
            (PredictionType::Flow, straight),
        ] {
            let x = level.alpha * x0 + level.sigma * noise;
            let (of_x0, of_noise) = kind.target_factors(&level);
            let (of_x, of_raw) = kind.x0_factors(&level);
            let back = of_x * x + of_raw * (of_x0 * x0 + of_noise * noise);
            assert!((back - x0).abs() < 1e-12, "{kind:?}: {back}");
        }
    }

    #[test]
    fn epsilon_without_signal_is_an_error() -> Result<()> {
        let x = Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu)?;
        let level = NoiseLevel::variance_preserving(999.0, 0.0);
        assert!(Parameterization::new(PredictionType::Epsilon).convert(x.clone(), &x, &level).is_err());
        assert!(Parameterization::new(PredictionType::VPrediction).convert(x.clone(), &x, &level).is_ok());
        Ok(())
    }

    #[test]
    fn thresholding_divides_by_the_quantile_of_each_image() -> Result<()> {
        let x0 = Tensor::new(&[0.0f64, 1.0, 2.0, 3.0, 0.1, -0.2, 0.3, -0.4], &Device::Cpu)?.reshape((2, 1, 2, 2))?;
        let limited = Limit::Threshold { ratio: 0.5, max: 10.0 }.apply(x0)?.flatten_all()?.to_vec1::<f64>()?;
        // The first image's median magnitude is 1.5; the second's is below 1, where the bound stays 1.
        assert_eq!(limited, [0.0, 1.0 / 1.5, 1.0, 1.0, 0.1, -0.2, 0.3, -0.4]);
        Ok(())
    }
}
