//! Small models of digits, trained on the way.

use super::{Outcome, RowProgress};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use tweedie::training::data::{FolderOptions, ImageSet, Split, read_set};
use tweedie::training::runs::TrainEvent;
use tweedie_pipelines::{
    CommonSettings, PixelModel, PixelPipeline, PixelRequest, PixelTrainingSettings, TrainRequest, TrainingData,
};

/// Pictures of a step.
const BATCH: usize = 32;
/// How much more a step of training is than an evaluation of its pictures: the gradients are two more.
const STEP: f64 = 3.0;

/// Steps in which digits of trained models are drawn.
pub const SAMPLING_STEPS: usize = 50;

/// A model that was trained.
#[derive(Debug)]
pub struct Trained {
    /// The model.
    pub pipeline: PixelPipeline,
    /// Values that were trained.
    pub parameters: usize,
    /// The mean loss of the last hundred steps.
    pub loss: f64,
    /// Seconds of all steps.
    pub seconds: f64,
}

/// MNIST's training digits.
///
/// # Errors
/// If they are not there.
pub fn digits(data: &Path) -> Outcome<Arc<ImageSet>> {
    Ok(Arc::new(read_set(data, Split::Train, FolderOptions::default())?))
}

/// Settings of a model that two cores train in minutes, told the digits' classes and not guided.
pub fn small(steps: u64) -> PixelTrainingSettings {
    let common = CommonSettings { batch_size: BATCH, checkpoint_every: 100, ..CommonSettings::default() };
    PixelTrainingSettings {
        common,
        steps,
        channels: vec![16, 32, 64],
        class_dropout: 0.0,
        warmup_steps: (steps / 10).min(100),
        // The average is over the last tenth or so.
        ema_decay: 0.999f64.min(1.0 - 10.0 / steps.max(20) as f64),
        ..PixelTrainingSettings::default()
    }
}

/// The work of so many steps.
pub fn work(steps: u64) -> f64 {
    STEP * (BATCH as u64 * steps) as f64
}

/// The folder's name of a run, from words.
pub fn run_name(words: &str) -> String {
    words.replace(", ", "-").replace(' ', "-")
}

/// Trains a model in the run's folder, or goes on with the run that is there.
///
/// # Errors
/// If the run is another, or a step fails.
pub fn train(
    settings: PixelTrainingSettings,
    data: &Arc<ImageSet>,
    run: &Path,
    progress: &mut RowProgress<'_>,
) -> Outcome<Trained> {
    let steps = settings.steps;
    let request = TrainRequest {
        settings,
        data: TrainingData { train: data.clone(), test: None },
        output: run.into(),
        resume: true,
    };
    let mut trained = 0;
    let outcome = progress.part(work(steps), |watch| {
        Ok(request.run(&mut |event| {
            match event {
                TrainEvent::Step { report, .. } => return watch(report.step as usize, steps as usize),
                TrainEvent::Start { parameters, .. } => trained = parameters,
                TrainEvent::Warning(text) => eprintln!("warning: {text}"),
                _ => {}
            }
            ControlFlow::Continue(())
        })?)
    })?;
    let pipeline = PixelPipeline::builder().model(PixelModel::at(run.into())?).build()?;
    let loss = outcome.loss.ok_or("the run has no loss")?;
    Ok(Trained { pipeline, parameters: trained, loss, seconds: seconds(run)? })
}

/// What is asked of a trained model: DDIM from the last timestep on, without guidance.
pub fn request() -> PixelRequest {
    PixelRequest {
        scheduler: Some("ddim".into()),
        scheduler_config: Map::from_iter([("timestep_spacing".to_owned(), json!("trailing"))]),
        steps: Some(SAMPLING_STEPS),
        guidance_scale: Some(1.0),
        ..PixelRequest::default()
    }
}

/// The seconds of all steps of a run, by its log, whichever processes did them.
fn seconds(run: &Path) -> Outcome<f64> {
    let log = std::fs::read_to_string(run.join("metrics.jsonl"))?;
    let of_line = |line: &str| serde_json::from_str::<Value>(line).ok()?["seconds"].as_f64();
    Ok(log.lines().filter_map(of_line).sum())
}
