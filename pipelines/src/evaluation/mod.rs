//! Scoring models: pictures of prompts, judged by a network that says what they show; samples of any kind, made to be compared to
//! pictures by the features that a network sees in them, or to their prompts.

mod features;
mod likelihood;
mod prompts;
mod samples;

pub use features::{FeatureChoice, open_features};
pub use likelihood::{LikelihoodOptions, OdeLikelihood, has_ode_likelihood, likelihood_bound, ode_likelihood};
pub use prompts::{AskedPrompt, PromptSet};
pub use samples::{PixelSamples, PromptSamples, SampleEvent, SampleObserver, Samples, features_of_samples};

use crate::event::Event;
use crate::latent_diffusion::LatentDiffusion;
use crate::requests::fast::Fast;
use crate::requests::text_to_image::TextToImageRequest;
use crate::settings::Settings;
use crate::train::Component;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use tweedie::images::Photo;
use tweedie::layers::Weights;
use tweedie::models::judge::Unsaid;
use tweedie::models::{Judge, JudgeConfig};
use tweedie::training::tasks::{Asked, Score};
use tweedie::{Error, Result};

/// The judge of a model folder of `tweedie train judge`: `judge/config.json` and the weights beside it.
///
/// # Errors
/// If there is none, or its files do not fit each other.
pub fn open_judge(model: &Path) -> Result<Judge> {
    let judge = Component::in_folder(model, "judge")?;
    let config = JudgeConfig::from_fields(judge.fields())?;
    judge.build(|weights| Judge::new(config, &Weights::new(weights)))
}

/// Pictures of every prompt of a set for every seed, each made as the model makes it where nothing is asked, and judged.
#[derive(Debug, Clone, Copy)]
pub struct PromptEvaluation<'a> {
    /// The model, loaded for any number of runs.
    pub model: &'a LatentDiffusion,
    /// The prompts.
    pub prompts: &'a PromptSet,
    /// The seeds, each of which makes one picture of each prompt.
    pub seeds: &'a [u64],
    /// How many pictures of a prompt at a time; changes speed and memory, not the pictures. Those of seeds that follow each other
    /// are made together.
    pub batch_size: usize,
    /// How strongly pictures follow their prompts, if not as the model does.
    pub guidance_scale: Option<f64>,
    /// What work is skipped.
    pub fast: Option<Fast>,
    /// The share of a UNet's tokens that are merged.
    pub token_merging: f64,
    /// What judges the pictures; without it they are made and no more.
    pub judge: Option<&'a Judge>,
}

/// What an evaluation tells its caller.
#[derive(Debug)]
#[non_exhaustive]
pub enum EvaluationEvent<'a> {
    /// Something that the user should know, each once.
    Warning(String),
    /// A denoising step was done.
    Step {
        /// Steps done, of all batches of all prompts.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// A picture is finished.
    Picture {
        /// The number of its prompt, from 0.
        prompt: usize,
        /// Its seed.
        seed: u64,
        /// The settings of its run.
        settings: &'a Settings,
        /// The picture.
        picture: &'a Photo,
    },
}

/// Is told of every [`EvaluationEvent`]; breaking stops the evaluation.
pub type EvaluationObserver<'a> = dyn FnMut(EvaluationEvent<'_>) -> ControlFlow<()> + 'a;

/// How many pictures show what their prompts ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptScores {
    /// All pictures.
    pub overall: Score,
    /// Those of each kind of prompts, in the order of the file.
    pub kinds: Vec<(String, Score)>,
}

/// A run of one prompt: seeds that follow each other.
struct PromptRun {
    prompt: usize,
    settings: Settings,
}

/// Pictures judged so far.
struct Tally<'a> {
    judge: Option<&'a Judge>,
    prompts: &'a [AskedPrompt],
    /// What each prompt asks for, as the judge knows it.
    asked: Vec<Option<Asked>>,
    scores: PromptScores,
}

impl Tally<'_> {
    /// Looks at a picture of a prompt.
    fn add(&mut self, prompt: usize, picture: &Photo) -> Result<()> {
        let (Some(judge), Some(asked)) = (self.judge, &self.asked[prompt]) else { return Ok(()) };
        let seen = judge.look(&picture.to_picture())?;
        let PromptScores { overall, kinds } = &mut self.scores;
        let kind = &self.prompts[prompt].kind;
        let of_kind = kinds.iter_mut().filter(|(name, _)| name == kind).map(|(_, score)| score);
        of_kind.chain([overall]).for_each(|score| score.add(asked, &seen));
        Ok(())
    }
}

impl PromptEvaluation<'_> {
    /// What prompts ask for and the judge does not know, each once: the name of the field and the value. What depends on it is not
    /// counted.
    pub fn unknown(&self) -> Vec<(&'static str, String)> {
        let unknown: BTreeSet<_> = self.asked().into_iter().flatten().flat_map(|asked| asked.unknown).collect();
        unknown.into_iter().collect()
    }

    /// What is asked for by each prompt, as the judge knows it.
    fn asked(&self) -> Vec<Option<Asked>> {
        let asked = |prompt: &AskedPrompt| {
            let (judge, shown) = (self.judge?, prompt.shown.as_ref()?);
            Some(Asked::new(shown, &judge.config().classes, Unsaid::IsOpen))
        };
        self.prompts.prompts().iter().map(asked).collect()
    }

    /// Makes and judges the pictures. All prompts are checked before the first one is drawn.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the observer breaks; if there is no seed, or one twice, if a judge is there and a prompt does not
    /// say what its pictures should show, or if pictures cannot be made.
    pub fn run(&self, observer: &mut EvaluationObserver<'_>) -> Result<PromptScores> {
        if self.judge.is_some() {
            self.prompts.check_shown()?;
        }
        let runs = self.runs()?;
        let total: usize = runs.iter().map(|run| run.settings.seed_batches().len() * run.settings.steps).sum();
        let mut tally = self.tally();
        let (mut before, mut warned) = (0, BTreeSet::new());
        for PromptRun { prompt, settings } in &runs {
            let mut failure = None;
            let result = self.model.run(settings, &mut |event| match event {
                Event::Warning(text) if warned.insert(text.clone()) => observer(EvaluationEvent::Warning(text)),
                Event::Step { done, steps, batch, .. } => {
                    observer(EvaluationEvent::Step { done: (before + batch * steps + done).min(total), total })
                }
                Event::Picture { seed, picture, .. } => match tally.add(*prompt, picture) {
                    Ok(()) => observer(EvaluationEvent::Picture { prompt: *prompt, seed, settings, picture }),
                    Err(error) => {
                        failure = Some(error);
                        ControlFlow::Break(())
                    }
                },
                _ => ControlFlow::Continue(()),
            });
            failure.map_or(result, Err)?;
            before += settings.seed_batches().len() * settings.steps;
        }
        Ok(tally.scores)
    }

    /// A tally of nothing yet.
    fn tally(&self) -> Tally<'_> {
        let kinds = self.prompts.kinds().into_iter().map(|kind| (kind.to_owned(), Score::default()));
        let scores = PromptScores { overall: Score::default(), kinds: kinds.collect() };
        Tally { judge: self.judge, prompts: self.prompts.prompts(), asked: self.asked(), scores }
    }

    /// The runs of all prompts, settled.
    fn runs(&self) -> Result<Vec<PromptRun>> {
        let mut runs = Vec::new();
        let groups = self.seed_groups()?;
        for (prompt, asked) in self.prompts.prompts().iter().enumerate() {
            for &(seed, num_images) in &groups {
                let (text, batch_size) = (asked.prompt.clone(), self.batch_size);
                let (guidance_scale, fast, token_merging) = (self.guidance_scale, self.fast, self.token_merging);
                let request = TextToImageRequest {
                    prompt: text,
                    seed,
                    num_images,
                    batch_size,
                    guidance_scale,
                    fast,
                    token_merging,
                    ..TextToImageRequest::default()
                };
                runs.push(PromptRun { prompt, settings: self.model.settle(&request)? });
            }
        }
        Ok(runs)
    }

    /// Seeds that follow each other: the first one and how many.
    fn seed_groups(&self) -> Result<Vec<(u64, usize)>> {
        let mut seeds = self.seeds.to_vec();
        seeds.sort_unstable();
        if let Some(twice) = seeds.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::invalid("a seed that is there twice", twice[0], "give each seed once"));
        }
        let mut groups: Vec<(u64, usize)> = Vec::new();
        for seed in seeds {
            match groups.last_mut() {
                Some((first, count)) if seed - *first == *count as u64 => *count += 1,
                _ => groups.push((seed, 1)),
            }
        }
        match groups.is_empty() {
            true => Err(Error::invalid("the number of seeds", 0, "give at least one")),
            false => Ok(groups),
        }
    }
}
