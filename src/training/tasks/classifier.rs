//! Training a classifier, of clean pictures or of noisy ones.

use super::pixel_diffusion::wrong_sets;
use super::{Judgement, cross_entropy, evaluate, write_json};
use crate::config::ConfigFields;
use crate::layers::Weights;
use crate::models::{LeNet, LeNetConfig};
use crate::schedulers::NoiseSchedule;
use crate::training::data::{Batch, ImageSet};
use crate::training::runs::write_tensors;
use crate::training::{
    Draws, FlatWeights, ForwardProcess, OptimizerOptions, ParameterSet, ParameterSource, Stream, TimestepSampling,
    TrainingTask,
};
use crate::{DType, Device, Error, Result, Tensor};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Timesteps at which a classifier of noisy pictures is judged.
const JUDGED_AT: [usize; 5] = [0, 100, 250, 500, 750];

/// The share of the test set that is judged right at a timestep; none for clean pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoiseAccuracy {
    /// The timestep.
    pub timestep: Option<usize>,
    /// Pictures judged right.
    pub correct: usize,
    /// Pictures judged.
    pub total: usize,
}

/// Training of a [`LeNet`] by the cross-entropy of its classes, at timesteps that are drawn evenly if it is one of noisy
/// pictures.
#[derive(Debug)]
pub struct ClassifierTraining {
    network: LeNet,
    seed: u64,
    schedule: Option<NoiseSchedule>,
    scheduler: Option<Map<String, Value>>,
    test: Option<ImageSet>,
    record: Map<String, Value>,
}

impl ClassifierTraining {
    /// The task and its one set of parameters, on the CPU, with initial values drawn from `seed`. A classifier of noisy
    /// pictures has the `scheduler_config.json` of the forward process whose states it learns, which goes with the model.
    ///
    /// # Errors
    /// If a configuration or an option cannot be used, or one says that pictures are noisy and the other does not.
    pub fn new(
        config: LeNetConfig,
        scheduler: Option<Map<String, Value>>,
        seed: u64,
        optimizer: OptimizerOptions,
    ) -> Result<(Self, ParameterSet)> {
        if config.time_embedding.is_some() != scheduler.is_some() {
            let fix = "a classifier of noisy pictures has one and a scheduler, others have neither";
            return Err(Error::invalid("the time embedding", format!("{:?}", config.time_embedding), fix));
        }
        let fields = scheduler.clone().map(|fields| ConfigFields::from_fields("scheduler", fields));
        let schedule = fields.map(|fields| NoiseSchedule::from_config(&fields)).transpose()?;
        let source = ParameterSource::random(seed, &Device::Cpu);
        let network = LeNet::new(config, &Weights::new(&source))?;
        let set = ParameterSet::new("classifier", source.finish()?, optimizer)?;
        Ok((Self { network, seed, schedule, scheduler, test: None, record: Map::new() }, set))
    }

    /// The same, judged by a set in the end.
    #[must_use]
    pub fn judged_by(mut self, test: Option<ImageSet>) -> Self {
        self.test = test;
        self
    }

    /// The same with an account of the training, to which the judgement is added in the model's `training.json`.
    #[must_use]
    pub fn with_record(mut self, record: Map<String, Value>) -> Self {
        self.record = record;
        self
    }

    /// The classifier with the moving average of its weights.
    ///
    /// # Errors
    /// If the set is that of another network.
    pub fn average(&self, set: &ParameterSet) -> Result<LeNet> {
        let weights = FlatWeights::new(set.parameters().layout(), set.average(), &Device::Cpu)?;
        LeNet::new(self.network.config().clone(), &Weights::new(&weights))
    }

    /// States at random timesteps of the schedule, or the pictures themselves, and the timesteps as the network is told them.
    fn states(&self, images: &Tensor, draws: Draws) -> Result<(Tensor, Tensor)> {
        let count = images.dim(0)?;
        let Some(schedule) = &self.schedule else { return clean(images) };
        let sampling = TimestepSampling::Uniform { timesteps: schedule.num_train_timesteps() };
        let timesteps = sampling.draw(count, &mut draws.generator(Stream::Timesteps)).timesteps;
        at_timesteps(images, schedule, &timesteps, draws)
    }
}

impl TrainingTask for ClassifierTraining {
    type Batch = Batch;
    type Evaluation = Vec<NoiseAccuracy>;

    fn loss(&mut self, _: usize, batch: &Batch, draws: Draws) -> Result<Tensor> {
        let Some(labels) = &batch.labels else {
            let fix = "a classifier is trained on labelled pictures: IDX files, sub-folders or a metadata.jsonl";
            return Err(Error::invalid("the data set", "not labelled", fix));
        };
        let (x, timesteps) = self.states(&batch.images, draws)?;
        cross_entropy(&self.network.forward(&x, &timesteps)?, labels)
    }

    fn evaluate(&self, sets: &[ParameterSet]) -> Result<Vec<NoiseAccuracy>> {
        let [set] = sets else { return Err(wrong_sets(sets)) };
        let Some(test) = &self.test else { return Ok(Vec::new()) };
        let network = self.average(set)?;
        let at = |timestep: Option<usize>| {
            let judgement = judge_at(&network, test, self.schedule.as_ref().zip(timestep), self.seed)?;
            Ok(NoiseAccuracy { timestep, correct: judgement.correct(), total: judgement.total() })
        };
        match &self.schedule {
            None => Ok(vec![at(None)?]),
            Some(schedule) => {
                let timesteps = JUDGED_AT.into_iter().filter(|&timestep| timestep < schedule.num_train_timesteps());
                timesteps.map(|timestep| at(Some(timestep))).collect()
            }
        }
    }

    fn write_model(&self, sets: &[ParameterSet], evaluation: &Vec<NoiseAccuracy>, folder: &Path) -> Result<()> {
        let [set] = sets else { return Err(wrong_sets(sets)) };
        let mut record = self.record.clone();
        let test = evaluation.iter();
        let test = test.map(|a| json!({"timestep": a.timestep, "correct": a.correct, "total": a.total}));
        record.insert("test".into(), test.collect());
        write_json(folder, "classifier/config.json", &Value::Object(self.network.config().fields()))?;
        write_json(folder, "training.json", &Value::Object(record))?;
        if let Some(scheduler) = &self.scheduler {
            write_json(folder, "scheduler/scheduler_config.json", &Value::Object(scheduler.clone()))?;
        }
        write_tensors(&folder.join("classifier/diffusion_pytorch_model.safetensors"), set.tensors()?)
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
        let (x, timesteps) = match noise {
            None => clean(images)?,
            Some((schedule, timestep)) => {
                let draws = Draws::new(seed, batch.replace(batch.get() + 1));
                at_timesteps(images, schedule, &vec![timestep; images.dim(0)?], draws)?
            }
        };
        network.forward(&x, &timesteps)
    })
}

/// Pictures as they are, and timesteps that say so.
fn clean(images: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok((images.clone(), Tensor::zeros(images.dim(0)?, DType::F32, images.device())?))
}

/// `alpha_t x_0 + sigma_t epsilon`, and the timesteps as the network is told them.
fn at_timesteps(
    images: &Tensor,
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    draws: Draws,
) -> Result<(Tensor, Tensor)> {
    let process = ForwardProcess::Diffusion(schedule.clone());
    let levels = process.levels(timesteps)?;
    let x = process.states(images, &draws.noise(images)?, &levels)?;
    let told: Vec<f32> = levels.iter().map(|level| level.timestep as f32).collect();
    Ok((x, Tensor::from_vec(told, timesteps.len(), images.device())?))
}
