//! What `tweedie train` does alike, whatever is trained.

use super::progress::TrainProgress;
use crate::cli::data::DataArguments;
use crate::cli::failure::{Stopped, unless_stopped};
use crate::cli::interrupt::Interrupt;
use crate::cli::print;
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;
use tweedie::training::TrainingTask;
use tweedie::training::runs::{FinishedModel, RunFolder, TrainOutcome, UnfinishedRun};
use tweedie_pipelines::{DeviceChoice, TrainRequest, TrainingSettings};

#[derive(Debug, Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub data: DataArguments,

    /// The run's folder, which must not be there yet, unless the run goes on; the finished model is in its folder model
    #[arg(long, value_name = "RUN_DIR")]
    output: PathBuf,

    /// Go on from the newest checkpoint, with the settings of the run; start anew if there is none. With --steps or --epochs the run
    /// becomes longer or shorter; with as many steps as are done it ends there
    #[arg(long)]
    resume: bool,

    /// Where to compute: auto or cpu, since training computes on the CPU alone
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,

    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,

    /// Show nothing but warnings and errors
    #[arg(long, short)]
    pub quiet: bool,
}

/// What a user does next with what was trained.
pub trait Next {
    /// Commands after a run in a folder on data in a folder, both as a shell takes them.
    fn next(&self, run: &str, data: &str) -> Vec<String>;
}

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+=@%,:".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// What data are loaded for.
pub struct Loading<'a, S> {
    pub data: &'a DataArguments,
    pub settings: &'a S,
    /// The configuration of the run that goes on, if one does.
    pub run: Option<&'a Value>,
    pub interrupt: &'a Interrupt,
    pub quiet: bool,
}

/// What was found out about a finished model, as the user sees it.
pub trait Account {
    /// Fields of the JSON object at the end.
    fn fields(&self) -> Map<String, Value>;

    /// Lines after the model's.
    fn lines(&self) -> Vec<String>;
}

impl Account for () {
    fn fields(&self) -> Map<String, Value> {
        Map::new()
    }

    fn lines(&self) -> Vec<String> {
        Vec::new()
    }
}

impl RunArguments {
    /// Trains on what `load` reads, with the settings that are given; all others are the defaults, or those of the run that
    /// goes on.
    pub fn run<S: TrainingSettings + Next>(
        &self,
        given: Map<String, Value>,
        load: impl FnOnce(&DataArguments) -> anyhow::Result<S::Data>,
    ) -> anyhow::Result<()>
    where
        <S::Task as TrainingTask>::Evaluation: Account,
    {
        self.run_with::<S>(given, |loading| load(loading.data))
    }

    /// The same where what is loaded depends on the settings.
    pub fn run_with<S: TrainingSettings + Next>(
        &self,
        given: Map<String, Value>,
        load: impl FnOnce(&Loading<'_, S>) -> anyhow::Result<S::Data>,
    ) -> anyhow::Result<()>
    where
        <S::Task as TrainingTask>::Evaluation: Account,
    {
        let start = Instant::now();
        if !matches!(self.device, DeviceChoice::Auto | DeviceChoice::Cpu) {
            let fix = "training computes on the CPU alone; leave it away. What is trained runs on other devices";
            return Err(tweedie::Error::invalid("`device`", self.device, fix).into());
        }
        let existing = if self.resume { RunFolder::config(&self.output)? } else { None };
        let mut settings = existing.as_ref().map(S::from_config).transpose()?.unwrap_or_default();
        settings.read(given).map_err(tweedie::Error::from)?;
        let interrupt = Interrupt::listen()?;
        let (data, run) = (&self.data, existing.as_ref());
        let data = load(&Loading { data, settings: &settings, run, interrupt: &interrupt, quiet: self.quiet })?;
        let mut progress = TrainProgress::new(self.quiet);
        let next = settings.next(&quoted(&self.output), &quoted(&self.data.data));
        let request = TrainRequest { settings, data, output: self.output.clone(), resume: self.resume };
        let outcome = request.run(&mut |event| {
            progress.event(&event);
            interrupt.flow()
        });
        progress.finish();
        let outcome = unless_stopped(outcome, "nothing is trained yet; begin again with --resume")?;
        let Some(model) = &outcome.finished else {
            let folder = self.output.display();
            // Where a checkpoint is a model already.
            if !self.quiet && UnfinishedRun::at(&self.output).is_ok_and(|run| run.is_some()) {
                next.iter().for_each(|command| print::remark(&format!("meanwhile: {command}")));
            }
            let step = outcome.steps;
            let message = format!("stopped after step {step}; a checkpoint is in {folder}, go on with --resume");
            return Err(Stopped(message).into());
        };
        if !self.quiet {
            next.iter().for_each(|command| print::remark(&format!("next: {command}")));
        }
        if self.json {
            return print::result(&as_json(&self.output, &outcome, model, start).to_string());
        }
        print::lines([vec![model.path.display().to_string()], model.evaluation.lines()].concat())
    }
}

fn as_json<E: Account>(run: &Path, outcome: &TrainOutcome<E>, model: &FinishedModel<E>, start: Instant) -> Value {
    let mut fields = json!({
        "run": run,
        "model": model.path,
        "steps": outcome.steps,
        "loss": outcome.loss,
        "images_per_second": outcome.images_per_second,
    });
    for (name, value) in model.evaluation.fields() {
        fields[name] = value;
    }
    fields["seconds"] = start.elapsed().as_secs_f64().into();
    fields["peak_rss_mb"] = tweedie_pipelines::memory::peak_mb().into();
    fields
}
