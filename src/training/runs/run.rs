//! A run from its first step, or its newest checkpoint, to the finished model.

use super::metrics_log::OpenedLog;
use super::{LossCurve, MetricsLog, RunCheckpoints, RunFolder};
use crate::training::data::{BatchSource, HeldOutBatch, Loader};
use crate::training::{StepReport, Trainer, TrainingTask};
use crate::{Error, Result};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Steps whose mean loss is the loss of a run.
const LAST: usize = 100;
/// How old the picture of the losses gets.
const OLDEST_CURVES: Duration = Duration::from_secs(30);

/// How long a run is, and what is kept of it when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunPlan {
    /// Steps in all.
    pub steps: u64,
    /// Steps between checkpoints, at least 1.
    pub checkpoint_every: u64,
    /// Steps between pictures of what the networks can do, at least 1; where it is `None`, only after the last step.
    pub sample_every: Option<u64>,
    /// Steps between looks at data that are held out, if any are, at least 1.
    pub validate_every: u64,
    /// After so long a first picture is drawn of what the networks can do, and again whenever that time has doubled, until the first
    /// that is due by its step; `None` waits for that one.
    pub first_look: Option<Duration>,
    /// Images of a batch, by which speed is told.
    pub batch_size: usize,
}

/// What a run tells its caller.
#[derive(Debug)]
#[non_exhaustive]
pub enum TrainEvent<'a> {
    /// Something that the user should know.
    Warning(String),
    /// Work before the first step goes on.
    Preparing {
        /// What is done, such as "encoding pictures".
        what: &'static str,
        /// What it is counted in, such as "pictures".
        unit: &'static str,
        /// How much of it is done.
        done: usize,
        /// How much there is.
        total: usize,
    },
    /// The first step comes next.
    Start {
        /// Steps of the run.
        steps: u64,
        /// Values that are trained.
        parameters: usize,
        /// Steps that were done before.
        done: u64,
    },
    /// A step was done.
    Step {
        /// What it did.
        report: &'a StepReport,
        /// Images of the step.
        images: usize,
    },
    /// A checkpoint was saved.
    Checkpoint(PathBuf),
    /// Pictures of what the networks can do were saved.
    Samples(PathBuf),
    /// The last step is done, and the model is judged.
    Evaluating,
}

/// Is told of every [`TrainEvent`]; breaking at a step saves a checkpoint and stops the run.
pub type TrainObserver<'a> = dyn FnMut(TrainEvent<'_>) -> ControlFlow<()> + 'a;

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutcome<E> {
    /// Steps done in all.
    pub steps: u64,
    /// The mean first loss of the last hundred steps, if any are logged.
    pub loss: Option<f64>,
    /// The model, if the run is finished.
    pub finished: Option<FinishedModel<E>>,
    /// Images per second of this process's steps.
    pub images_per_second: f64,
}

/// A model at the end of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedModel<E> {
    /// Its folder.
    pub path: PathBuf,
    /// What was found out about it.
    pub evaluation: E,
}

/// Trains until the last step of the plan, or until the observer breaks: from the newest good checkpoint in the folder, or
/// from the trainer's first step if there is none. The bits that a run ends with depend on neither how often nor where it
/// was stopped.
///
/// # Errors
/// If the checkpoint is that of another task, a step goes astray, or something cannot be written; what was done up to the
/// last checkpoint is not lost.
pub fn train<T: TrainingTask>(
    folder: RunFolder,
    mut trainer: Trainer<T>,
    mut batches: impl BatchSource<Batch = T::Batch>,
    plan: RunPlan,
    observer: &mut TrainObserver<'_>,
) -> Result<TrainOutcome<T::Evaluation>> {
    let checkpoints = folder.checkpoints();
    let (state, warnings) = checkpoints.newest(trainer.sets())?;
    for warning in warnings {
        // Whoever wants to stop is heard after the first step.
        let _ = observer(TrainEvent::Warning(warning));
    }
    if let Some(state) = state {
        trainer.restore(state)?;
    }
    let OpenedLog { log, curves, warning } = folder.metrics(trainer.steps())?;
    if let Some(warning) = warning {
        let _ = observer(TrainEvent::Warning(warning));
    }
    if trainer.task().checkpoints_are_models() {
        folder.write_rest(|rest| trainer.task().write_rest(rest))?;
    }
    let held_out = batches.held_out()?;
    let looks = Looks::new(plan.first_look);
    Run { folder, checkpoints, trainer, plan, held_out, looks, log, curves, observer }.finish(batches)
}

/// When the run is looked at between the steps at which that is due.
struct Looks {
    start: Instant,
    /// When pictures are drawn next, from the start.
    next: Option<Duration>,
    curves: Instant,
}

impl Looks {
    fn new(first: Option<Duration>) -> Self {
        Self { start: Instant::now(), next: first, curves: Instant::now() }
    }

    fn pictures_are_due(&self) -> bool {
        self.next.is_some_and(|next| self.start.elapsed() >= next)
    }

    fn curves_are_due(&self) -> bool {
        self.curves.elapsed() >= OLDEST_CURVES
    }

    /// After pictures, which were `due` by their step or drawn in between.
    fn drawn(&mut self, due: bool) {
        let next = self.next.map(|_| 2 * self.start.elapsed());
        self.next = if due { None } else { next };
    }
}

/// A run in progress.
struct Run<'a, 'b, T: TrainingTask> {
    folder: RunFolder,
    checkpoints: RunCheckpoints,
    trainer: Trainer<T>,
    plan: RunPlan,
    /// What the networks are not trained on.
    held_out: Vec<HeldOutBatch<T::Batch>>,
    looks: Looks,
    log: MetricsLog,
    curves: Vec<LossCurve>,
    observer: &'a mut TrainObserver<'b>,
}

impl<T: TrainingTask> Run<'_, '_, T> {
    fn finish(mut self, batches: impl BatchSource<Batch = T::Batch>) -> Result<TrainOutcome<T::Evaluation>> {
        let (done, parameters) = (self.trainer.steps(), self.trainer.parameters());
        let _ = (self.observer)(TrainEvent::Start { steps: self.plan.steps, parameters, done });
        let mut loader = Loader::start(batches, done * self.trainer.options().accumulate as u64)?;
        let (mut seconds, mut stopped) = (0.0, false);
        while self.trainer.steps() < self.plan.steps && !stopped {
            let start = Instant::now();
            stopped = self.step(&mut loader)?.is_break();
            seconds += start.elapsed().as_secs_f64();
            self.keep(stopped)?;
        }
        drop(loader);
        if done >= self.plan.steps && !self.curves.is_empty() {
            // It may have been killed before they were drawn.
            self.draw_curves()?;
        }
        let steps = self.trainer.steps();
        let images = (steps - done) as usize * self.images();
        let finished = if steps >= self.plan.steps { Some(self.finished()?) } else { None };
        let loss = self.curves.first().and_then(|curve| curve.mean_of_last(LAST));
        Ok(TrainOutcome { steps, loss, finished, images_per_second: images as f64 / f64::max(seconds, 1e-9) })
    }

    /// Images of a step.
    fn images(&self) -> usize {
        self.plan.batch_size * self.trainer.options().accumulate
    }

    fn step(&mut self, loader: &mut Loader<T::Batch>) -> Result<ControlFlow<()>> {
        let start = Instant::now();
        let report = self.trainer.step(|| loader.next_batch()).map_err(|error| self.with_checkpoint(error))?;
        let mut line = metrics(&report);
        let seconds = (start.elapsed().as_secs_f64() * 1e4).round() / 1e4;
        for loss in &report.losses {
            LossCurve::add(&mut self.curves, loss.name, report.step, loss.value);
        }
        if !self.held_out.is_empty()
            && (report.step.is_multiple_of(self.plan.validate_every) || report.step == self.plan.steps)
        {
            let losses = as_logged(&self.trainer.validate(&self.held_out)?);
            LossCurve::add_all(&mut self.curves, HELD_OUT, report.step, &losses);
            line.insert(VALIDATION.into(), losses);
        }
        line.insert("seconds".into(), seconds.into());
        self.log.append(&Value::Object(line))?;
        let images = self.images();
        Ok((self.observer)(TrainEvent::Step { report: &report, images }))
    }

    /// Saves what is due after a step.
    fn keep(&mut self, stopped: bool) -> Result<()> {
        let step = self.trainer.steps();
        let last = step == self.plan.steps;
        // Before the checkpoint: a process that is killed in between comes here again. A run that cannot be sampled is not lost.
        let due = last || self.plan.sample_every.is_some_and(|every| step.is_multiple_of(every));
        let drawn = match () {
            () if due || self.looks.pictures_are_due() => self.draw(step, due),
            () if stopped || self.looks.curves_are_due() => self.draw_curves(),
            () => Ok(()),
        };
        if stopped || last || drawn.is_err() || step.is_multiple_of(self.plan.checkpoint_every) {
            self.log.sync()?;
            let saved = self.checkpoints.save(&self.trainer.state(), self.trainer.sets())?;
            let _ = (self.observer)(TrainEvent::Checkpoint(saved));
        }
        drawn
    }

    /// Draws the losses so far, and what the networks can do.
    fn draw(&mut self, step: u64, due: bool) -> Result<()> {
        self.draw_curves()?;
        for (suffix, picture) in self.trainer.task().samples(self.trainer.sets())? {
            let path = self.folder.write_samples(&format!("step-{step:06}{suffix}.png"), &picture)?;
            let _ = (self.observer)(TrainEvent::Samples(path));
        }
        self.looks.drawn(due);
        Ok(())
    }

    fn draw_curves(&mut self) -> Result<()> {
        self.looks.curves = Instant::now();
        self.folder.write_loss_curves(&self.curves)
    }

    fn finished(&mut self) -> Result<FinishedModel<T::Evaluation>> {
        let _ = (self.observer)(TrainEvent::Evaluating);
        let (task, sets) = (self.trainer.task(), self.trainer.sets());
        let evaluation = task.evaluate(sets)?;
        self.folder.write_model(|folder| task.write_model(sets, &evaluation, folder))?;
        Ok(FinishedModel { path: self.folder.model(), evaluation })
    }

    fn with_checkpoint(&self, error: Error) -> Error {
        match error {
            Error::Diverged { step, learning_rate, what, .. } => {
                let newest = self.checkpoints.newest_good();
                let checkpoint = newest.map_or("none".into(), |(_, folder)| folder.display().to_string());
                Error::Diverged { step, learning_rate, what, checkpoint }
            }
            other => other,
        }
    }
}

/// A step's line in the log. One loss of one set is told in plain fields; of several, losses and sets have objects with their
/// names in the places of the numbers.
fn metrics(report: &StepReport) -> Map<String, Value> {
    let mut line = Map::from_iter([("step".to_owned(), report.step.into())]);
    if let [loss] = &report.losses[..]
        && let [set] = &loss.sets[..]
        && loss.name == SINGLE
    {
        line.insert("loss".into(), json!(loss.value));
        line.insert("gradient_norm".into(), json!(set.gradient_norm));
        line.insert("learning_rate".into(), json!(set.learning_rate));
        return line;
    }
    let sets = || report.losses.iter().flat_map(|loss| &loss.sets);
    let object = |pairs: &mut dyn Iterator<Item = (&'static str, f64)>| {
        Value::Object(pairs.map(|(name, value)| (name.to_owned(), json!(value))).collect())
    };
    line.insert("loss".into(), object(&mut report.losses.iter().map(|loss| (loss.name, loss.value))));
    line.insert("gradient_norm".into(), object(&mut sets().map(|set| (set.set, set.gradient_norm))));
    line.insert("learning_rate".into(), object(&mut sets().map(|set| (set.set, set.learning_rate))));
    line
}

/// Losses of data that are held out, as a line of the log has them: a number where there is one of that name, else an object.
fn as_logged(losses: &[(&'static str, f64)]) -> Value {
    match losses {
        [(name, loss)] if *name == SINGLE => json!(loss),
        losses => Value::Object(losses.iter().map(|(name, loss)| ((*name).to_owned(), json!(loss))).collect()),
    }
}

/// The name of the loss of a task that has one.
pub(super) const SINGLE: &str = "loss";
/// The curve of that loss on data that are held out, and its name in the log.
pub(super) const HELD_OUT: &str = "held out";
pub(super) const VALIDATION: &str = "validation_loss";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::{LossReport, SetReport};

    #[test]
    fn one_loss_is_a_number_and_several_have_names() {
        let set = |set| SetReport { set, gradient_norm: 2.0, learning_rate: 0.5 };
        let one = LossReport { name: "loss", value: 0.25, sets: vec![set("unet")] };
        let line = metrics(&StepReport { step: 3, losses: vec![one] });
        assert_eq!(Value::Object(line), json!({"step": 3, "loss": 0.25, "gradient_norm": 2.0, "learning_rate": 0.5}));
        let of = |name, sets| LossReport { name, value: 1.0, sets };
        let losses = vec![of("generator", vec![set("a"), set("b")]), of("discriminator", vec![set("c")])];
        let line = Value::Object(metrics(&StepReport { step: 1, losses }));
        assert_eq!(line["loss"], json!({"generator": 1.0, "discriminator": 1.0}));
        assert_eq!(line["gradient_norm"], json!({"a": 2.0, "b": 2.0, "c": 2.0}));
    }
}
