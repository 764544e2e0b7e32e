//! A request settled: checked against a model, with every default filled in. This is the only check.

mod control;
mod custom_solver;
mod inpaint;
mod scheduler;
pub(crate) mod warnings;

pub use control::ControlSettings;
use custom_solver::CustomSolver;
use warnings::clipped_latents;

use crate::adapters::{LORAS, UsedAdapter};
use crate::canvas::Canvas;
use crate::model::{Defaults, PredictionDoubt};
use crate::native_size::{NativeSize, check_side};
use crate::requests::image_to_image::ImageToImageRequest;
use crate::requests::inpaint::InpaintRequest;
use crate::requests::lora::LoraRequest;
use crate::requests::request::Request;
use crate::requests::text_to_image::TextToImageRequest;
use crate::requests::values::OptionValue;
use crate::task::{Task, check_strength, check_task};
use crate::xl::XlSettings;
use serde_json::json;
use tweedie::config::ConfigFields;
use tweedie::denoising::{GuidanceSchedule, NoiseShare};
use tweedie::families::{NetworkFacts, UsualSettings, XlFacts};
use tweedie::models::LatentSpace;
use tweedie::schedulers::{GivenLevels, Scheduler, SchedulerChoice, Solver};
use tweedie::{Error, Result};

/// The most pictures of a request.
const MOST_IMAGES: usize = 100_000;

/// The largest share of tokens that can be merged: of four one stays.
pub(crate) const MOST_MERGED: f64 = 0.75;

/// Whether such a share of the tokens can be merged.
pub(crate) fn check_token_merging(share: f64) -> Result<()> {
    if (0.0..=MOST_MERGED).contains(&share) {
        return Ok(());
    }
    Err(Error::invalid("`token_merging`", share, format!("take a share from 0 to {MOST_MERGED}; 0.5 is usual")))
}

/// What the check of a request needs to know of a model.
#[derive(Debug)]
pub(crate) struct ModelFacts {
    pub network: NetworkFacts,
    pub latent_space: LatentSpace,
    /// Where neither request nor model say them.
    pub usual: UsualSettings,
    pub scheduler: ConfigFields,
    /// Why it is not certain what the network predicts, if it is not.
    pub prediction_doubt: Option<PredictionDoubt>,
    pub defaults: Defaults,
    /// So many layers `clip_skip` can skip.
    pub text_layers: usize,
    /// For each control model, whether it can lead without a prompt.
    pub guessing_controls: Vec<bool>,
    pub xl: Option<XlFacts>,
    /// What the user should know of what it was loaded with.
    pub warnings: Vec<String>,
}

impl ModelFacts {
    /// The size of pictures that the model makes unless told otherwise.
    pub fn native_size(&self) -> NativeSize {
        let factor = self.latent_space.factor;
        let (height, width) = self.network.sample_size;
        NativeSize {
            width: self.defaults.width.unwrap_or(width * factor),
            height: self.defaults.height.unwrap_or(height * factor),
            factor,
        }
    }
}

/// A request that has been checked, with what it left to the model.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What was asked for, but for the pictures of control models. What it may leave to the model stands below.
    pub request: TextToImageRequest,
    /// Number of denoising steps.
    pub steps: usize,
    /// How many they would be if none was skipped.
    pub asked_steps: usize,
    /// Guidance scale.
    pub guidance_scale: f64,
    /// Whether the network takes the guidance scale as an input, so that one branch is enough.
    pub guidance_is_embedded: bool,
    /// Guidance rescale.
    pub guidance_rescale: f64,
    /// The scheduler, with what its name sets.
    pub scheduler: SchedulerChoice,
    /// Its fields.
    pub scheduler_config: ConfigFields,
    /// What is in the place of its solver, if anything: see [`Self::with_solver`].
    pub(crate) solver: Option<CustomSolver>,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// Pictures that steer the run.
    pub controls: Vec<ControlSettings>,
    /// What Stable Diffusion XL is told besides, if the model is one.
    pub xl: Option<XlSettings>,
    /// What denoising starts from, and what becomes of its pictures.
    pub task: Task,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl Settings {
    /// Whether there is guidance by two branches: at a scale of 1 or less one is enough.
    pub fn guided(&self) -> bool {
        self.guidance_scale > 1.0 && !self.guidance_is_embedded
    }

    /// The scheduler, configured, with the solver of one's own if there is one.
    ///
    /// # Errors
    /// If a field of its configuration has an unusable value.
    pub fn build_scheduler(&self) -> Result<Box<dyn Scheduler>> {
        let scheduler = self.scheduler.entry.build(&self.scheduler_config)?;
        Ok(match &self.solver {
            Some(solver) => solver.over(scheduler),
            None => scheduler,
        })
    }

    /// The same with a solver of one's own in the place of the scheduler's, whose noise levels it takes; `make` makes one for each
    /// batch, and pictures' settings call it by its name.
    ///
    /// ```
    /// use tweedie::{Result, Tensor, schedulers::{Run, Solver}};
    /// use tweedie_pipelines::{LatentDiffusion, TextToImageRequest};
    ///
    /// struct Euler;
    ///
    /// impl Solver for Euler {
    ///     fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
    ///         let (from, to) = (run.levels().from(i), run.levels().to(i));
    ///         let prediction = run.predict(x, &from)?;
    ///         Ok(((prediction.x0 * to.alpha)? + (prediction.epsilon * to.sigma)?)?)
    ///     }
    /// }
    ///
    /// let model = LatentDiffusion::builder().build()?;
    /// let request = TextToImageRequest { prompt: "a fox".into(), steps: Some(2), ..TextToImageRequest::default() };
    /// let settings = model.settle(&request)?.with_solver("my-euler", || Box::new(Euler));
    /// assert_eq!(model.generate_settled(&settings)?.pictures.len(), 1);
    /// # Ok::<_, tweedie::Error>(())
    /// ```
    #[must_use]
    pub fn with_solver(self, name: &str, make: impl Fn() -> Box<dyn Solver> + Send + Sync + 'static) -> Self {
        Self { solver: Some(CustomSolver::new(name, make)), ..self }
    }

    /// What pictures' settings call the scheduler.
    pub fn scheduler_name(&self) -> String {
        self.solver.as_ref().map_or_else(|| self.scheduler.name(), |solver| solver.name().to_owned())
    }

    /// The same in the words of other programs.
    pub(crate) fn scheduler_label(&self) -> String {
        self.solver.as_ref().map_or_else(|| self.scheduler.label(), |solver| solver.name().to_owned())
    }

    /// The width and height of the pictures that are made.
    pub fn picture_size(&self) -> (usize, usize) {
        self.task.canvas().map_or((self.width, self.height), Canvas::result_size)
    }

    /// The step that the run starts with: as diffusers' pipelines do, `strength` of the steps are done.
    pub fn start(&self) -> usize {
        let done = (self.steps as f64 * self.task.strength()) as usize;
        self.steps - done.min(self.steps)
    }

    /// The guidance scale at each noise level; `noise_share` is that of the scheduler.
    pub fn guidance_schedule<'a>(&self, noise_share: &'a NoiseShare<'a>) -> GuidanceSchedule<'a> {
        let shape = self.request.guidance_schedule;
        let guidance = GuidanceSchedule::shaped(self.guidance_scale, shape, noise_share);
        match self.request.guidance_interval {
            Some((low, high)) => guidance.between(low, high),
            None => guidance,
        }
    }

    /// The seeds of the images, in batches.
    pub fn seed_batches(&self) -> Vec<Vec<u64>> {
        let seeds: Vec<u64> = (0..self.request.num_images as u64).map(|i| self.request.seed.wrapping_add(i)).collect();
        seeds.chunks(self.request.batch_size).map(<[u64]>::to_vec).collect()
    }

    /// What its pictures say of LoRAs that act in this request alone.
    pub(crate) fn adapters(&self) -> Vec<UsedAdapter> {
        let used = |LoraRequest { name, weight }: &LoraRequest| {
            UsedAdapter::new(LORAS, name, json!({"weight": weight.to_json(), "applied": "beside"}))
        };
        self.request.loras.iter().map(used).collect()
    }

    /// The request that makes the picture of that seed whatever a model's defaults are: all that was left to the model is
    /// filled in, and there is no other picture. Which files act beside the model stands with their sums:
    /// see [`Self::adapters`].
    pub(crate) fn request_of(&self, seed: u64) -> TextToImageRequest {
        let fields = self.scheduler_config.fields().iter().filter(|(name, _)| !name.starts_with('_'));
        TextToImageRequest {
            steps: Some(self.asked_steps),
            guidance_scale: Some(self.guidance_scale),
            guidance_rescale: Some(self.guidance_rescale),
            scheduler: Some(self.scheduler_name()),
            timestep_spacing: None,
            prediction_type: None,
            timesteps: None,
            sigmas: None,
            eta: None,
            scheduler_config: fields.map(|(name, value)| (name.clone(), value.clone())).collect(),
            seed,
            width: Some(self.width),
            height: Some(self.height),
            num_images: 1,
            batch_size: 1,
            loras: Vec::new(),
            xl: self.xl.as_ref().map(XlSettings::request).unwrap_or_default(),
            ..self.request.clone()
        }
    }
}

impl Request<'_> {
    /// Checks the request against a model and fills in what it leaves to it.
    pub(crate) fn settle(self, facts: &ModelFacts) -> Result<Settings> {
        match self {
            Self::TextToImage(request) => request.settle(facts, Task::TextToImage),
            Self::ImageToImage(request) => request.settle(facts),
            Self::Inpaint(request) => request.settle(facts),
        }
    }
}

impl ImageToImageRequest {
    fn settle(&self, facts: &ModelFacts) -> Result<Settings> {
        let strength = check_strength(self.strength.or(facts.defaults.strength).unwrap_or(0.8))?;
        let size = (self.text.width, self.text.height);
        let canvas = Canvas::for_image(&self.image, size, facts.native_size())?;
        let mut settings = self.text.settle(facts, Task::ImageToImage { canvas, strength })?;
        settings.warnings.extend(self.doubts());
        Ok(settings)
    }
}

impl InpaintRequest {
    fn settle(&self, facts: &ModelFacts) -> Result<Settings> {
        let strength = check_strength(self.strength.or(facts.defaults.strength).unwrap_or(1.0))?;
        let options = self.inpaint.settle()?;
        let canvas = Canvas::for_inpainting(self, facts.native_size())?;
        let mut settings = self.text.settle(facts, Task::Inpaint { canvas, strength, options })?;
        settings.warnings.extend(self.doubts(strength));
        Ok(settings)
    }
}

impl TextToImageRequest {
    /// Checks the request against the model and fills in defaults. A task that works on a picture brings its size.
    fn settle(&self, facts: &ModelFacts, task: Task) -> Result<Settings> {
        check_task(task.kind(), facts.network.in_channels, facts.latent_space.channels)?;
        let defaults = &facts.defaults;
        let native = facts.native_size();
        let (width, height) = match task.canvas() {
            Some(canvas) => (canvas.width(), canvas.height()),
            None => (self.width.unwrap_or(native.width), self.height.unwrap_or(native.height)),
        };
        check_side("width", width, native.factor)?;
        check_side("height", height, native.factor)?;

        let usual = facts.usual;
        let guidance_scale = self.guidance_scale.or(defaults.guidance_scale).unwrap_or(usual.guidance_scale);
        let guidance_rescale = self.guidance_rescale.or(defaults.guidance_rescale).unwrap_or(0.0);
        self.check_guidance(guidance_scale, guidance_rescale)?;
        check_token_merging(self.token_merging)?;
        for (what, count) in [("the number of images", self.num_images), ("the batch size", self.batch_size)] {
            if count == 0 || count > MOST_IMAGES {
                return Err(Error::invalid(what, count, format!("take 1 to {MOST_IMAGES}")));
            }
        }
        if self.clip_skip > facts.text_layers {
            let fix = format!("the text encoder has {} layers; take at most that", facts.text_layers);
            return Err(Error::invalid("`clip_skip`", self.clip_skip, fix));
        }

        let controls =
            ControlSettings::settle(&self.controls, &facts.guessing_controls, task.canvas(), (width, height))?;
        let (scheduler, scheduler_config, mut warnings) = self.settle_scheduler(facts, task.kind())?;
        if self.controls.iter().any(|control| control.guess) && !controls.iter().any(|control| control.strength.guess) {
            let warning = "guess mode (`control_guess`) has no effect, as no control model is a ControlNet";
            warnings.push(warning.into());
        }
        warnings.extend(self.prediction_doubt(facts.prediction_doubt.as_ref()));
        if self.token_merging > 0.0 && !facts.network.merges_tokens {
            warnings.push("`token_merging` has no effect: this model has no tokens that it merges".into());
        }
        let xl = self.settle_xl(facts.xl, &task, (height, width), &mut warnings)?;
        let given = GivenLevels::from_config(&scheduler_config)?;
        let given = given.map(|given| given.steps());
        let asked_steps = self.steps.or(given).or(defaults.steps).unwrap_or(usual.steps);
        let fewer = self.fast.filter(|_| given.is_none()).map(|fast| fast.steps(asked_steps));
        let steps = fewer.unwrap_or(asked_steps);
        let mut settings = Settings {
            request: TextToImageRequest { controls: Vec::new(), ..self.clone() },
            steps,
            asked_steps,
            guidance_scale,
            guidance_is_embedded: facts.network.takes_guidance,
            guidance_rescale,
            scheduler,
            scheduler_config,
            solver: None,
            width,
            height,
            controls,
            xl,
            warnings: [facts.warnings.clone(), task.warnings(), warnings].concat(),
            task,
        };
        // Whether the steps can be made shows when the levels are.
        let scheduler = settings.build_scheduler()?;
        let levels = scheduler.levels(settings.steps)?;
        settings.warnings.extend(clipped_latents(&settings.scheduler, scheduler.parameterization()));
        let doubts = settings.doubts(native, &levels);
        settings.warnings.extend(doubts);
        if settings.start() == settings.steps && settings.task.unchanged().is_none() {
            let fix = format!(
                "of {steps} steps that leaves none; take {:.2} or more, or more steps",
                (100.0 / steps as f64).ceil() / 100.0
            );
            return Err(Error::invalid("the strength", settings.task.strength(), fix));
        }
        Ok(settings)
    }

    /// What the user should know of a prediction type that is not certain and was not overridden.
    fn prediction_doubt(&self, doubt: Option<&PredictionDoubt>) -> Option<String> {
        let guessed = match doubt.filter(|_| !self.scheduler_fields().contains_key("prediction_type"))? {
            PredictionDoubt::Conflict(conflict) => return Some(conflict.clone()),
            PredictionDoubt::Guessed(guessed) => *guessed,
        };
        let other = match guessed {
            "epsilon" => "v_prediction, with `width` 768 `height` 768",
            _ => "epsilon, with `width` 512 `height` 512",
        };
        Some(format!(
            "files of Stable Diffusion 2.x do not say what their network predicts; {guessed} is assumed. If pictures are \
             noise or stains, try `prediction_type` {other}"
        ))
    }

    fn check_guidance(&self, scale: f64, rescale: f64) -> Result<()> {
        if !scale.is_finite() || scale < 0.0 {
            return Err(Error::invalid("the guidance scale", scale, "take a number from 0 on; 7.5 is usual"));
        }
        if !(0.0..=1.0).contains(&rescale) {
            return Err(Error::invalid("the guidance rescale", rescale, "take a number from 0 to 1"));
        }
        if !self.pag_scale.is_finite() || self.pag_scale < 0.0 {
            return Err(Error::invalid(
                "the scale of perturbed attention",
                self.pag_scale,
                "take a number from 0 on; 3 is usual",
            ));
        }
        if let Some((low, high)) = self.guidance_interval
            && !(low >= 0.0 && high > low)
        {
            let fix = "give two noise levels, the lower first, such as 0.3,5";
            return Err(Error::invalid("the guidance interval", format!("{low},{high}"), fix));
        }
        let kinds = [rescale > 0.0, self.apg.is_some(), self.pag_scale > 0.0];
        if kinds.iter().filter(|&&kind| kind).count() > 1 {
            let fix =
                "guidance rescale, adaptive projected and perturbed-attention guidance exclude each other; choose one";
            return Err(Error::invalid("guidance", "of several kinds", fix));
        }
        Ok(())
    }
}
