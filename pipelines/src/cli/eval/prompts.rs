//! `tweedie eval prompts`.

use super::grid::Grids;
use super::table;
use crate::cli::failure::Stopped;
use crate::cli::fetching::Fetching;
use crate::cli::interrupt::Interrupt;
use crate::cli::output::NewFolder;
use crate::cli::progress::Progress;
use crate::cli::{ModelArguments, print};
use clap::{ArgGroup, Args};
use serde_json::{Map, Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;
use tweedie::images::encode_png;
use tweedie::training::tasks::JudgeAccuracy;
use tweedie_pipelines::{
    Error, EvaluationEvent, Fast, LatentDiffusion, PromptEvaluation, PromptScores, PromptSet, Record, TaskKind, Usage,
    open_judge,
};

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("purpose").required(true).multiple(true)))]
pub struct PromptsArguments {
    #[command(flatten)]
    model: ModelArguments,

    /// The prompts: a JSON list of objects, each with its prompt, its kind, and what its pictures should show (concepts,
    /// background, style, position, size, relation; null for what is open); or, to make pictures only, a text with a prompt
    /// a line
    #[arg(long, value_name = "FILE")]
    prompts: PathBuf,

    /// The folder of a model from `tweedie train judge`, which says what pictures show [default: they are only made]
    #[arg(long, value_name = "DIR", group = "purpose")]
    judge: Option<PathBuf>,

    /// The seeds, each of which makes one picture of each prompt
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "0,1,2,3")]
    seeds: Vec<u64>,

    /// How many pictures of a prompt at a time; changes speed and memory, not the pictures
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_size: usize,

    /// How strongly pictures follow their prompts [default: the model's, else 7.5]
    #[arg(long, value_name = "F")]
    guidance_scale: Option<f64>,

    /// Skip work by a preset of txt2img: 1.5x, 2x or 3x
    #[arg(long, value_name = "PRESET")]
    fast: Option<Fast>,

    /// Merge so great a share of a UNet's tokens, as txt2img does
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    token_merging: f64,

    /// Save the pictures in this new folder, as prompt-seed.png, counted from 000, with a grid for each seed in which each
    /// kind of prompts starts a row, and the scores
    #[arg(long, short, value_name = "DIR", group = "purpose")]
    output: Option<PathBuf>,

    /// Write into a folder that is not empty, and replace files there
    #[arg(long)]
    force: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,

    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

impl PromptsArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        let interrupt = Interrupt::listen()?;
        let prompts = PromptSet::read(&self.prompts)?;
        let judge = self.judge.as_deref().map(open_judge).transpose()?;
        if judge.is_some() {
            prompts.check_shown()?;
        }
        let folder = self.output.as_deref().map(|path| NewFolder::plan(path, self.force)).transpose()?;
        let fetching = Fetching { interrupt: &interrupt, quiet: self.quiet };
        let builder = self.model.builder(TaskKind::TextToImage, &self.model.source(&fetching))?;
        let model = builder.usage(Usage::Any).build()?;
        let evaluation = PromptEvaluation {
            model: &model,
            prompts: &prompts,
            seeds: &self.seeds,
            batch_size: self.batch_size,
            guidance_scale: self.guidance_scale,
            fast: self.fast,
            token_merging: self.token_merging,
            judge: judge.as_ref(),
        };
        let unknown = evaluation.unknown();
        for (field, value) in &unknown {
            print::warning(&format!(
                "the judge does not know the {field} {value:?}; what depends on it is not counted"
            ));
        }
        let progress = Progress::new(self.quiet);
        let (grids, record) = (Grids::default(), None);
        let mut work = Work { model: &model, prompts: &prompts, folder, progress, interrupt, grids, record, saved: 0 };
        let scores = work.run(&evaluation)?;
        let files = work.finish()?;
        let accuracy = judge.as_ref().and_then(|judge| JudgeAccuracy::from_fields(&judge.config().accuracy));
        let mut fields = json!({
            "model": self.model.model, "prompts": self.prompts, "seeds": self.seeds,
            "pictures": prompts.prompts().len() * self.seeds.len(),
            "guidance_scale": self.guidance_scale, "fast": self.fast, "token_merging": self.token_merging,
        });
        let mut add = |more: Map<String, Value>| more.into_iter().for_each(|(name, value)| fields[name] = value);
        if judge.is_some() {
            add(table::fields(&scores, accuracy.as_ref()));
            let unknown = unknown.iter().map(|(field, value)| json!({"field": field, "value": value}));
            add(Map::from_iter([("unknown".to_owned(), unknown.collect())]));
            if let Some(folder) = &work.folder {
                folder.write("scores.json", format!("{fields:#}\n").as_bytes())?;
            }
        }
        fields["files"] = json!(files);
        fields["seconds"] = start.elapsed().as_secs_f64().into();
        fields["peak_rss_mb"] = tweedie_pipelines::memory::peak_mb().into();
        print::result(&match (self.json, judge) {
            (true, _) => fields.to_string(),
            (false, Some(_)) => table::as_text(&scores, accuracy.as_ref()),
            (false, None) => files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join("\n"),
        })
    }
}

/// An evaluation that is under way.
struct Work<'a> {
    model: &'a LatentDiffusion,
    prompts: &'a PromptSet,
    folder: Option<NewFolder>,
    progress: Progress,
    interrupt: Interrupt,
    grids: Grids,
    /// What pictures say of how they were made, with the sums of the weights, which are taken once.
    record: Option<Record>,
    saved: usize,
}

impl Work<'_> {
    fn run(&mut self, evaluation: &PromptEvaluation<'_>) -> anyhow::Result<PromptScores> {
        let mut failure = None;
        let scores = evaluation.run(&mut |event| {
            if let Err(error) = self.event(&event) {
                failure = Some(error);
                return ControlFlow::Break(());
            }
            self.interrupt.flow()
        });
        self.progress.finish();
        match (failure, scores) {
            (Some(error), _) => Err(error),
            (None, Err(Error::Cancelled)) => {
                Err(Stopped(format!("stopped; {} pictures were saved, and nothing is scored", self.saved)).into())
            }
            (None, scores) => Ok(scores?),
        }
    }

    fn event(&mut self, event: &EvaluationEvent<'_>) -> anyhow::Result<()> {
        match event {
            EvaluationEvent::Warning(text) => self.progress.aside(|| print::warning(text)),
            EvaluationEvent::Step { done, total } => {
                self.progress.stage("denoising");
                self.progress.steps(*done, *total);
            }
            EvaluationEvent::Picture { prompt, seed, settings, picture } => {
                let Some(folder) = &self.folder else { return Ok(()) };
                let record = match self.record.take() {
                    Some(record) => record.with_settings(settings),
                    None => self.model.record(settings),
                };
                record.hash_weights().map_err(|e| anyhow::anyhow!("cannot hash the weights: {e}"))?;
                folder.write(&format!("{prompt:03}-{seed}.png"), &picture.encode_png(&record.chunks(*seed))?)?;
                self.record = Some(record);
                self.saved += 1;
                self.grids.add(*prompt, *seed, &picture.to_picture())?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Draws the grids; gives their files.
    fn finish(&mut self) -> anyhow::Result<Vec<PathBuf>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let mut files = Vec::new();
        for (seed, grid) in self.grids.draw(self.prompts)? {
            let name = format!("grid-{seed}.png");
            folder.write(&name, &encode_png(&grid, &[])?)?;
            files.push(folder.path().join(name));
        }
        Ok(files)
    }
}
