//! Timing a step of training.

use super::{MixedPrecisionChoice, TrainSettings};
use crate::bench::{kernels, rounded, within};
use candle_core::Tensor;
use serde_json::{Map, Value, json};
use std::time::Instant;
use tweedie::kernels::{InstructionSet, Products, measured_peak, threads};
use tweedie::layers::Weights;
use tweedie::models::UNet2DModel;
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::training::data::ImageSet;
use tweedie::training::{ParameterSource, Trainer};
use tweedie::{DType, Device, Result};

/// Each image of a step takes 6 MB.
const MOST_IMAGES: usize = 1024;

const MOST_RUNS: usize = 16_384;

/// A benchmark of a training step (forward, backward, AdamW) of the network that `tweedie train mnist` trains by default, on
/// the CPU, on noise in the place of digits.
#[derive(Debug, Clone)]
pub struct TrainingBench {
    /// Images of a step.
    pub batch: usize,
    /// Which products are rounded.
    pub mixed_precision: MixedPrecisionChoice,
    /// Timed steps, after one that is not; the best counts.
    pub runs: usize,
}

impl TrainingBench {
    /// Times steps.
    ///
    /// The result has `train_step_s`, `images_per_s` and the conditions, and `train_step_kernels`, where the time of one more
    /// step goes.
    ///
    /// # Errors
    /// If there is nothing to time.
    pub fn run(&self) -> Result<Map<String, Value>> {
        within("the batch", self.batch, MOST_IMAGES)?;
        within("the number of runs", self.runs, MOST_RUNS)?;
        InstructionSet::from_environment()?;
        let (mut trainer, images, labels) = self.digits()?;
        let mut step = || trainer.step(|| Ok((images.clone(), Some(labels.clone()))));
        step()?;
        let mut best = f64::INFINITY;
        for _ in 0..self.runs {
            let start = Instant::now();
            step()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let peak = measured_peak(match self.mixed_precision {
            MixedPrecisionChoice::No => Products::Full,
            MixedPrecisionChoice::Bf16 => Products::Bf16,
        });
        let results = json!({
            "model": "digits, in training",
            "mixed_precision": self.mixed_precision.name(),
            "threads": threads(),
            "batch": self.batch,
            "runs": self.runs,
            "instruction_set": InstructionSet::in_use().name(),
            "peak_gflops": peak.round(),
            "train_step_s": rounded(best),
            "images_per_s": (self.batch as f64 / best).round(),
            "train_step_kernels": kernels(peak, step)?,
        });
        Ok(results.as_object().cloned().unwrap_or_default())
    }

    /// The trainer, its images and their classes.
    fn digits(&self) -> Result<(Trainer<UNet2DModel>, Tensor, Tensor)> {
        let settings = TrainSettings { mixed_precision: self.mixed_precision, ..TrainSettings::default() };
        let batch = self.batch;
        let classes: Vec<String> = (0..10).map(|digit: u32| digit.to_string()).collect();
        let labels: Vec<u32> = (0..batch as u32).map(|i| i % 10).collect();
        let set = ImageSet::new([1, 28, 28], vec![0; batch * 28 * 28])?.with_labels(labels.clone(), classes)?;
        let network = settings.network(&set)?;
        let source = ParameterSource::random(settings.seed, &Device::Cpu);
        let model =
            UNet2DModel::new(&Weights::new(&source).with_products(settings.products()), network.clone(), DType::F32)?;
        let trainer = Trainer::new(model, source.finish()?, settings.objective()?, settings.trainer(&network))?;
        let images = TorchNoise::shared(0).normal(&[batch, 1, 28, 28])?.clamp(-1f32, 1f32)?;
        Ok((trainer, images, Tensor::new(labels, &Device::Cpu)?))
    }
}
