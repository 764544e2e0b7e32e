//! Training a classifier, of clean pictures or of noisy ones.

use super::classification::{Judgement, cross_entropy, evaluate};
use super::data::{Batch, ImageSet};
use super::{AdamW, AdamWConfig, Ema, FlatWeights, LearningRate, ParameterSource, Parameters, Stream, Streams};
use crate::layers::{Weights, with_gradients};
use crate::models::{LeNet, LeNetConfig};
use crate::schedulers::NoiseSchedule;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// How a classifier is trained.
#[derive(Debug, Clone)]
pub struct ClassifierOptions {
    /// Everything random comes from it.
    pub seed: u64,
    /// The learning rate over the run.
    pub learning_rate: LearningRate,
    /// The optimiser's constants.
    pub adamw: AdamWConfig,
    /// The decay of the moving average of weights, which is the classifier in the end.
    pub ema_decay: f64,
    /// The forward process whose states it classifies, for one of noisy pictures.
    pub schedule: Option<NoiseSchedule>,
}

/// A classifier in training.
#[derive(Debug)]
pub struct ClassifierTrainer {
    network: LeNet,
    parameters: Parameters,
    optimizer: AdamW,
    ema: Ema,
    options: ClassifierOptions,
    step: u64,
}

impl ClassifierTrainer {
    /// A classifier before its first step.
    ///
    /// # Errors
    /// If the configuration cannot be used, or one says that pictures are noisy and the other does not.
    pub fn new(config: LeNetConfig, options: ClassifierOptions) -> Result<Self> {
        if config.time_embedding.is_some() != options.schedule.is_some() {
            let fix = "a classifier of noisy pictures has one and a schedule, others have neither";
            return Err(Error::invalid("the time embedding", format!("{:?}", config.time_embedding), fix));
        }
        let source = ParameterSource::random(options.seed, &Device::Cpu);
        let network = LeNet::new(config, &Weights::new(&source))?;
        let parameters = source.finish()?;
        Ok(Self {
            optimizer: AdamW::new(options.adamw, parameters.layout().len()),
            ema: Ema::new(parameters.values(), options.ema_decay, true),
            step: 0,
            network,
            parameters,
            options,
        })
    }

    /// The number of values that are trained.
    pub fn parameters(&self) -> usize {
        self.parameters.layout().len()
    }

    /// One step on a batch; gives the loss.
    ///
    /// # Errors
    /// If the batch has no labels or others than the classifier's, or the loss is not finite.
    pub fn step(&mut self, batch: &Batch) -> Result<f64> {
        let Some(labels) = &batch.labels else {
            let fix = "a classifier is trained on labelled pictures: IDX files, sub-folders or a metadata.jsonl";
            return Err(Error::invalid("the data set", "not labelled", fix));
        };
        let (x, timesteps) = noisy(&batch.images, self.options.schedule.as_ref(), self.options.seed, self.step)?;
        let (loss, (), gradients) = with_gradients(x.device(), || {
            Ok::<_, Error>((cross_entropy(&self.network.forward(&x, &timesteps)?, labels)?, ()))
        })?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        let learning_rate = self.options.learning_rate.at(self.step);
        if !value.is_finite() {
            let fix = format!("choose a lower learning rate than {learning_rate:e}");
            return Err(Error::invalid(format!("the loss of step {}", self.step + 1), value, fix));
        }
        let mut sums = vec![0.0; self.parameters()];
        self.parameters.add_gradients(&gradients, &mut sums)?;
        let optimizer = &mut self.optimizer;
        self.parameters.update(|weights| optimizer.step(weights, &sums, learning_rate))?;
        self.ema.update(self.parameters.values());
        self.step += 1;
        Ok(value)
    }

    /// The classifier with the moving average of its weights.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn average(&self) -> Result<LeNet> {
        let weights = FlatWeights::new(self.parameters.layout(), &self.ema.values, &Device::Cpu)?;
        LeNet::new(self.network.config().clone(), &Weights::new(&weights))
    }

    /// The average's tensors by their names.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.parameters.layout().tensors(&self.ema.values)
    }
}

/// Judges a set, each picture with the noise of one timestep if there is one.
///
/// # Errors
/// If the set is not labelled, or does not fit the classifier.
pub fn judge_at(
    network: &LeNet,
    set: &ImageSet,
    noise: Option<(&NoiseSchedule, usize)>,
    seed: u64,
) -> Result<Judgement> {
    let batch = std::cell::Cell::new(0);
    evaluate(set, network.config().class_names.len(), |images| {
        let count = images.dim(0)?;
        let Some((schedule, timestep)) = noise else {
            return network.forward(images, &Tensor::zeros(count, candle_core::DType::F32, &Device::Cpu)?);
        };
        let index = batch.replace(batch.get() + 1);
        let (x, timesteps) = at_timesteps(images, schedule, &vec![timestep; count], seed, index)?;
        network.forward(&x, &timesteps)
    })
}

/// States at random timesteps of a schedule, or the pictures themselves.
fn noisy(images: &Tensor, schedule: Option<&NoiseSchedule>, seed: u64, step: u64) -> Result<(Tensor, Tensor)> {
    let count = images.dim(0)?;
    let Some(schedule) = schedule else {
        return Ok((images.clone(), Tensor::zeros(count, candle_core::DType::F32, &Device::Cpu)?));
    };
    let mut generator = Streams::new(seed).generator(Stream::Timesteps, step);
    let steps = schedule.num_train_timesteps() as u64;
    let timesteps: Vec<usize> =
        (0..count).map(|_| ((u64::from(generator.next_u32()) * steps) >> 32) as usize).collect();
    at_timesteps(images, schedule, &timesteps, seed, step)
}

/// `alpha_t x_0 + sigma_t epsilon`, and the timesteps as the network is told them.
fn at_timesteps(
    images: &Tensor,
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    seed: u64,
    index: u64,
) -> Result<(Tensor, Tensor)> {
    let levels = timesteps.iter().map(|&timestep| schedule.level(timestep)).collect::<Result<Vec<_>>>()?;
    let column = |values: Vec<f32>| Tensor::from_vec(values, (timesteps.len(), 1, 1, 1), &Device::Cpu);
    let alpha = column(levels.iter().map(|level| level.alpha as f32).collect())?;
    let sigma = column(levels.iter().map(|level| level.sigma as f32).collect())?;
    let noise = Streams::new(seed).generator(Stream::Noise, index).normal(images.elem_count());
    let noise = Tensor::from_vec(noise, images.dims(), &Device::Cpu)?;
    let x = (images.broadcast_mul(&alpha)? + noise.broadcast_mul(&sigma)?)?;
    let told: Vec<f32> = timesteps.iter().map(|&timestep| timestep as f32).collect();
    Ok((x, Tensor::from_vec(told, timesteps.len(), &Device::Cpu)?))
}
