//! Training: data -> task -> steps -> model.

mod autoencoder;
mod benchmark;
mod captioned;
mod choices;
mod classifier;
mod component;
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
pub(crate) use classifier::{classifier_folder, classifier_of, has_classifier};
pub(crate) use component::Component;
pub use embedding::EmbeddingTrainingSettings;
pub use frozen::{FrozenModelData, FrozenModelSettings, FrozenModelTraining};
pub use judge::{JudgeTrainingData, JudgeTrainingSettings};
pub use latent::{LatentTrainingData, LatentTrainingSettings, SeenPictures, TrainingModels};
pub use lora::LoraTrainingSettings;
pub use pixel::PixelTrainingSettings;
use settings::START;

pub use settings::{CommonSettings, Preparation, SharedSettings, TrainingData, TrainingSet, TrainingSettings};

use serde_json::Value;
use std::path::PathBuf;
use tweedie::training::runs::{RunFolder, TrainEvent, TrainObserver, TrainOutcome, train};
use tweedie::training::{Decay, LearningRate, Trainer, TrainerOptions, TrainingTask};
use tweedie::{Error, Result};

/// What records call this program.
const PROGRAM: &str = concat!("tweedie ", env!("CARGO_PKG_VERSION"));

/// A run of training as it is asked for.
///
/// # Examples
///
/// ```
/// use std::ops::ControlFlow;
/// use std::sync::Arc;
/// use tweedie::training::data::ImageSet;
/// use tweedie_pipelines::{PixelModel, PixelPipeline, PixelRequest, PixelTrainingSettings, TrainRequest, TrainingData};
///
/// let pictures = (0..4 * 64).map(|i| if i % 8 < 4 { 230 } else { 20 }).collect();
/// let set = ImageSet::new([1, 8, 8], pictures)?;
/// let folder = tempfile::tempdir()?;
/// let run = TrainRequest {
///     settings: PixelTrainingSettings { steps: 2, channels: vec![4, 8], ..PixelTrainingSettings::default() },
///     data: TrainingData { train: Arc::new(set), test: None },
///     output: folder.path().join("run"),
///     resume: false,
/// };
/// let outcome = run.run(&mut |_| ControlFlow::Continue(()))?;
/// assert_eq!(outcome.steps, 2);
/// let pipeline = PixelPipeline::builder().model(PixelModel::at(folder.path().join("run"))?).build()?;
/// assert_eq!(pipeline.generate(&PixelRequest { steps: Some(2), ..PixelRequest::default() })?[0].width(), 8);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
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
        let settings = settings.settled(&data);
        settings.check()?;
        let mut config = config(&settings, &data)?;
        let length = match &resumed {
            Some((folder, Some(existing))) => {
                same_run::<S>(existing, &config, &settings)?;
                config["program"] = existing["program"].clone();
                NewLength::of(existing, settings.plan().steps, folder)?
            }
            _ => {
                settings.check_start()?;
                None
            }
        };
        // What would fail is found before anything is made.
        settings.check_batches(&data)?;
        let (task, sets) = settings.task(&mut data)?;
        let common = settings.common();
        let mut trainer =
            Trainer::new(task, sets, TrainerOptions { seed: common.seed, accumulate: common.accumulate })?
                .with_recomputation(settings.recomputes());
        let (folder, existing) = resumed.map_or_else(|| Ok((RunFolder::create(&output)?, None)), Ok::<_, Error>)?;
        let is_new = existing.is_none();
        // A run that goes on may have another length, and other settings that change nothing, such as where a model is.
        if existing.is_none_or(|existing| existing != config) {
            folder.write_config(&config)?;
        }
        let mut warnings = settings.warnings();
        if let Some(length) = &length {
            warnings.extend(trainer.sets().first().map(|set| length.described(set.learning_rate())));
        }
        warnings.extend(data.unused());
        for warning in warnings {
            // Whoever wants to stop is heard after the first step.
            let _ = observer(TrainEvent::Warning(warning));
        }
        let mut preparation = Preparation { folder: &output, observer };
        let mut begin = || {
            let batches = settings.batches(&data, trainer.task(), &mut preparation)?;
            if folder.checkpoints().newest_good().is_none() {
                settings.begin(&data, &batches, &mut trainer, &mut preparation)?;
            }
            Ok(batches)
        };
        let batches = match begin() {
            // Who was stopped goes on from here; who cannot begin starts anew with other options.
            Err(error) if is_new && !matches!(error, Error::Cancelled) => {
                folder.withdraw();
                return Err(error);
            }
            begun => begun?,
        };
        train(folder, trainer, batches, settings.plan(), observer)
    }
}

/// A run's `config.json`.
fn config<S: TrainingSettings>(settings: &S, data: &S::Data) -> Result<Value> {
    let mut config = Value::Object(settings.account());
    config["data"] = data.record().into();
    for (name, part) in settings.architecture(data)? {
        config[name] = part;
    }
    Ok(config)
}

/// Another number of steps than a run has had so far.
struct NewLength {
    was: u64,
    steps: u64,
    /// Steps done.
    done: u64,
}

impl NewLength {
    /// What a run is to have, if that is something new.
    ///
    /// # Errors
    /// If more is done already.
    fn of(existing: &Value, steps: u64, folder: &RunFolder) -> Result<Option<Self>> {
        let Some(was) = existing["settings"]["steps"].as_u64().filter(|was| *was != steps) else { return Ok(None) };
        let done = folder.checkpoints().newest_good().map_or(0, |(step, _)| step);
        if steps < done {
            let fix = format!("the run has done {done} already; give as many to end it there, or more");
            return Err(Error::invalid("`steps`", steps, fix));
        }
        Ok(Some(Self { was, steps, done }))
    }

    /// What becomes of the learning rate.
    fn described(&self, rate: LearningRate) -> String {
        let Self { was, steps, done } = *self;
        let beginning = format!("the run was to have {was} steps and has {steps} from now on");
        let before = LearningRate { total_steps: was, ..rate };
        let (next, last) = (done + 1, steps.max(done + 1));
        if steps == done {
            return format!("{beginning}, which are done: its model is made of them");
        }
        if rate.decay == Decay::Constant {
            return format!("{beginning}; its learning rate stays {:.3e}", rate.at(done));
        }
        format!(
            "{beginning}: the learning rate follows the schedule of so many steps, {:.3e} at step {next} where it would have \
             been {:.3e}, and {:.3e} at step {last}, the last",
            rate.at(done),
            before.at(done),
            rate.at(last - 1),
        )
    }
}

/// In what the data of a run that goes on differ from those that it was started with, in words.
fn other_data(was: &Value, is: &Value) -> String {
    let counted = |name: &str| {
        let (was, is) = (was[name].as_u64()?, is[name].as_u64()?);
        (was != is).then(|| format!("{is} {name} in the place of {was}"))
    };
    let mut differences: Vec<String> = ["images", "captions"].into_iter().filter_map(counted).collect();
    let size = |data: &Value| Some(format!("{}x{}", data["width"].as_u64()?, data["height"].as_u64()?));
    if let (Some(was), Some(is)) = (size(was), size(is))
        && was != is
    {
        differences.push(format!("pictures of {is} in the place of {was}"));
    }
    if was["classes"] != is["classes"] {
        let classes = |data: &Value| data["classes"].as_array().map_or(0, Vec::len);
        differences.push(format!("other classes, {} in the place of {}", classes(is), classes(was)));
    }
    match differences.is_empty() {
        true => "of as many pictures as the run's, but other ones, or with other labels or captions".into(),
        false => format!("other than the run's: {}", differences.join(", ")),
    }
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
    if config["data"] != existing["data"] {
        let fix = "go on with the data that the run was started with, or choose another `output`";
        return Err(Error::invalid("the data", other_data(&existing["data"], &config["data"]), fix));
    }
    let parts = config.as_object().into_iter().flatten();
    for (part, fields) in parts.filter(|(part, _)| !["program", "settings", "data", START].contains(&part.as_str())) {
        for (name, value) in fields.as_object().into_iter().flatten() {
            let was = &existing[part][name];
            if was != value {
                return refuse(format!("{part}.{name}"), value, was);
            }
        }
    }
    same_start(existing, config)
}

/// Whether a run that goes on has the weights that it started from, where it started from some.
fn same_start(existing: &Value, config: &Value) -> Result<()> {
    let (was, is) = (&existing[START], &config[START]);
    let name = [was, is].into_iter().filter_map(Value::as_object).find_map(|start| start.keys().next());
    // Earlier versions did not write down what it was.
    let is_unknown = was.is_null() && name.is_some_and(|name| !existing["settings"][name].is_null());
    match name {
        Some(name) if was != is && !is_unknown => {
            let fix = "leave it away, or name where that model is now, to go on; or choose another `output`";
            Err(Error::invalid(format!("`{name}`"), "another model than the run started from", fix))
        }
        _ => Ok(()),
    }
}
