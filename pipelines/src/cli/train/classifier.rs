//! `tweedie train classifier`.

use crate::cli::data::DataArguments;
use crate::cli::interrupt::Interrupt;
use crate::cli::progress::Progress;
use crate::cli::{memory, print};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;
use tweedie::training::data::Split;
use tweedie_pipelines::{ClassifierEvent, ClassifierRequest, Error};

#[derive(Debug, Args)]
pub struct ClassifierArguments {
    #[command(flatten)]
    data: DataArguments,

    /// The run's folder, which must not be there yet; the classifier is in its folder model
    #[arg(long, value_name = "RUN_DIR")]
    output: PathBuf,

    /// Train it on noisy pictures, so that it can guide sampling
    #[arg(long)]
    noisy: bool,

    /// With --noisy, how betas grow: linear, squaredcos_cap_v2 or sigmoid
    #[arg(long, value_name = "NAME", default_value = "squaredcos_cap_v2", value_parser = PossibleValuesParser::new(["linear", "squaredcos_cap_v2", "sigmoid"]))]
    beta_schedule: String,

    /// With --noisy, the number of training timesteps
    #[arg(long, value_name = "N", default_value_t = 1000)]
    timesteps: usize,

    /// Passes over the data
    #[arg(long, value_name = "N", default_value_t = 6)]
    epochs: u64,

    /// Steps, in the place of --epochs
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<u64>,

    /// Pictures of a batch
    #[arg(long, value_name = "N", default_value_t = 64)]
    batch_size: usize,

    /// Learning rate after the warm-up
    #[arg(long, value_name = "F", default_value_t = 2e-3)]
    learning_rate: f64,

    /// The most pixels by which pictures are moved at random
    #[arg(long, value_name = "N", default_value_t = 2)]
    shift: usize,

    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,

    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

impl ClassifierArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        let interrupt = Interrupt::listen()?;
        self.data.fetch(self.quiet)?;
        let request = self.request()?;
        let mut progress = Progress::new(self.quiet, 0);
        let outcome = request.run(&mut |event| {
            match event {
                ClassifierEvent::Start { steps, parameters } => {
                    progress.line(&format!("{parameters} parameters, {steps} steps"));
                    progress = Progress::new(self.quiet, steps as usize);
                    progress.stage("training");
                }
                ClassifierEvent::Step { step, loss } => {
                    progress.steps(step as usize);
                    if step % 500 == 0 {
                        progress.line(&format!("step {step}: loss {loss:.4}"));
                    }
                }
                ClassifierEvent::Judging => progress.stage("judging"),
            }
            interrupt.flow()
        });
        progress.finish();
        let outcome = match outcome {
            Err(Error::Cancelled) => anyhow::bail!("stopped; a classifier is trained in one go, start it again"),
            outcome => outcome?,
        };
        if self.json {
            let test = outcome.accuracy.iter();
            let test = test.map(|a| json!({"timestep": a.timestep, "correct": a.correct, "total": a.total}));
            return print::result(
                &json!({
                    "run": self.output,
                    "model": outcome.model,
                    "test": test.collect::<Vec<_>>(),
                    "seconds": start.elapsed().as_secs_f64(),
                    "peak_rss_mb": memory::peak_mb(),
                })
                .to_string(),
            );
        }
        let mut lines = vec![outcome.model.display().to_string()];
        for accuracy in &outcome.accuracy {
            let at = accuracy.timestep.map_or(String::new(), |timestep| format!(" at timestep {timestep}"));
            let share = 100.0 * accuracy.correct as f64 / accuracy.total.max(1) as f64;
            lines.push(format!("{} of {} right{at} ({share:.2} %)", accuracy.correct, accuracy.total));
        }
        print::result(&lines.join("\n"))
    }

    fn request(&self) -> anyhow::Result<ClassifierRequest> {
        let scheduler = self.noisy.then(|| {
            json!({
                "_class_name": "DDPMScheduler",
                "beta_start": 0.0001,
                "beta_end": 0.02,
                "beta_schedule": self.beta_schedule,
                "num_train_timesteps": self.timesteps,
            })
        });
        Ok(ClassifierRequest {
            train: self.data.read(Split::Train)?,
            test: self.data.read_test()?,
            output: self.output.clone(),
            epochs: self.epochs,
            steps: self.steps,
            batch_size: self.batch_size,
            seed: self.seed,
            learning_rate: self.learning_rate,
            shift: self.shift,
            scheduler,
        })
    }
}
