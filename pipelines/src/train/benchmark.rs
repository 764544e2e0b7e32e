//! Timing a step of training.

use super::{MixedPrecisionChoice, PixelTrainingSettings, TrainingSettings};
use crate::bench::{kernels, rounded, within};
use serde_json::{Map, Value, json};
use std::time::Instant;
use tweedie::kernels::{InstructionSet, MatmulPrecision, measured_peak, threads};
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::training::data::{Batch, ImageSet};
use tweedie::training::tasks::PixelDiffusion;
use tweedie::training::{Trainer, TrainerOptions};
use tweedie::{Device, Result, Tensor};

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
        let (mut trainer, batch) = self.digits()?;
        let mut step = || trainer.step(|| Ok(batch.clone()));
        step()?;
        let mut best = f64::INFINITY;
        for _ in 0..self.runs {
            let start = Instant::now();
            step()?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        let peak = measured_peak(MatmulPrecision::from(self.mixed_precision));
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

    /// The trainer, and what each of its steps is on.
    fn digits(&self) -> Result<(Trainer<PixelDiffusion>, Batch)> {
        let settings =
            PixelTrainingSettings { mixed_precision: self.mixed_precision, ..PixelTrainingSettings::default() };
        let classes: Vec<String> = (0..10).map(|digit: u32| digit.to_string()).collect();
        let labels: Vec<u32> = (0..self.batch as u32).map(|i| i % 10).collect();
        let set = ImageSet::new([1, 28, 28], vec![0; self.batch * 28 * 28])?.with_labels(labels.clone(), classes)?;
        let seed = settings.common().seed;
        let (task, parameters) = PixelDiffusion::new(settings.config(&set)?, seed, settings.optimizer())?;
        let trainer = Trainer::new(task, vec![parameters], TrainerOptions { seed, accumulate: 1 })?;
        let images = TorchNoise::shared(0).normal(&[self.batch, 1, 28, 28])?.clamp(-1f32, 1f32)?;
        let labels = Some(Tensor::new(labels, &Device::Cpu)?);
        Ok((trainer, Batch { images, labels, indices: (0..self.batch).collect() }))
    }
}
