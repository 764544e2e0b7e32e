//! What is wanted, and the only place that checks it.

use crate::builder::check_task;
use crate::canvas::NativeSize;
use crate::control::{ControlImage, ControlSettings};
use crate::image_to_image::ImageToImageRequest;
use crate::inpaint::InpaintRequest;
use crate::model::Defaults;
use crate::task::Task;
use crate::xl::{XlFacts, XlRequest, XlSettings};
use serde_json::{Map, Value};
use tweedie::config::ConfigFields;
use tweedie::denoising::{GuidanceSchedule, GuidanceShape, Projection};
use tweedie::models::{AutoencoderConfig, UNet2DConditionConfig};
use tweedie::schedulers::{self, GivenLevels, NoiseSchedule, Scheduler, SchedulerChoice};
use tweedie::{Error, Result};

/// The largest side of a picture in pixels.
pub(crate) const LARGEST_SIDE: usize = 16_384;

/// The most pictures of a request.
const MOST_IMAGES: usize = 100_000;

/// How prompts are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptSyntax {
    /// As text; what is longer than the text encoder takes is cut. diffusers does so.
    #[default]
    Plain,
    /// With weights in brackets and in chunks of any number; see [`tweedie::conditioning::parse_weights`].
    Weighted,
}

/// A request for pictures from a text. What is `None` is taken from the model.
#[derive(Debug, Clone, PartialEq)]
pub struct TextToImageRequest {
    /// What to draw.
    pub prompt: String,
    /// What to stay away from. `None` differs from an empty text where Stable Diffusion XL takes zeros for it.
    pub negative_prompt: Option<String>,
    /// How the two are read.
    pub prompt_syntax: PromptSyntax,
    /// Number of denoising steps; by default the model's, else 30.
    pub steps: Option<usize>,
    /// How strongly the prompt is followed; 1 or less turns guidance off. By default the model's, else 7.5.
    pub guidance_scale: Option<f64>,
    /// How far guidance's standard deviation is pulled back, 0 to 1 (Lin et al. 2024); by default 0.
    pub guidance_rescale: Option<f64>,
    /// How the guidance scale develops from noise to data.
    pub guidance_shape: GuidanceShape,
    /// The noise levels `sigma / alpha` between which there is guidance; by default all.
    pub guidance_interval: Option<(f64, f64)>,
    /// Adaptive projected guidance in place of the plain one.
    pub projection: Option<Projection>,
    /// How strong perturbed-attention guidance is; 0 is none.
    pub pag_scale: f64,
    /// The scheduler's name on the command line; by default the model's own.
    pub scheduler: Option<String>,
    /// Fields that override those of the model's scheduler file, and those of a request, such as "eta".
    pub scheduler_fields: Map<String, Value>,
    /// Image `i` is made from `seed + i`.
    pub seed: u64,
    /// Width in pixels; by default the model's.
    pub width: Option<usize>,
    /// Height in pixels; by default the model's.
    pub height: Option<usize>,
    /// How many pictures.
    pub num_images: usize,
    /// How many of them at a time; changes speed and memory, not the pictures.
    pub batch_size: usize,
    /// How many of the text encoder's last layers to skip for the prompt.
    pub clip_skip: usize,
    /// Pictures for the pipeline's control models, one for each.
    pub controls: Vec<ControlImage>,
    /// What concerns Stable Diffusion XL alone.
    pub xl: XlRequest,
}

impl Default for TextToImageRequest {
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: None,
            prompt_syntax: PromptSyntax::Plain,
            steps: None,
            guidance_scale: None,
            guidance_rescale: None,
            guidance_shape: GuidanceShape::Constant,
            guidance_interval: None,
            projection: None,
            pag_scale: 0.0,
            scheduler: None,
            scheduler_fields: Map::new(),
            seed: 0,
            width: None,
            height: None,
            num_images: 1,
            batch_size: 1,
            clip_skip: 0,
            controls: Vec::new(),
            xl: XlRequest::default(),
        }
    }
}

/// What a model is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// Pictures from a text.
    TextToImage(&'a TextToImageRequest),
    /// Pictures from a text and a picture.
    ImageToImage(&'a ImageToImageRequest),
    /// A part of a picture painted anew.
    Inpaint(&'a InpaintRequest),
}

impl<'a> From<&'a TextToImageRequest> for Request<'a> {
    fn from(request: &'a TextToImageRequest) -> Self {
        Self::TextToImage(request)
    }
}

impl<'a> From<&'a ImageToImageRequest> for Request<'a> {
    fn from(request: &'a ImageToImageRequest) -> Self {
        Self::ImageToImage(request)
    }
}

impl<'a> From<&'a InpaintRequest> for Request<'a> {
    fn from(request: &'a InpaintRequest) -> Self {
        Self::Inpaint(request)
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

/// What the check of a request needs to know of a model.
#[derive(Debug)]
pub(crate) struct ModelFacts {
    pub unet: UNet2DConditionConfig,
    pub vae: AutoencoderConfig,
    pub scheduler: ConfigFields,
    /// What the network is taken to predict where nothing says it.
    pub guessed_prediction: Option<&'static str>,
    pub defaults: Defaults,
    /// So many layers `clip_skip` can skip.
    pub text_layers: usize,
    /// For each control model, whether it can lead without a prompt.
    pub guessing_controls: Vec<bool>,
    pub xl: Option<XlFacts>,
}

impl ModelFacts {
    /// The size of pictures that the model makes unless told otherwise.
    pub fn native_size(&self) -> NativeSize {
        let factor = self.vae.factor();
        let (height, width) = self.unet.sample_size;
        NativeSize {
            width: self.defaults.width.unwrap_or(width * factor),
            height: self.defaults.height.unwrap_or(height * factor),
            factor,
        }
    }
}

/// A request that has been checked, with every default filled in.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What to draw.
    pub prompt: String,
    /// What to stay away from.
    pub negative_prompt: Option<String>,
    /// How the two are read.
    pub prompt_syntax: PromptSyntax,
    /// Number of denoising steps.
    pub steps: usize,
    /// Guidance scale.
    pub guidance_scale: f64,
    /// Whether the network takes the guidance scale as an input, so that one branch is enough.
    pub guidance_is_embedded: bool,
    /// Guidance rescale.
    pub guidance_rescale: f64,
    /// How the guidance scale develops.
    pub guidance_shape: GuidanceShape,
    /// The noise levels between which there is guidance.
    pub guidance_interval: Option<(f64, f64)>,
    /// Adaptive projected guidance.
    pub projection: Option<Projection>,
    /// Scale of perturbed-attention guidance.
    pub pag_scale: f64,
    /// The scheduler, with what its name sets.
    pub scheduler: SchedulerChoice,
    /// Its fields.
    pub scheduler_config: ConfigFields,
    /// The first image's seed.
    pub seed: u64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// How many pictures.
    pub num_images: usize,
    /// How many of them at a time.
    pub batch_size: usize,
    /// Skipped layers of the text encoder.
    pub clip_skip: usize,
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

    /// The scheduler, configured.
    ///
    /// # Errors
    /// If a field of its configuration has an unusable value.
    pub fn build_scheduler(&self) -> Result<Box<dyn Scheduler>> {
        self.scheduler.entry.build(&self.scheduler_config)
    }

    /// The step that the run starts with: as diffusers' pipelines do, `strength` of the steps are done.
    pub fn start(&self) -> usize {
        let done = (self.steps as f64 * self.task.strength()) as usize;
        self.steps - done.min(self.steps)
    }

    /// The guidance scale at each timestep of a forward process; without one it is constant.
    pub fn guidance_schedule(&self, schedule: Option<&NoiseSchedule>) -> GuidanceSchedule {
        let Some(schedule) = schedule else { return self.guidance_scale.into() };
        let guidance = GuidanceSchedule::new(self.guidance_scale, self.guidance_shape).over(schedule);
        match self.guidance_interval {
            Some((low, high)) => guidance.between_sigmas(schedule, low, high),
            None => guidance,
        }
    }

    /// The seeds of the images, in batches.
    pub fn seed_batches(&self) -> Vec<Vec<u64>> {
        let seeds: Vec<u64> = (0..self.num_images as u64).map(|i| self.seed.wrapping_add(i)).collect();
        seeds.chunks(self.batch_size).map(<[u64]>::to_vec).collect()
    }
}

impl TextToImageRequest {
    /// Checks the request against the model and fills in defaults. A task that works on a picture brings its size.
    pub(crate) fn settle(&self, facts: &ModelFacts, task: Task) -> Result<Settings> {
        check_task(task.kind(), facts.unet.in_channels, facts.vae.latent_channels)?;
        let defaults = &facts.defaults;
        let native = facts.native_size();
        let (width, height) = match task.canvas() {
            Some(canvas) => (canvas.width(), canvas.height()),
            None => (self.width.unwrap_or(native.width), self.height.unwrap_or(native.height)),
        };
        check_side("width", width, native.factor)?;
        check_side("height", height, native.factor)?;

        // Latent consistency models are distilled for a few steps, and have no file that says so.
        let guidance_is_embedded = facts.unet.time_cond_proj_dim.is_some();
        let (usual_steps, usual_scale) = if guidance_is_embedded { (4, 8.5) } else { (30, 7.5) };
        let guidance_scale = self.guidance_scale.or(defaults.guidance_scale).unwrap_or(usual_scale);
        let guidance_rescale = self.guidance_rescale.or(defaults.guidance_rescale).unwrap_or(0.0);
        self.check_guidance(guidance_scale, guidance_rescale)?;
        for (what, count) in [("the number of images", self.num_images), ("the batch size", self.batch_size)] {
            if count == 0 || count > MOST_IMAGES {
                return Err(Error::invalid(what, count, format!("take 1 to {MOST_IMAGES}")));
            }
        }
        if self.clip_skip > facts.text_layers {
            let fix = format!("the text encoder has {} layers; take at most that", facts.text_layers);
            return Err(Error::invalid("clip-skip", self.clip_skip, fix));
        }

        let controls =
            ControlSettings::settle(&self.controls, &facts.guessing_controls, task.canvas(), (width, height))?;
        let (scheduler, scheduler_config, mut warnings) = self.scheduler(&facts.scheduler)?;
        if self.controls.iter().any(|control| control.guess) && !controls.iter().any(|control| control.strength.guess) {
            let warning = "guess mode (--control-guess) has no effect, as no control model is a ControlNet";
            warnings.push(warning.into());
        }
        warnings.extend(self.guessed_prediction(facts.guessed_prediction));
        let xl = self.settle_xl(facts.xl, &task, (height, width), &mut warnings)?;
        let given = GivenLevels::from_config(&scheduler_config)?;
        let steps = self.steps.or(given.map(|given| given.steps())).or(defaults.steps).unwrap_or(usual_steps);
        let settings = Settings {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            prompt_syntax: self.prompt_syntax,
            steps,
            guidance_scale,
            guidance_is_embedded,
            guidance_rescale,
            guidance_shape: self.guidance_shape,
            guidance_interval: self.guidance_interval,
            projection: self.projection,
            pag_scale: self.pag_scale,
            scheduler,
            scheduler_config,
            seed: self.seed,
            width,
            height,
            num_images: self.num_images,
            batch_size: self.batch_size,
            clip_skip: self.clip_skip,
            controls,
            xl,
            warnings: [task.warnings(), warnings].concat(),
            task,
        };
        // Whether the steps can be made shows when the levels are.
        settings.build_scheduler()?.levels(settings.steps)?;
        if settings.start() == settings.steps && settings.task.unchanged().is_none() {
            let fix = format!(
                "of {steps} steps that leaves none; take {:.2} or more, or more steps",
                (100.0 / steps as f64).ceil() / 100.0
            );
            return Err(Error::invalid("the strength", settings.task.strength(), fix));
        }
        Ok(settings)
    }

    /// What the user should know of a prediction type that is a guess and was not overridden.
    fn guessed_prediction(&self, guessed: Option<&str>) -> Option<String> {
        let guessed = guessed.filter(|_| !self.scheduler_fields.contains_key("prediction_type"))?;
        let other = match guessed {
            "epsilon" => "v_prediction, with --width 768 --height 768",
            _ => "epsilon, with --width 512 --height 512",
        };
        Some(format!(
            "files of Stable Diffusion 2.x do not say what their network predicts; {guessed} is assumed. If pictures are \
             noise or stains, try --prediction-type {other}"
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
        let kinds = [rescale > 0.0, self.projection.is_some(), self.pag_scale > 0.0];
        if kinds.iter().filter(|&&kind| kind).count() > 1 {
            let fix =
                "guidance rescale, adaptive projected and perturbed-attention guidance exclude each other; choose one";
            return Err(Error::invalid("guidance", "of several kinds", fix));
        }
        Ok(())
    }

    fn scheduler(&self, file: &ConfigFields) -> Result<(SchedulerChoice, ConfigFields, Vec<String>)> {
        let choice = match (&self.scheduler, file.class_name()) {
            (Some(name), _) => schedulers::by_name(name)?,
            (None, Some(class_name)) => SchedulerChoice::of_file(class_name)?,
            (None, None) => return Err(file.wrong("_class_name", "it must name the scheduler; or use --scheduler")),
        };
        let mut config = choice.configure(file);
        let mut warnings = Vec::new();
        if self.scheduler.is_none() {
            // As diffusers' pipelines treat the scheduler files of old models.
            for (name, value) in [("steps_offset", Value::from(1)), ("clip_sample", Value::from(false))] {
                if let Some(stated) = file.fields().get(name).filter(|stated| **stated != value) {
                    warnings.push(format!(
                        "the model's scheduler file has {name} {stated}; {value} is used, as in diffusers"
                    ));
                }
                config = config.with(name, value);
            }
        }
        if let Some(list) = ["timesteps", "sigmas"].into_iter().find(|list| self.scheduler_fields.contains_key(*list)) {
            if !choice.entry.request_fields.contains(&list) || choice.suffix.is_some() {
                let fix =
                    format!("it chooses its own noise levels; leave the list of {list} away, or take euler or dpm++2m");
                return Err(Error::invalid("the scheduler", choice.name(), fix));
            }
            // A list takes the place of the file's rule.
            for rule in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"] {
                config = config.with(rule, false);
            }
        }
        for (name, value) in &self.scheduler_fields {
            if REQUEST_FIELDS.contains(&name.as_str()) && !choice.entry.request_fields.contains(&name.as_str()) {
                warnings.push(format!("{name} has no effect with the scheduler {}", choice.name()));
            }
            config = config.with(name, value.clone());
        }
        if let Some(eta) = self.scheduler_fields.get("eta")
            && !eta.as_f64().is_some_and(|eta| (0.0..=1.0).contains(&eta))
        {
            let fix = "take a number from 0 (deterministic) to 1 (as much noise as DDPM)";
            return Err(Error::invalid("eta", eta, fix));
        }
        Ok((choice, config, warnings))
    }
}

/// Fields that come with a request and that only some schedulers read.
const REQUEST_FIELDS: [&str; 2] = ["eta", "use_clipped_model_output"];

pub(crate) fn check_side(what: &str, side: usize, factor: usize) -> Result<()> {
    if side > 0 && side.is_multiple_of(factor) && side <= LARGEST_SIDE {
        return Ok(());
    }
    let below = side.min(LARGEST_SIDE) / factor * factor;
    let nearest = match (below, below + factor) {
        _ if side > LARGEST_SIDE => format!("{below} is the largest"),
        (0, above) => format!("the nearest is {above}"),
        (below, above) if above > LARGEST_SIDE => format!("the nearest is {below}"),
        (below, above) if side - below < above - side => format!("the nearest is {below}, then {above}"),
        (below, above) => format!("the nearest is {above}, then {below}"),
    };
    Err(Error::invalid(format!("the {what}"), side, format!("this model makes multiples of {factor}; {nearest}")))
}
