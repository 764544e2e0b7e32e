//! Training a classifier and judging pictures by it.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tweedie::checkpoints::ModelFiles;
use tweedie::config::ConfigFields;
use tweedie::models::{LeNet, LeNetConfig};
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::classification::Judgement;
use tweedie::training::data::{Augmentation, Batches, ImageSet, Loader};
use tweedie::training::{AdamWConfig, ClassifierOptions, ClassifierTrainer, Decay, LearningRate, RunFolder, judge_at};
use tweedie::{DType, Device, Error, Result, Tensor};

/// Timesteps at which a classifier of noisy pictures is judged.
const JUDGED_AT: [usize; 5] = [0, 100, 250, 500, 750];

/// A classifier to train.
#[derive(Debug)]
pub struct ClassifierRequest {
    /// What it is trained on.
    pub train: ImageSet,
    /// What it is judged by, if anything.
    pub test: Option<ImageSet>,
    /// The run's folder, which must not be there yet.
    pub output: PathBuf,
    /// Passes over the data.
    pub epochs: u64,
    /// Steps, in the place of passes.
    pub steps: Option<u64>,
    /// Pictures of a batch.
    pub batch_size: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// The most pixels by which a picture is moved at random.
    pub shift: usize,
    /// The diffusers scheduler configuration whose noisy states it classifies.
    pub scheduler: Option<Value>,
}

/// What a run tells its caller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClassifierEvent {
    /// The first step comes next.
    Start {
        /// Steps of the run.
        steps: u64,
        /// Values that are trained.
        parameters: usize,
    },
    /// A step was done.
    Step {
        /// Steps done.
        step: u64,
        /// Its loss.
        loss: f64,
    },
    /// The test set is judged.
    Judging,
}

/// The share of the test set that is judged right at a timestep; none for clean pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseAccuracy {
    /// The timestep.
    pub timestep: Option<usize>,
    /// Pictures judged right.
    pub correct: usize,
    /// Pictures judged.
    pub total: usize,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierOutcome {
    /// The model's folder.
    pub model: PathBuf,
    /// How it judges the test set.
    pub accuracy: Vec<NoiseAccuracy>,
}

impl ClassifierRequest {
    /// Trains, judges, and writes the model. The observer may break, which stops the run without one.
    ///
    /// # Errors
    /// If settings and data do not fit each other, a step goes astray, or something cannot be written.
    pub fn run(self, observer: &mut dyn FnMut(ClassifierEvent) -> ControlFlow<()>) -> Result<ClassifierOutcome> {
        let schedule = self.schedule()?;
        let config = self.config()?;
        let folder = RunFolder::create(&self.output)?;
        let train = Arc::new(self.train);
        let batches = Batches::new(train, self.batch_size, self.seed)?
            .with_augmentation(Augmentation { shift: self.shift, flip: false });
        let steps = self.steps.unwrap_or_else(|| batches.in_epochs(self.epochs)).max(1);
        let options = ClassifierOptions {
            seed: self.seed,
            learning_rate: LearningRate {
                peak: self.learning_rate,
                warmup_steps: 100.min(steps / 10),
                total_steps: steps,
                decay: Decay::Cosine,
            },
            adamw: AdamWConfig::default(),
            ema_decay: 0.999f64.min(1.0 - 10.0 / steps.max(20) as f64),
            schedule: schedule.clone(),
        };
        let mut trainer = ClassifierTrainer::new(config.clone(), options)?;
        let mut loader = Loader::start(batches, 0)?;
        let (mut log, mut losses) = folder.metrics(0)?;
        let tell = |event, observer: &mut dyn FnMut(ClassifierEvent) -> ControlFlow<()>| match observer(event) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        };
        tell(ClassifierEvent::Start { steps, parameters: trainer.parameters() }, observer)?;
        for step in 1..=steps {
            let loss = trainer.step(&loader.next_batch()?)?;
            log.append(&json!({"step": step, "loss": loss}))?;
            losses.push((step as f64, loss));
            tell(ClassifierEvent::Step { step, loss }, observer)?;
        }
        drop(loader);
        folder.write_loss_curve(&losses)?;
        tell(ClassifierEvent::Judging, observer)?;
        let accuracy = match &self.test {
            Some(test) => accuracy(&trainer.average()?, test, schedule.as_ref(), self.seed)?,
            None => Vec::new(),
        };
        let record = json!({
            "program": concat!("tweedie ", env!("CARGO_PKG_VERSION")),
            "seed": self.seed, "steps": steps, "batch_size": self.batch_size,
            "learning_rate": self.learning_rate, "shift": self.shift,
            "test": accuracy.iter().map(|a| json!({"timestep": a.timestep, "correct": a.correct, "total": a.total}))
                .collect::<Vec<_>>(),
        });
        folder.write_config(&record)?;
        let model = folder.model();
        write(&model, &config, trainer.tensors()?, self.scheduler.as_ref(), &record)?;
        Ok(ClassifierOutcome { model, accuracy })
    }

    fn schedule(&self) -> Result<Option<NoiseSchedule>> {
        let fields = self.scheduler.as_ref().and_then(Value::as_object);
        let fields = fields.map(|fields| ConfigFields::from_fields("scheduler", fields.clone()));
        fields.map(|fields| NoiseSchedule::from_config(&fields)).transpose()
    }

    fn config(&self) -> Result<LeNetConfig> {
        let (set, classes) = (&self.train, self.train.classes());
        if classes.len() < 2 {
            let value = format!("{} classes", classes.len());
            let fix =
                "a classifier tells two or more apart; give IDX files, sub-folders or a metadata.jsonl with labels";
            return Err(Error::invalid("the data set", value, fix));
        }
        if set.height() != set.width() {
            let value = format!("{}x{}", set.width(), set.height());
            return Err(Error::invalid("the pictures' size", value, "the classifier takes squares; give --resize N"));
        }
        Ok(LeNetConfig::new(set.channels(), set.height(), classes.to_vec(), self.scheduler.is_some()))
    }
}

fn accuracy(
    network: &LeNet,
    test: &ImageSet,
    schedule: Option<&NoiseSchedule>,
    seed: u64,
) -> Result<Vec<NoiseAccuracy>> {
    let at = |timestep: Option<usize>| {
        let judgement = judge_at(network, test, schedule.zip(timestep), seed)?;
        Ok(NoiseAccuracy { timestep, correct: judgement.correct(), total: judgement.total() })
    };
    match schedule {
        None => Ok(vec![at(None)?]),
        Some(schedule) => {
            let timesteps = JUDGED_AT.into_iter().filter(|&timestep| timestep < schedule.num_train_timesteps());
            timesteps.map(|timestep| at(Some(timestep))).collect()
        }
    }
}

/// Writes a model folder as a whole: beside its place first, then renamed.
fn write(
    folder: &Path,
    config: &LeNetConfig,
    tensors: BTreeMap<String, Tensor>,
    scheduler: Option<&Value>,
    record: &Value,
) -> Result<()> {
    let staged = folder.with_extension("part");
    if staged.exists() {
        std::fs::remove_dir_all(&staged).map_err(Error::io("remove", &staged))?;
    }
    let mut files = vec![
        ("classifier/config.json", format!("{:#}\n", Value::Object(config.fields()))),
        ("training.json", format!("{record:#}\n")),
    ];
    if let Some(scheduler) = scheduler {
        files.push(("scheduler/scheduler_config.json", format!("{scheduler:#}\n")));
    }
    let weights = staged.join("classifier/diffusion_pytorch_model.safetensors");
    for (name, text) in files {
        save(&staged.join(name), text.as_bytes())?;
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(tensors, Some(metadata))
        .map_err(|e| Error::malformed("safetensors file", &weights, e))?;
    save(&weights, &bytes)?;
    std::fs::rename(&staged, folder).map_err(Error::io("create", folder))
}

fn save(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let mut file = std::fs::File::create(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", path))
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
    let network = LeNet::open(&ModelFiles::folder(classifier)?, &Device::Cpu)?;
    let mut judgement = Judgement::new(network.config().class_names.len());
    let count = pictures.dim(0)?;
    let logits = network.forward(pictures, &Tensor::zeros(count, DType::F32, &Device::Cpu)?)?;
    judgement.add(&logits, asked)?;
    Ok(judgement)
}
