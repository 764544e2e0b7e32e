//! Classifier guidance on data of which everything has a closed form.

use candle_core::{DType, Device, Tensor};
use serde_json::Map;
use std::ops::ControlFlow;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{
    Cache, Call, Classifier, ClassifierGuidance, Denoiser, Network, Parameterization, PredictionType,
};
use tweedie::layers::log_softmax;
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{BetaSchedule, NoiseSchedule, Run, by_name, sample};
use tweedie::{NoiseLevel, Result};

/// Data of two classes, each pixel `N(+1, 1/4)` or `N(-1, 1/4)`; everything about it has a closed form.
struct TwoGaussians {
    schedule: NoiseSchedule,
}

const VARIANCE: f64 = 0.25;

impl TwoGaussians {
    fn new() -> Result<Self> {
        Ok(Self { schedule: NoiseSchedule::from_betas(&BetaSchedule::Linear.betas(1e-4, 0.02, 1000))? })
    }

    fn level(&self, timestep: f64) -> Result<NoiseLevel> {
        self.schedule.level(timestep.round() as usize)
    }
}

impl Classifier for TwoGaussians {
    fn classes(&self) -> usize {
        2
    }

    /// With equal variances the log-odds are linear: `2 alpha sum(x) / (alpha^2 / 4 + sigma^2)`.
    fn log_probabilities(&self, x: &Tensor, timestep: f64) -> Result<Tensor> {
        let NoiseLevel { alpha, sigma, .. } = self.level(timestep)?;
        let spread = alpha * alpha * VARIANCE + sigma * sigma;
        let half_odds = (x.flatten_from(1)?.sum_keepdim(1)? * (alpha / spread))?;
        let logits = Tensor::cat(&[&half_odds, &half_odds.neg()?], 1)?;
        log_softmax(&logits)
    }
}

/// The exact noise of the mixture of both: unconditional.
impl Network for TwoGaussians {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let (x, timestep) = (call.x, call.level()?.timestep);
        let NoiseLevel { alpha, sigma, .. } = self.level(timestep)?;
        let spread = alpha * alpha * VARIANCE + sigma * sigma;
        let p = self.log_probabilities(x, timestep)?.exp()?;
        let mean = ((p.narrow(1, 0, 1)? - p.narrow(1, 1, 1)?)? * alpha)?;
        let mean = mean.reshape((x.dim(0)?, 1, 1, 1))?.broadcast_as(x.shape())?;
        Ok(((x - mean)? * (sigma / spread))?)
    }
}

fn state(seed: u64) -> Result<Tensor> {
    Ok((TorchNoise::shared(seed).normal(&[2, 1, 2, 2])?.to_dtype(DType::F64)? * 0.6)?)
}

/// Bayes: the mixture's noise, guided with scale 1, is the noise of the class alone, in whatever form the
/// network predicts.
#[test]
fn guided_by_the_exact_classifier_the_mixture_becomes_the_class() -> Result<()> {
    let model = TwoGaussians::new()?;
    for timestep in [20.0, 300.0, 900.0] {
        let x = state(3)?;
        let level = model.level(timestep)?;
        let NoiseLevel { alpha, sigma, .. } = level;
        let (conditioning, cache) = (Conditioning::default(), Cache::default());
        let call = Call::new(&x, level, &conditioning, &cache);
        let mixture = model.forward(&call)?;
        let spread = alpha * alpha * VARIANCE + sigma * sigma;
        let means = Tensor::new(&[alpha, -alpha], &Device::Cpu)?.reshape((2, 1, 1, 1))?;
        let expected = (x.broadcast_sub(&means)? * (sigma / spread))?;
        let all = [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample, PredictionType::Edm];
        for prediction_type in all {
            let as_predicted = |epsilon: &Tensor| -> Result<Tensor> {
                let x0 = ((&x - (epsilon * sigma)?)? / alpha)?;
                let v = ((epsilon * alpha)? - (&x0 * sigma)?)?;
                Ok(match prediction_type {
                    PredictionType::Epsilon => epsilon.clone(),
                    PredictionType::VPrediction => v,
                    PredictionType::Sample => x0,
                    PredictionType::Edm => v.neg()?,
                    PredictionType::Flow => (epsilon - &x0)?,
                })
            };
            let network = Fixed(as_predicted(&mixture)?);
            let guided = ClassifierGuidance::new(&network, &model, &[0, 1], 1.0, prediction_type)?;
            let raw = guided.forward(&call)?;
            let parameterization = Parameterization::new(prediction_type);
            let epsilon = parameterization.convert(raw, &x, &level)?.epsilon;
            let error = (epsilon - &expected)?.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(error < 1e-10, "{prediction_type:?} at {timestep}: {error}");
        }
    }
    Ok(())
}

struct Fixed(Tensor);

impl Network for Fixed {
    fn forward(&self, _: &Call<'_>) -> Result<Tensor> {
        Ok(self.0.clone())
    }
}

#[test]
fn the_gradient_is_what_finite_differences_say() -> Result<()> {
    let model = TwoGaussians::new()?;
    let x = (state(5)? * 0.05)?;
    let guidance = ClassifierGuidance::new(&model, &model, &[1, 0], 1.0, PredictionType::Epsilon)?;
    // The noise is shifted by the gradient times -sigma.
    let level = model.level(700.0)?;
    let (conditioning, cache) = (Conditioning::default(), Cache::default());
    let call = Call::new(&x, level, &conditioning, &cache);
    let shift = (guidance.forward(&call)? - model.forward(&call)?)?;
    let gradient = (shift / -level.sigma)?.flatten_all()?.to_vec1::<f64>()?;
    let value = |x: &Tensor, i: usize, class: usize| -> Result<f64> {
        Ok(model.log_probabilities(x, 700.0)?.get(i)?.get(class)?.to_scalar::<f64>()?)
    };
    let h = 1e-5;
    for (j, got) in gradient.iter().enumerate() {
        let moved = |by: f64| -> Result<Tensor> {
            let mut values = x.flatten_all()?.to_vec1::<f64>()?;
            values[j] += by;
            Ok(Tensor::from_vec(values, x.shape(), &Device::Cpu)?)
        };
        let (i, class) = (j / 4, 1 - j / 4);
        let want = (value(&moved(h)?, i, class)? - value(&moved(-h)?, i, class)?) / (2.0 * h);
        assert!((got - want).abs() < 1e-7 * want.abs().max(1.0), "{j}: {got}, differences say {want}");
        assert!(want.abs() > 1e-3, "a gradient that vanishes tests nothing");
    }
    Ok(())
}

/// The unconditional mixture, sampled under guidance, gives each image its class's mean and spread.
#[test]
fn guided_sampling_reaches_the_posterior() -> Result<()> {
    let model = TwoGaussians::new()?;
    let config = ConfigFields::from_fields("scheduler", Map::new());
    let scheduler = by_name("ddim")?.build(&config.with("clip_sample", false))?;
    let levels = scheduler.levels(100)?;
    let mut noise = TorchNoise::shared(11);
    let images = 64;
    let classes: Vec<u32> = (0..images as u32).map(|i| i % 2).collect();
    let start = noise.normal(&[images, 1, 4, 4])?.to_dtype(DType::F64)?;
    let guided = ClassifierGuidance::new(&model, &model, &classes, 1.0, PredictionType::Epsilon)?;
    let conditioning = Conditioning::default();
    let denoiser = Denoiser::new(&guided, &conditioning, scheduler.parameterization());
    let run = Run::new(&levels, &denoiser, &mut noise);
    let x = sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
    let x = x.flatten_from(1)?;
    let signs: Vec<f64> = classes.iter().map(|&class| 1.0 - 2.0 * f64::from(class)).collect();
    let signed = x.broadcast_mul(&Tensor::new(signs, &Device::Cpu)?.unsqueeze(1)?)?;
    let mean = signed.mean_all()?.to_scalar::<f64>()?;
    let variance = (signed - mean)?.sqr()?.mean_all()?.to_scalar::<f64>()?;
    // 1,024 values of variance 1/4: three standard errors are 0.047 for the mean and 0.033 for the variance; what
    // the 100 steps leave out is smaller.
    assert!((mean - 1.0).abs() < 0.05 && (variance - VARIANCE).abs() < 0.04, "{mean} {variance}");
    Ok(())
}

#[test]
fn an_unknown_class_is_refused() -> Result<()> {
    let model = TwoGaussians::new()?;
    let guidance = ClassifierGuidance::new(&model, &model, &[2], 1.0, PredictionType::Epsilon);
    assert!(
        guidance.err().is_some_and(|e| e.to_string().contains("the class is 2") && e.to_string().contains("0 to 1"))
    );
    Ok(())
}
