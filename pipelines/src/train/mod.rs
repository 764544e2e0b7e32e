//! Training: data -> task -> steps -> model.

mod autoencoder;
mod benchmark;
mod captioned;
mod choices;
mod classifier;
mod embedding;
mod encoded;
mod frozen;
mod judge;
mod latent;
mod lora;
mod objectives;
mod pixel;
mod settings;

pub use autoencoder::AutoencoderTrainingSettings;
pub use benchmark::TrainingBench;
pub use choices::{
    BetaChoice, DecayChoice, HeldChoice, LatentBetaChoice, LoraFormChoice, LoraModulesChoice, MixedPrecisionChoice,
    PredictionChoice, StoredChoice,
};
pub use classifier::{ClassifierTrainingSettings, judge, open_classifier};
pub(crate) use classifier::{classifier_of, open_network};
pub use embedding::EmbeddingTrainingSettings;
pub use frozen::{FrozenModelData, FrozenModelSettings, FrozenModelTraining};
pub use judge::{JudgeTrainingData, JudgeTrainingSettings};
pub use latent::{LatentTrainingData, LatentTrainingSettings, SeenPictures, TrainingModels};
pub use lora::LoraTrainingSettings;
pub use pixel::PixelTrainingSettings;
pub use settings::{CommonSettings, Preparation, TrainingData, TrainingSet, TrainingSettings};

use serde_json::{Value, json};
use std::path::PathBuf;
use tweedie::training::runs::{RunFolder, TrainEvent, TrainObserver, TrainOutcome, train};
use tweedie::training::{Trainer, TrainerOptions, TrainingTask};
use tweedie::{Error, Result};

/// What records call this program.
const PROGRAM: &str = concat!("tweedie ", env!("CARGO_PKG_VERSION"));

/// A run of training as it is asked for.
#[derive(Debug)]
pub struct TrainRequest<S: TrainingSettings> {
    /// What is trained, and how; for a run that goes on, its own settings ([`TrainingSettings::of_run`]), of which those that
    /// change nothing of what is computed may be others.
    pub settings: S,
    /// What it is trained on.
    pub data: S::Data,
    /// The run's folder.
    pub output: PathBuf,
    /// Whether a run that is there goes on.
    pub resume: bool,
}

/// What is found out about a finished model of a kind of training.
type Evaluation<S> = <<S as TrainingSettings>::Task as TrainingTask>::Evaluation;

impl<S: TrainingSettings> TrainRequest<S> {
    /// Trains until the last step, or until the observer breaks.
    ///
    /// # Errors
    /// If settings, data and folder do not fit each other, a step goes astray, or something cannot be written; what
    /// was done up to the last checkpoint is not lost.
    pub fn run(self, observer: &mut TrainObserver<'_>) -> Result<TrainOutcome<Evaluation<S>>> {
        let Self { settings, mut data, output, resume } = self;
        let resumed = if resume { Some(RunFolder::resume(&output)?) } else { None };
        let settings = settings.settled(data.images());
        settings.check()?;
        let config = config(&settings, &data)?;
        if let Some((_, Some(existing))) = &resumed {
            same_run::<S>(existing, &config, &settings)?;
        }
        // What would fail is found before anything is made.
        settings.check_batches(&data)?;
        let (task, sets) = settings.task(&mut data)?;
        let common = settings.common();
        let trainer = Trainer::new(task, sets, TrainerOptions { seed: common.seed, accumulate: common.accumulate })?;
        let (folder, existing) = resumed.map_or_else(|| Ok((RunFolder::create(&output)?, None)), Ok::<_, Error>)?;
        if existing.is_none() {
            folder.write_config(&config)?;
        }
        for warning in settings.warnings() {
            // Whoever wants to stop is heard after the first step.
            let _ = observer(TrainEvent::Warning(warning));
        }
        let mut preparation = Preparation { folder: &output, observer };
        let batches = settings.batches(&data, trainer.task(), &mut preparation)?;
        train(folder, trainer, batches, settings.plan(), observer)
    }
}

/// A run's `config.json`.
fn config<S: TrainingSettings>(settings: &S, data: &S::Data) -> Result<Value> {
    let mut config = json!({
        "program": PROGRAM,
        "settings": settings.write(),
        "data": data.record(),
    });
    for (name, part) in settings.architecture(data)? {
        config[name] = part;
    }
    Ok(config)
}

/// Whether a run may go on with a configuration.
fn same_run<S: TrainingSettings>(existing: &Value, config: &Value, settings: &S) -> Result<()> {
    let refuse = |what: String, value: &Value, was: &Value| {
        let fix = format!("the run has {was}; leave it away to go on, or choose another `output`");
        Err(Error::invalid(what, value, fix))
    };
    if let Some((name, value, was)) = settings.difference(&S::from_config(existing)?) {
        return refuse(format!("`{name}`"), &value, &was);
    }
    for (part, value) in config["data"].as_object().into_iter().flatten() {
        let was = &existing["data"][part];
        if value != was {
            return refuse(format!("the data's {part}"), value, was);
        }
    }
    let parts = config.as_object().into_iter().flatten();
    for (part, fields) in parts.filter(|(part, _)| !["program", "settings", "data"].contains(&part.as_str())) {
        for (name, value) in fields.as_object().into_iter().flatten() {
            let was = &existing[part][name];
            if was != value {
                return refuse(format!("{part}.{name}"), value, was);
            }
        }
    }
    Ok(())
}
