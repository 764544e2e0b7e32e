//! Settings of training a classifier, and judging pictures by one.

use super::choices::BetaChoice;
use super::component::Component;
use super::settings::{
    CommonSettings, Preparation, TrainingData, TrainingSettings, at_least_one, ddpm_scheduler, setting, switch,
    zero_or_above,
};
use crate::model::folder_of_model;
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{option, options, serde_by_options};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tweedie::checkpoints::ModelFiles;
use tweedie::layers::Weights;
use tweedie::models::{LeNet, LeNetConfig};
use tweedie::training::data::{Augmentation, Batches, ImageSet};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{ClassifierTraining, Judgement};
use tweedie::training::{OptimizerOptions, ParameterSet};
use tweedie::{DType, Device, Error, Result, Tensor};

/// Passes over the data where nothing is said.
const EPOCHS: u64 = 6;

options! {
    /// Settings of training a classifier of small pictures. The defaults are for MNIST.
    #[derive(Debug, Clone, PartialEq)]
    pub struct ClassifierTrainingSettings {
        flat {
            /// What all kinds of training have.
            common: CommonSettings;
        }
        options {
            /// Passes over the data.
            epochs: Option<u64> = None => option(OptionKind::Count, "N").default("6");
            /// Steps of the run, in the place of `epochs`.
            steps: Option<u64> = None => setting(OptionKind::Count, "N").excluded_by("epochs");
            /// Learning rate after the warm-up.
            learning_rate: f64 = 2e-3 => setting(OptionKind::Number, "F");
            /// Steps over which the learning rate rises.
            warmup_steps: Option<u64> = None => setting(OptionKind::Count, "N").default("100, at most a tenth of all");
            /// Largest norm of the gradient; 0 does not cut it.
            grad_clip: f64 = 0.0 => setting(OptionKind::Number, "F");
            /// Decay of the moving average of weights, which is the classifier in the end.
            ema_decay: Option<f64> = None => setting(OptionKind::Number, "F").default("0.999, less in short runs");
            /// The most pixels by which pictures are moved at random.
            shift: usize = 2 => setting(OptionKind::Count, "N");
            /// Train it on noisy pictures, so that it can guide sampling.
            noisy: bool = false => switch(FlagValue::On);
            /// With `noisy`, how betas grow.
            beta_schedule: BetaChoice = BetaChoice::Cosine => setting(OptionKind::Choice(BetaChoice::NAMES), "NAME");
            /// With `noisy`, the number of training timesteps.
            timesteps: usize = 1000 => setting(OptionKind::Count, "N");
        }
    }
}

impl Default for ClassifierTrainingSettings {
    fn default() -> Self {
        Self::of(CommonSettings::default())
    }
}

serde_by_options!(ClassifierTrainingSettings);

impl TrainingSettings for ClassifierTrainingSettings {
    type Data = TrainingData;
    type Task = ClassifierTraining;
    type Batches = Batches;

    const FREE: &'static [&'static str] = &[];

    fn common(&self) -> &CommonSettings {
        &self.common
    }

    fn settled(mut self, data: &TrainingData) -> Self {
        let length = (&mut self.steps, &mut self.epochs);
        self.common.settle_short(length, (EPOCHS, data), (&mut self.warmup_steps, &mut self.ema_decay));
        self
    }

    fn check(&self) -> Result<()> {
        self.common.check()?;
        at_least_one("steps", self.plan().steps)?;
        zero_or_above("grad_clip", self.grad_clip)
    }

    fn architecture(&self, data: &TrainingData) -> Result<Map<String, Value>> {
        let mut parts = Map::from_iter([("classifier".to_owned(), Value::Object(self.network(&data.train)?.fields()))]);
        if let Some(scheduler) = self.scheduler() {
            parts.insert("scheduler".into(), Value::Object(scheduler));
        }
        Ok(parts)
    }

    fn task(&self, data: &mut TrainingData) -> Result<(ClassifierTraining, Vec<ParameterSet>)> {
        let (network, seed) = (self.network(&data.train)?, self.common.seed);
        let (task, set) = ClassifierTraining::new(network, self.scheduler(), seed, self.optimizer())?;
        Ok((task.judged_by(data.test.take()).with_record(self.record()), vec![set]))
    }

    fn check_batches(&self, data: &TrainingData) -> Result<()> {
        self.batches_of(&data.train).map(drop)
    }

    fn batches(&self, data: &TrainingData, _: &ClassifierTraining, _: &mut Preparation<'_, '_>) -> Result<Batches> {
        self.batches_of(&data.train)
    }

    fn plan(&self) -> RunPlan {
        RunPlan { steps: self.steps.unwrap_or(0), ..self.common.plan() }
    }
}

impl ClassifierTrainingSettings {
    fn batches_of(&self, set: &Arc<ImageSet>) -> Result<Batches> {
        self.common.batches(set, Augmentation { shift: self.shift, ..Augmentation::default() })
    }

    /// How the classifier's parameters are moved.
    fn optimizer(&self) -> OptimizerOptions {
        let warmup_steps = self.warmup_steps.unwrap_or(0);
        let learning_rate = self.common.learning_rate(self.learning_rate, warmup_steps, self.plan().steps);
        self.common.optimizer(learning_rate, self.grad_clip, self.ema_decay.unwrap_or(0.0))
    }

    /// The diffusers scheduler configuration whose noisy states it classifies.
    fn scheduler(&self) -> Option<Map<String, Value>> {
        self.noisy.then(|| ddpm_scheduler(self.beta_schedule, self.timesteps))
    }

    /// What the model says of its training.
    fn record(&self) -> Map<String, Value> {
        let record = json!({
            "program": super::PROGRAM, "seed": self.common.seed, "steps": self.steps,
            "batch_size": self.common.batch_size, "learning_rate": self.learning_rate, "shift": self.shift,
        });
        record.as_object().cloned().unwrap_or_default()
    }

    fn network(&self, set: &ImageSet) -> Result<LeNetConfig> {
        let classes = set.classes();
        if classes.len() < 2 {
            let value = format!("{} classes", classes.len());
            let fix =
                "a classifier tells two or more apart; give IDX files, sub-folders or a metadata.jsonl with labels";
            return Err(Error::invalid("the data set", value, fix));
        }
        if set.height() != set.width() {
            let value = format!("{}x{}", set.width(), set.height());
            let fix = "the classifier takes squares; give a number of pixels to `resize` them to";
            return Err(Error::invalid("the pictures' size", value, fix));
        }
        Ok(LeNetConfig::new(set.channels(), set.height(), classes.to_vec(), self.noisy))
    }
}

/// The classifier of a model folder: `classifier/config.json` and the weights beside it.
///
/// # Errors
/// If there is none, or its files do not fit each other.
pub fn open_classifier(model: &Path) -> Result<LeNet> {
    classifier_of(&ModelFiles::folder(&classifier_folder(model))?)
}

/// Where the model of a classifier is that a folder stands for, perhaps that of its run.
pub(crate) fn classifier_folder(path: &Path) -> PathBuf {
    folder_of_model(path, has_classifier)
}

/// Whether a folder has a classifier.
pub(crate) fn has_classifier(folder: &Path) -> bool {
    folder.join("classifier/config.json").is_file()
}

/// The same of files that need not be a folder's.
pub(crate) fn classifier_of(files: &ModelFiles) -> Result<LeNet> {
    let classifier = Component::of(files.clone(), "classifier")?;
    let config = LeNetConfig::from_fields(classifier.fields())?;
    classifier.build(|weights| LeNet::new(config, &Weights::new(weights)))
}

/// Judges pictures by the classifier of a model folder: each was asked to be of one class. A classifier of noisy
/// pictures takes them as free of noise.
///
/// # Shapes
/// `pictures`: `[batch, channels, height, width]` in `[-1, 1]`; `asked`: a class for each.
///
/// # Errors
/// If there is no classifier, or pictures or classes are not such as it knows.
pub fn judge(classifier: &Path, pictures: &Tensor, asked: &[u32]) -> Result<Judgement> {
    let network = open_classifier(classifier)?;
    let mut judgement = Judgement::new(network.config().class_names.len());
    let count = pictures.dim(0)?;
    let logits = network.forward(pictures, &Tensor::zeros(count, DType::F32, &Device::Cpu)?)?;
    judgement.add(&logits, asked)?;
    Ok(judgement)
}
