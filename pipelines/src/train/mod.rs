//! Training a network in pixel space: data -> network -> steps -> model.

mod benchmark;
mod sample_grid;
mod settings;

pub use benchmark::TrainingBench;
pub use settings::{BetaChoice, DecayChoice, MixedPrecisionChoice, PredictionChoice, StoredChoice, TrainSettings};

use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tweedie::kernels::{InstructionSet, Products};
use tweedie::layers::Weights;
use tweedie::models::{UNet2DConfig, UNet2DModel};
use tweedie::training::data::{Batches, ImageSet, Loader};
use tweedie::training::{MetricsLog, ParameterSource, PixelModel, RunCheckpoints, RunFolder, StepReport, Trainer};
use tweedie::{DType, Device, Error, Result};

/// A run of training as it is asked for.
#[derive(Debug)]
pub struct TrainRequest {
    /// The images.
    pub data: ImageSet,
    /// The run's folder.
    pub output: PathBuf,
    /// Whether a run that is there goes on.
    pub resume: bool,
    /// The settings that are given, by their names; all others are the defaults, or those of the run that goes on.
    pub given: Map<String, Value>,
}

/// What a run tells its caller.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// Something that the user should know.
    Warning(String),
    /// The first step comes next.
    Start {
        /// All settings.
        settings: &'a TrainSettings,
        /// Values that are trained.
        parameters: usize,
        /// Steps that were done before.
        done: u64,
    },
    /// A step was done.
    Step {
        /// What it did.
        report: StepReport,
        /// Images of the step.
        images: usize,
    },
    /// A checkpoint was saved.
    Checkpoint(PathBuf),
    /// A grid of samples was saved.
    Samples(PathBuf),
}

/// Is told of every [`TrainEvent`]; breaking saves a checkpoint and stops the run.
pub type TrainObserver<'a> = dyn FnMut(TrainEvent<'_>) -> ControlFlow<()> + 'a;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome {
    /// Steps done in all.
    pub steps: u64,
    /// The mean loss of the last hundred steps, if any are logged.
    pub loss: Option<f64>,
    /// The model, if the run is finished.
    pub model: Option<PathBuf>,
    /// Images per second of this process's steps.
    pub images_per_second: f64,
}

impl TrainRequest {
    /// Trains until the last step, or until the observer breaks.
    ///
    /// # Errors
    /// If settings, data and folder do not fit each other, a step goes astray, or something cannot be written; what
    /// was done up to the last checkpoint is not lost.
    pub fn run(self, observer: &mut TrainObserver<'_>) -> Result<TrainOutcome> {
        let resumed = if self.resume { Some(RunFolder::resume(&self.output)?) } else { None };
        let existing = resumed.as_ref().and_then(|(_, config)| config.clone());
        let base = existing.as_ref().map(TrainSettings::from_config).transpose()?;
        let settings = base.clone().unwrap_or_default().with(&self.given, self.data.len())?;
        settings.check()?;
        let network = settings.network(&self.data)?;
        // What would fail is found before anything is made.
        settings.objective()?;
        settings.trainer(&network).check()?;
        let config = json!({
            "program": concat!("tweedie ", env!("CARGO_PKG_VERSION")),
            "settings": settings.to_json()?,
            "data": {
                "images": self.data.len(),
                "classes": self.data.classes(),
                "fingerprint": self.data.fingerprint(),
            },
            "unet": network.to_fields(),
            "scheduler": settings.scheduler(),
        });
        let folder = resumed.map_or_else(|| RunFolder::create(&self.output), |(folder, _)| Ok(folder))?;
        match (&existing, &base) {
            (Some(existing), Some(base)) => same_run(existing, base, &config, &settings)?,
            _ => folder.write_config(&config)?,
        }
        Run::new(folder, settings, network, Arc::new(self.data), observer)?.finish()
    }
}

/// Whether a run may go on with a configuration.
fn same_run(existing: &Value, base: &TrainSettings, config: &Value, settings: &TrainSettings) -> Result<()> {
    let refuse = |what: String, value: &Value, was: &Value| {
        let fix = format!("the run has {was}; leave it away to go on, or choose another --output");
        Err(Error::invalid(what, value, fix))
    };
    if let Some((name, value, was)) = settings.difference(base)? {
        return refuse(format!("--{}", name.replace('_', "-")), &value, &was);
    }
    for part in ["images", "classes", "fingerprint"] {
        let (value, was) = (&config["data"][part], &existing["data"][part]);
        if value != was {
            return refuse(format!("the data's {part}"), value, was);
        }
    }
    for part in ["unet", "scheduler"] {
        let empty = Map::new();
        let was = existing[part].as_object().unwrap_or(&empty);
        for (name, value) in config[part].as_object().unwrap_or(&empty) {
            if was.get(name) != Some(value) {
                return refuse(format!("{part}.{name}"), value, was.get(name).unwrap_or(&Value::Null));
            }
        }
    }
    Ok(())
}

/// A run in progress.
struct Run<'a, 'b> {
    folder: RunFolder,
    checkpoints: RunCheckpoints,
    settings: TrainSettings,
    network: UNet2DConfig,
    set: Arc<ImageSet>,
    trainer: Trainer<UNet2DModel>,
    log: MetricsLog,
    losses: Vec<(f64, f64)>,
    observer: &'a mut TrainObserver<'b>,
}

impl<'a, 'b> Run<'a, 'b> {
    /// At the first step, or where the newest good checkpoint is.
    fn new(
        folder: RunFolder,
        settings: TrainSettings,
        network: UNet2DConfig,
        set: Arc<ImageSet>,
        observer: &'a mut TrainObserver<'b>,
    ) -> Result<Self> {
        let source = ParameterSource::random(settings.seed, &Device::Cpu);
        let weights = Weights::new(&source).with_products(settings.products());
        let model = UNet2DModel::new(&weights, network.clone(), DType::F32)?;
        let mut trainer = Trainer::new(model, source.finish()?, settings.objective()?, settings.trainer(&network))?;
        if settings.products() == Products::Bf16 && !InstructionSet::in_use().multiplies_bf16() {
            let slow = "--mixed-precision bf16 is many times slower than no on this CPU, which has no instructions for products of bf16";
            let _ = observer(TrainEvent::Warning(slow.into()));
        }
        let checkpoints = folder.checkpoints();
        let (state, warnings) = checkpoints.newest(trainer.parameters().layout())?;
        for warning in warnings {
            // Whoever wants to stop is heard after the first step.
            let _ = observer(TrainEvent::Warning(warning));
        }
        if let Some(state) = state {
            trainer.restore(state)?;
        }
        let (log, losses) = folder.metrics(trainer.steps())?;
        Ok(Self { folder, checkpoints, settings, network, set, trainer, log, losses, observer })
    }

    fn finish(mut self) -> Result<TrainOutcome> {
        let done = self.trainer.steps();
        let parameters = self.trainer.parameters().layout().len();
        let _ = (self.observer)(TrainEvent::Start { settings: &self.settings, parameters, done });
        let batches = Batches::new(self.set.clone(), self.settings.batch_size, self.settings.seed)?;
        let mut loader = Loader::start(batches, done * self.settings.accumulate as u64)?;
        let (mut seconds, mut stopped) = (0.0, false);
        while self.trainer.steps() < self.settings.steps && !stopped {
            let start = Instant::now();
            stopped = self.step(&mut loader)?.is_break();
            seconds += start.elapsed().as_secs_f64();
            self.keep(stopped)?;
        }
        let steps = self.trainer.steps();
        let images = (steps - done) as usize * self.settings.batch_size * self.settings.accumulate;
        let last = &self.losses[self.losses.len().saturating_sub(100)..];
        let loss = last.iter().map(|(_, loss)| loss).sum::<f64>() / last.len() as f64;
        let finished = steps >= self.settings.steps;
        if finished {
            self.folder.write_model(&self.model()?)?;
        }
        Ok(TrainOutcome {
            steps,
            loss: (!last.is_empty()).then_some(loss),
            model: finished.then(|| self.folder.model()),
            images_per_second: images as f64 / f64::max(seconds, 1e-9),
        })
    }

    fn step(&mut self, loader: &mut Loader) -> Result<ControlFlow<()>> {
        let start = Instant::now();
        let conditional = self.network.num_classes() > 0;
        let report = self.trainer.step(|| {
            let batch = loader.next_batch()?;
            Ok((batch.images, batch.labels.filter(|_| conditional)))
        });
        let report = report.map_err(|error| self.with_checkpoint(error))?;
        self.losses.push((report.step as f64, report.loss));
        self.log.append(&json!({
            "step": report.step,
            "loss": report.loss,
            "gradient_norm": report.gradient_norm,
            "learning_rate": report.learning_rate,
            "seconds": (start.elapsed().as_secs_f64() * 1e4).round() / 1e4,
        }))?;
        let images = self.settings.batch_size * self.settings.accumulate;
        Ok((self.observer)(TrainEvent::Step { report, images }))
    }

    /// Saves what is due after a step.
    fn keep(&mut self, stopped: bool) -> Result<()> {
        let step = self.trainer.steps();
        let last = step == self.settings.steps;
        if stopped || last || step.is_multiple_of(self.settings.checkpoint_every) {
            self.log.sync()?;
            let saved = self.checkpoints.save(self.trainer.parameters().layout(), &self.trainer.state());
            let _ = (self.observer)(TrainEvent::Checkpoint(saved?));
        }
        if last || step.is_multiple_of(self.settings.sample_every) {
            self.folder.write_loss_curve(&self.losses)?;
            self.write_samples()?;
        }
        Ok(())
    }

    /// Grids of the weights as they are and of their average.
    fn write_samples(&mut self) -> Result<()> {
        let layout = self.trainer.parameters().layout();
        for (values, suffix) in [(self.trainer.parameters().values(), ""), (self.trainer.ema(), "-ema")] {
            let grid = sample_grid::draw(layout, values, &self.network, &self.settings, &self.set)?;
            let path = self.folder.write_samples(&format!("step-{:06}{suffix}.png", self.trainer.steps()), &grid)?;
            let _ = (self.observer)(TrainEvent::Samples(path));
        }
        Ok(())
    }

    fn model(&self) -> Result<PixelModel> {
        let layout = self.trainer.parameters().layout();
        let mut defaults = json!({"steps": sample_grid::STEPS, "guidance_scale": 1.0});
        if self.settings.prediction_type != PredictionChoice::Flow {
            defaults["scheduler"] = sample_grid::SOLVER.into();
        }
        Ok(PixelModel {
            unet_config: Value::Object(self.network.to_fields()),
            weights: layout.tensors(self.trainer.ema())?,
            dtype: self.settings.stored_dtype(),
            scheduler_config: self.settings.scheduler(),
            defaults,
        })
    }

    fn with_checkpoint(&self, error: Error) -> Error {
        match error {
            Error::Diverged { step, learning_rate, what, .. } => {
                let folder = self.checkpoints.newest_folder();
                let checkpoint = folder.map_or("none".into(), |folder| folder.display().to_string());
                Error::Diverged { step, learning_rate, what, checkpoint }
            }
            other => other,
        }
    }
}
