//! What is wanted of a model in pixel space, and the only place that checks it.

use crate::model::Defaults;
use crate::requests::kind::OptionKind;
use crate::requests::options::{json, option, options, serde_by_options};
use crate::requests::values::{OptionValue, read, values_by_serde, write};
use crate::settings::warnings::{burning, unsuited_scheduler};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use tweedie::config::ConfigFields;
use tweedie::families::{ClassifierFacts, PixelFacts};
use tweedie::schedulers::{self, Scheduler, SchedulerChoice};
use tweedie::{Error, ErrorKind, Result};

/// The most pictures of a request.
const MOST_IMAGES: usize = 100_000;

/// The most values of a batch, which bounds its memory.
const MOST_VALUES: usize = 1 << 28;

/// Steps where neither request nor model says how many, as diffusers' DDIM pipeline has them.
const STEPS: usize = 50;

options! {
    /// A request for pictures of a model in pixel space. What is `None` is taken from the model.
    #[derive(Debug, Clone, PartialEq)]
    pub struct PixelRequest {
        options {
            /// The classes of the pictures in turn, by their names, if the model says them, or their numbers.
            ///
            /// Image `i` is of class `classes[i mod n]`.
            classes: Vec<PixelClass> = Vec::new() => option(OptionKind::Names, "C,C,...").default("all classes of the model in turn");
            /// How many pictures.
            num_images: Option<usize> = None => option(OptionKind::Count, "N").default("one for each of `classes`, else 1");
            /// Number of denoising steps.
            steps: Option<usize> = None =>
                option(OptionKind::Count, "N").default("the model's, else 50").always_recorded();
            /// The sampler, such as ddpm, ddim or dpm++2m; `tweedie schedulers` lists all.
            scheduler: Option<String> = None => option(OptionKind::Name, "NAME").default("the model's").always_recorded();
            /// Fresh noise in the steps of DDIM and TCD, 0 to 1.
            eta: Option<f64> = None => option(OptionKind::Number, "F").default("0");
            /// How strongly to follow the class; 1 turns guidance off.
            guidance_scale: Option<f64> = None =>
                option(OptionKind::Number, "F").default("the model's, else 1").always_recorded();
            /// How strongly the classifier guides.
            classifier_scale: Option<f64> = None => option(OptionKind::Number, "F").default("1").needs("classifier");
            /// Fields that override those of the model's scheduler file.
            ///
            /// A picture's record has all of them.
            scheduler_config: Map<String, Value> = Map::new() => json().always_recorded();
            /// The first image's seed; image i uses seed + i. The word random or -1 draws one, which is told. It is the same by default, so
            /// that a command makes the same picture again.
            seed: u64 = 0 => option(OptionKind::Seed, "N").always_recorded();
            /// How many pictures at a time; changes speed and memory, not the pictures.
            batch_size: usize = 16 => option(OptionKind::Count, "N");
        }
    }
}

impl Default for PixelRequest {
    fn default() -> Self {
        Self::of()
    }
}

serde_by_options!(PixelRequest);

/// What the check of a request needs to know of a model.
#[derive(Debug)]
pub(super) struct PixelModelFacts<'a> {
    pub network: PixelFacts,
    /// The names of its classes, if the model says them.
    pub class_names: &'a [String],
    pub classifier: Option<ClassifierFacts>,
    pub scheduler: &'a ConfigFields,
    /// `_class_name` in `model_index.json`.
    pub pipeline_class: Option<&'a str>,
    pub defaults: &'a Defaults,
}

/// A class of a model, by its number from 0 on, or by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PixelClass {
    /// Its number.
    Number(u32),
    /// Its name, of a model that says them (`id2label` in `model_index.json`).
    Name(String),
}

impl PixelClass {
    /// Its number, among so many classes, which have these names if any. What is the name of a class is not taken for a number.
    ///
    /// # Errors
    /// If it is none of them; the message says which there are.
    pub fn among(&self, count: usize, names: &[String]) -> Result<u32> {
        let text = self.to_string();
        let named = names.iter().position(|known| *known == text);
        let number = named.or(if let Self::Number(number) = self { Some(*number as usize) } else { None });
        number.filter(|&number| number < count).map(|number| number as u32).ok_or_else(|| {
            let names = if names.is_empty() { String::new() } else { format!(", or a name: {}", names.join(", ")) };
            let fix = format!("this model has {count}; take 0 to {}{names}", count.saturating_sub(1));
            Error::invalid("a class", self, fix)
        })
    }
}

impl FromStr for PixelClass {
    type Err = Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.into()), Self::Number))
    }
}

impl From<u32> for PixelClass {
    fn from(number: u32) -> Self {
        Self::Number(number)
    }
}

impl fmt::Display for PixelClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

values_by_serde! {
    PixelClass: "a whole number from 0 on, or a name";
}

/// A request that has been checked, with every default filled in.
#[derive(Debug, Clone)]
pub struct PixelSettings {
    /// The classes that images take in turn; none if there are none.
    pub classes: Vec<u32>,
    /// Number of denoising steps.
    pub steps: usize,
    /// Scale of classifier-free guidance.
    pub guidance_scale: f64,
    /// Scale of classifier guidance; 0 without a classifier.
    pub classifier_scale: f64,
    /// The scheduler.
    pub scheduler: SchedulerChoice,
    /// Its configuration: the model's file with the request's fields.
    pub scheduler_config: ConfigFields,
    /// Whether the network also predicts a variance.
    pub learned_variance: bool,
    /// The first image's seed.
    pub seed: u64,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// How many pictures.
    pub num_images: usize,
    /// How many at a time.
    pub batch_size: usize,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl PixelSettings {
    /// The scheduler, configured.
    ///
    /// # Errors
    /// If a field of its configuration has an unusable value.
    pub fn build_scheduler(&self) -> Result<Box<dyn Scheduler>> {
        self.scheduler.entry.build(&self.scheduler_config)
    }

    /// The request that makes these pictures whatever a model's defaults are, without how many and of which classes.
    pub(super) fn request(&self) -> PixelRequest {
        let fields = self.scheduler_config.fields().iter().filter(|(name, _)| !name.starts_with('_'));
        PixelRequest {
            steps: Some(self.steps),
            scheduler: Some(self.scheduler.name()),
            guidance_scale: Some(self.guidance_scale),
            classifier_scale: Some(self.classifier_scale).filter(|&scale| scale != 0.0),
            scheduler_config: fields.map(|(name, value)| (name.clone(), value.clone())).collect(),
            seed: self.seed,
            ..PixelRequest::default()
        }
    }

    /// The seed of an image.
    pub fn seed_of(&self, index: usize) -> u64 {
        self.seed.wrapping_add(index as u64)
    }

    /// The class of an image, if there are classes.
    pub fn class_of(&self, index: usize) -> Option<u32> {
        self.classes.get(index.checked_rem(self.classes.len())?).copied()
    }

    /// Seeds and classes of the images, in batches.
    pub fn batches(&self) -> Vec<(Vec<u64>, Vec<u32>)> {
        let indices: Vec<usize> = (0..self.num_images).collect();
        let batch = |indices: &[usize]| {
            let seeds = indices.iter().map(|&i| self.seed_of(i)).collect();
            (seeds, indices.iter().filter_map(|&i| self.class_of(i)).collect())
        };
        indices.chunks(self.batch_size).map(batch).collect()
    }
}

impl PixelRequest {
    /// How many pictures are asked for.
    pub fn count(&self) -> usize {
        self.num_images.unwrap_or(self.classes.len().max(1))
    }

    /// Checks the request against the model and fills in defaults.
    pub(super) fn settle(&self, facts: &PixelModelFacts<'_>) -> Result<PixelSettings> {
        let (height, width) = facts.network.sample_size;
        let num_images = self.count();
        let batch_size = self.batch_size.min(num_images.max(1));
        for (what, count) in [("the number of images", num_images), ("the batch size", self.batch_size)] {
            if count == 0 || count > MOST_IMAGES {
                return Err(Error::invalid(what, count, format!("take 1 to {MOST_IMAGES}")));
            }
        }
        let values = facts.network.channels.saturating_mul(height).saturating_mul(width);
        if values.saturating_mul(batch_size) > MOST_VALUES {
            let fix = format!("pictures of {width}x{height} allow {} at most", (MOST_VALUES / values).max(1));
            return Err(Error::invalid("the batch size", batch_size, fix));
        }
        let (scheduler, scheduler_config, warnings) = self.scheduler(facts)?;
        // First, since a classifier of other pictures has other classes too.
        let classifier_scale = self.classifier_scale(facts)?;
        let mut settings = PixelSettings {
            classes: self.classes(facts)?,
            steps: 0,
            guidance_scale: self.guidance_scale(facts)?,
            classifier_scale,
            scheduler,
            scheduler_config,
            learned_variance: facts.network.learned_variance,
            seed: self.seed,
            width,
            height,
            num_images,
            batch_size,
            warnings,
        };
        // Whether the steps can be made shows when the levels are.
        let scheduler = settings.build_scheduler()?;
        settings.steps = match self.steps.or(facts.defaults.steps) {
            Some(steps) => scheduler.levels(steps).map(|_| steps)?,
            None => scheduler.steps_up_to(STEPS)?,
        };
        if settings.classifier_scale != 0.0 && scheduler.schedule().is_none() {
            let fix = "it has no training timesteps, which a classifier is told; take another, such as ddim";
            return Err(Error::invalid("the scheduler", settings.scheduler.name(), fix));
        }
        settings.warnings.extend(burning(settings.guidance_scale, "1 to 5"));
        Ok(settings)
    }

    fn classes(&self, facts: &PixelModelFacts<'_>) -> Result<Vec<u32>> {
        let of_model = facts.network.classes;
        let of_classifier = facts.classifier.map(|classifier| classifier.classes);
        let known = match (of_model, of_classifier) {
            (0, None) if self.classes.is_empty() => return Ok(Vec::new()),
            (0, None) => {
                let fix = "this model was trained without classes; leave `classes` away, or guide it with `classifier`";
                return Err(Error::invalid("the list of classes", list(&self.classes), fix));
            }
            (0, Some(known)) => known,
            (known, None) => known,
            (known, Some(too)) if known == too => known,
            (known, Some(other)) => {
                let fix = format!("the model has {known}; the two do not belong together");
                return Err(Error::unusable(ErrorKind::Model, "the classifier's number of classes", other, fix));
            }
        };
        if self.classes.is_empty() {
            return Ok((0..known as u32).collect());
        }
        self.classes.iter().map(|class| class.among(known, facts.class_names)).collect()
    }

    fn guidance_scale(&self, facts: &PixelModelFacts<'_>) -> Result<f64> {
        let scale = self.guidance_scale.or(facts.defaults.guidance_scale).unwrap_or(1.0);
        if !scale.is_finite() || scale < 0.0 {
            return Err(Error::invalid("the guidance scale", scale, "take a number from 0 on; 1 turns guidance off"));
        }
        if scale != 1.0 && facts.network.null_class.is_none() {
            let fix = if facts.network.classes == 0 {
                "this model was trained without classes, so there is nothing to guide to; leave it away"
            } else {
                "this model has no null class, so it cannot say what it would do without a class; leave it away, or \
                 train with class dropout"
            };
            return Err(Error::invalid("the guidance scale", scale, fix));
        }
        Ok(scale)
    }

    fn classifier_scale(&self, facts: &PixelModelFacts<'_>) -> Result<f64> {
        let Some(classifier) = facts.classifier else {
            return match self.classifier_scale {
                Some(scale) => Err(Error::invalid("the classifier scale", scale, "there is no classifier; give one")),
                None => Ok(0.0),
            };
        };
        let ClassifierFacts { channels, sample_size, .. } = classifier;
        if facts.network.sample_size != sample_size || facts.network.channels != channels {
            let (height, width) = sample_size;
            let value = format!("for {width}x{height} pictures of {channels} channels");
            return Err(Error::unusable(
                ErrorKind::Model,
                "the classifier",
                value,
                "the model makes others; take one trained on the same",
            ));
        }
        let scale = self.classifier_scale.unwrap_or(1.0);
        if !scale.is_finite() || scale < 0.0 {
            return Err(Error::invalid("the classifier scale", scale, "take a number from 0 on; 0 turns it off"));
        }
        Ok(scale)
    }

    fn scheduler(&self, facts: &PixelModelFacts<'_>) -> Result<(SchedulerChoice, ConfigFields, Vec<String>)> {
        let file = facts.scheduler;
        let asked = self.scheduler.as_ref().or(facts.defaults.scheduler.as_ref());
        let choice = match (asked, facts.pipeline_class, file.class_name()) {
            (Some(name), _, _) => schedulers::by_name(name)?,
            // That pipeline takes any scheduler's file as its own.
            (None, Some("DDIMPipeline"), _) => schedulers::by_name("ddim")?,
            (None, _, Some(class_name)) => SchedulerChoice::of_file(class_name)?,
            (None, _, None) => {
                return Err(file.wrong("_class_name", "it must name the scheduler; or use `scheduler`"));
            }
        };
        let mut config = choice.configure(file);
        let mut warnings = Vec::new();
        let mut fields = self.scheduler_config.clone();
        fields.extend(self.eta.map(|eta| ("eta".into(), eta.into())));
        for (name, value) in &fields {
            if name == "eta" {
                if !value.as_f64().is_some_and(|eta| (0.0..=1.0).contains(&eta)) {
                    let fix = "take a number from 0 (deterministic) to 1 (as much noise as DDPM)";
                    return Err(Error::invalid("eta", value, fix));
                }
                if !choice.entry.request_fields.contains(&"eta") {
                    warnings.push(format!("eta has no effect with the scheduler {}", choice.name()));
                }
            }
            config = config.with_requested(name, value.clone());
        }
        config = choice.entry.with_pipeline_defaults(config);
        warnings.extend(unsuited_scheduler(&choice, file, &config));
        if facts.classifier.is_some_and(|classifier| !classifier.noisy) {
            warnings
                .push("the classifier was trained on clean pictures; it guides better if trained on noisy ones".into());
        }
        Ok((choice, config, warnings))
    }
}

fn list(classes: &[PixelClass]) -> String {
    classes.iter().map(PixelClass::to_string).collect::<Vec<_>>().join(",")
}
