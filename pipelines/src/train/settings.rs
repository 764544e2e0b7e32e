//! What a run of training is asked for, and what that means for network, schedule and objective.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::str::FromStr;
use tweedie::config::ConfigFields;
use tweedie::denoising::PredictionType;
use tweedie::kernels::Products;
use tweedie::models::UNet2DConfig;
use tweedie::models::unet2d::{BlockKind, ClassEmbedding, TimeEmbedding};
use tweedie::schedulers::NoiseSchedule;
use tweedie::training::data::ImageSet;
use tweedie::training::{AdamWConfig, Decay, ForwardProcess, LearningRate, LossWeighting, Objective, TrainerOptions};
use tweedie::{DType, Error, Result};

/// The weight of the variational bound beside L_simple (Nichol and Dhariwal 2021, section 3.1).
const BOUND_WEIGHT: f64 = 0.001;

/// An enum whose variants have one name in files and on the command line.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $name {
            $($(#[$about])* #[serde(rename = $text)] $variant,)*
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(format!("choose one of {}", [$($text),*].join(", "))),
                }
            }
        }

        impl $name {
            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// What the network learns to predict.
    PredictionChoice {
        /// The noise.
        Epsilon = "epsilon",
        /// `v = alpha epsilon - sigma x0`.
        V = "v_prediction",
        /// The clean image.
        Sample = "sample",
        /// Rectified flow's velocity.
        Flow = "flow",
    }
}

named! {
    /// How betas grow.
    BetaChoice {
        /// Evenly, from 0.0001 to 0.02.
        Linear = "linear",
        /// As `cos^2` has it.
        Cosine = "squaredcos_cap_v2",
        /// Along a logistic curve.
        Sigmoid = "sigmoid",
    }
}

named! {
    /// What the learning rate does after the warm-up.
    DecayChoice {
        /// It stays.
        Constant = "constant",
        /// It falls to zero along half a cosine.
        Cosine = "cosine",
    }
}

named! {
    /// The number format of the finished model's weights.
    StoredChoice {
        /// 32 bits.
        F32 = "f32",
        /// 16 bits.
        F16 = "f16",
    }
}

named! {
    /// Which products of a training step are of numbers rounded to bf16. Weights, sums, norms and the gradients of weights are
    /// in f32 in any case.
    MixedPrecisionChoice {
        /// None.
        No = "no",
        /// Those of weights with activations and with their gradients, and those of attention, but for its gradients.
        Bf16 = "bf16",
    }
}

/// All settings of a run; `config.json` holds them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSettings {
    /// Everything random comes from it.
    pub seed: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Images of a batch.
    pub batch_size: usize,
    /// Batches of a step.
    pub accumulate: usize,
    /// The learning rate after the warm-up.
    pub learning_rate: f64,
    /// Steps over which it rises.
    pub warmup_steps: u64,
    /// What it does then.
    pub lr_schedule: DecayChoice,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Gradients are cut to this norm; 0 for not at all.
    pub grad_clip: f64,
    /// The decay of the moving average.
    pub ema_decay: f64,
    /// What the network predicts.
    pub prediction_type: PredictionChoice,
    /// How betas grow.
    pub beta_schedule: BetaChoice,
    /// Training timesteps.
    pub timesteps: usize,
    /// Whether a second half of the output channels learns the variance.
    pub learned_variance: bool,
    /// Whether timesteps are drawn by the size of their losses.
    pub importance_sampling: bool,
    /// Gamma of the min-SNR weights; 0 for none.
    pub min_snr_gamma: f64,
    /// Whether classes are left out.
    pub unconditional: bool,
    /// The share of images whose class is dropped.
    pub class_dropout: f64,
    /// Channels at each resolution.
    pub channels: Vec<usize>,
    /// Residual blocks at each resolution.
    pub blocks: usize,
    /// A `config.json` in the place of channels and blocks.
    pub unet_config: Option<Value>,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between grids of samples.
    pub sample_every: u64,
    /// Which products are rounded.
    #[serde(default = "full_precision")]
    pub mixed_precision: MixedPrecisionChoice,
    /// The number format of the finished model.
    pub dtype: StoredChoice,
}

/// What runs were that do not say.
fn full_precision() -> MixedPrecisionChoice {
    MixedPrecisionChoice::No
}

/// Settings that change nothing of what is computed, so a run may go on with others.
const FREE: [&str; 3] = ["checkpoint_every", "sample_every", "dtype"];

impl Default for TrainSettings {
    /// For MNIST on a few CPU cores.
    fn default() -> Self {
        Self {
            seed: 0,
            steps: 6000,
            batch_size: 64,
            accumulate: 1,
            learning_rate: 1e-3,
            warmup_steps: 100,
            lr_schedule: DecayChoice::Cosine,
            weight_decay: 0.01,
            grad_clip: 1.0,
            ema_decay: 0.999,
            prediction_type: PredictionChoice::V,
            beta_schedule: BetaChoice::Cosine,
            timesteps: 1000,
            learned_variance: false,
            importance_sampling: false,
            min_snr_gamma: 0.0,
            unconditional: false,
            class_dropout: 0.1,
            channels: vec![16, 32, 96],
            blocks: 1,
            unet_config: None,
            checkpoint_every: 500,
            sample_every: 1000,
            mixed_precision: MixedPrecisionChoice::No,
            dtype: StoredChoice::F32,
        }
    }
}

impl TrainSettings {
    /// These settings with some given anew, by their names; `epochs` stands for the steps that so many take.
    ///
    /// # Errors
    /// If a value cannot be one of its setting.
    pub fn with(&self, given: &Map<String, Value>, images: usize) -> Result<Self> {
        let mut fields = to_fields(self)?;
        fields.extend(given.iter().filter(|(name, _)| *name != "epochs").map(|(n, v)| (n.clone(), v.clone())));
        let mut settings: Self = from_fields(fields)?;
        if let Some(epochs) = given.get("epochs").and_then(Value::as_u64) {
            let per_step = (settings.batch_size as u64).saturating_mul(settings.accumulate as u64).max(1);
            settings.steps = epochs.saturating_mul(images as u64).div_ceil(per_step);
        }
        Ok(settings)
    }

    /// The settings of a `config.json`.
    ///
    /// # Errors
    /// If one is missing or cannot be used.
    pub fn from_config(config: &Value) -> Result<Self> {
        from_fields(config["settings"].as_object().cloned().unwrap_or_default())
    }

    /// As `config.json` holds them.
    ///
    /// # Errors
    /// If a number is not finite.
    pub fn to_json(&self) -> Result<Value> {
        Ok(Value::Object(to_fields(self)?))
    }

    /// The first setting in which a run that goes on differs: its name, the value here and the value there.
    ///
    /// # Errors
    /// If a number is not finite.
    pub fn difference(&self, other: &Self) -> Result<Option<(String, Value, Value)>> {
        let (here, there) = (to_fields(self)?, to_fields(other)?);
        let differs = |(name, value): &(&String, &Value)| !FREE.contains(&name.as_str()) && there[*name] != **value;
        Ok(here.iter().find(differs).map(|(name, value)| (name.clone(), value.clone(), there[name].clone())))
    }

    /// Whether everything can be used, apart from what the network's and the objective's constructors ask.
    ///
    /// # Errors
    /// If something cannot; the message names the option.
    pub fn check(&self) -> Result<()> {
        let at_least_one = |option: &str, value: u64| match value {
            0 => Err(Error::invalid(option, 0, "take at least 1")),
            _ => Ok(()),
        };
        at_least_one("--steps", self.steps)?;
        at_least_one("--batch-size", self.batch_size as u64)?;
        at_least_one("--accumulate", self.accumulate as u64)?;
        at_least_one("--timesteps", self.timesteps as u64)?;
        at_least_one("--checkpoint-every", self.checkpoint_every)?;
        at_least_one("--sample-every", self.sample_every)?;
        for (option, value) in [("--grad-clip", self.grad_clip), ("--min-snr-gamma", self.min_snr_gamma)] {
            if value < 0.0 || !value.is_finite() {
                return Err(Error::invalid(option, value, "it must be above 0, or 0 to turn it off"));
            }
        }
        if self.timesteps > 100_000 {
            return Err(Error::invalid("--timesteps", self.timesteps, "take at most 100000"));
        }
        Ok(())
    }

    /// Whether the network is told classes of `set`.
    pub fn conditional(&self, set: &ImageSet) -> bool {
        !self.unconditional && set.labels().is_some()
    }

    /// The network: from the given file, or made of channels and blocks, with attention at the lowest resolution.
    ///
    /// # Errors
    /// If it does not fit the images or contradicts itself.
    pub fn network(&self, set: &ImageSet) -> Result<UNet2DConfig> {
        let factor = if self.learned_variance { 2 } else { 1 };
        let classes = if self.conditional(set) { set.classes().len() } else { 0 };
        let config = match &self.unet_config {
            Some(fields) => {
                let fields = fields.as_object().cloned().unwrap_or_default();
                UNet2DConfig::from_fields(&ConfigFields::from_fields("unet", fields))?
            }
            None => self.small_network(set, classes)?,
        };
        config.check()?;
        let wrong = |field: &str, expected: String| {
            Err(ConfigFields::from_fields("unet", config.to_fields()).wrong(field, expected))
        };
        if config.in_channels != set.channels() {
            return wrong("in_channels", format!("the images have {}", set.channels()));
        }
        if config.out_channels != factor * set.channels() {
            return wrong("out_channels", format!("this objective needs {}", factor * set.channels()));
        }
        if config.num_classes() != classes {
            let fix = format!("the data has {classes} classes (with --unconditional none are used)");
            return wrong("num_class_embeds", fix);
        }
        if config.time_embedding != TimeEmbedding::Positional {
            return wrong("time_embedding_type", "networks that are trained here take positional".into());
        }
        let shrink = 1usize << (config.block_out_channels.len() - 1);
        for side in [set.height(), set.width()] {
            if side % shrink != 0 {
                let fix = format!("{} resolutions need sides that are multiples of {shrink}", shrink.ilog2() + 1);
                return Err(Error::invalid("a side of the images", side, fix + "; give fewer --channels"));
            }
        }
        Ok(config)
    }

    fn small_network(&self, set: &ImageSet, classes: usize) -> Result<UNet2DConfig> {
        let count = self.channels.len();
        if count == 0 || count > 8 || self.channels.contains(&0) {
            return Err(Error::invalid("--channels", format!("{:?}", self.channels), "give 1 to 8 widths above 0"));
        }
        let at_the_bottom = |bottom: usize| {
            (0..count).map(|i| if i == bottom { BlockKind::Attention } else { BlockKind::Plain }).collect()
        };
        let divisor = |of: &[usize], most: usize| (1..=most).rev().find(|d| of.iter().all(|c| c % d == 0)).unwrap_or(1);
        let null_class = (classes > 0).then_some(classes);
        Ok(UNet2DConfig {
            sample_size: Some((set.height(), set.width())),
            in_channels: set.channels(),
            out_channels: set.channels() * if self.learned_variance { 2 } else { 1 },
            down_blocks: at_the_bottom(count - 1),
            up_blocks: at_the_bottom(0),
            block_out_channels: self.channels.clone(),
            layers_per_block: self.blocks,
            attention_head_dim: Some(divisor(&self.channels[count - 1..], 32)),
            norm_num_groups: divisor(&self.channels, 8),
            class_embedding: null_class.map_or(ClassEmbedding::None, |null| ClassEmbedding::Table(null + 1)),
            null_class,
            ..UNet2DConfig::default()
        })
    }

    /// The scheduler's file of the model, from which training takes its betas too.
    pub fn scheduler(&self) -> Value {
        if self.prediction_type == PredictionChoice::Flow {
            return json!({
                "_class_name": "FlowMatchEulerDiscreteScheduler",
                "_diffusers_version": "0.42.1",
                "num_train_timesteps": self.timesteps,
                "shift": 1.0,
            });
        }
        json!({
            "_class_name": "DDPMScheduler",
            "_diffusers_version": "0.42.1",
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "beta_schedule": self.beta_schedule.name(),
            "clip_sample": true,
            "num_train_timesteps": self.timesteps,
            "prediction_type": self.prediction_type.name(),
            "variance_type": if self.learned_variance { "learned_range" } else { "fixed_small" },
        })
    }

    /// [`Self::scheduler`] as schedulers read it.
    pub fn scheduler_fields(&self) -> ConfigFields {
        ConfigFields::from_fields("scheduler", self.scheduler().as_object().cloned().unwrap_or_default())
    }

    /// The objective.
    ///
    /// # Errors
    /// If the settings contradict each other.
    pub fn objective(&self) -> Result<Objective> {
        let (process, prediction_type) = match self.prediction_type {
            PredictionChoice::Flow => {
                (ForwardProcess::Flow { num_train_timesteps: self.timesteps }, PredictionType::Flow)
            }
            other => {
                let schedule = NoiseSchedule::from_config(&self.scheduler_fields())?;
                let kind = match other {
                    PredictionChoice::V => PredictionType::VPrediction,
                    PredictionChoice::Sample => PredictionType::Sample,
                    _ => PredictionType::Epsilon,
                };
                (ForwardProcess::Diffusion(schedule), kind)
            }
        };
        let weighting = match self.min_snr_gamma {
            0.0 => LossWeighting::Uniform,
            gamma => LossWeighting::MinSnr { gamma },
        };
        let objective = Objective::new(process, prediction_type, weighting)?;
        if self.learned_variance { objective.with_learned_variance(BOUND_WEIGHT) } else { Ok(objective) }
    }

    /// The trainer's options for a network.
    pub fn trainer(&self, network: &UNet2DConfig) -> TrainerOptions {
        TrainerOptions {
            seed: self.seed,
            learning_rate: LearningRate {
                peak: self.learning_rate,
                warmup_steps: self.warmup_steps.min(self.steps),
                total_steps: self.steps,
                decay: match self.lr_schedule {
                    DecayChoice::Constant => Decay::Constant,
                    DecayChoice::Cosine => Decay::Cosine,
                },
            },
            adamw: AdamWConfig { weight_decay: self.weight_decay, ..AdamWConfig::default() },
            max_gradient_norm: (self.grad_clip > 0.0).then_some(self.grad_clip),
            ema_decay: self.ema_decay,
            ema_warm_up: true,
            importance_sampling: self.importance_sampling,
            accumulate: self.accumulate,
            class_dropout: if network.null_class.is_some() { self.class_dropout } else { 0.0 },
            null_class: network.null_class.unwrap_or(0) as u32,
        }
    }

    /// How products are taken.
    pub fn products(&self) -> Products {
        match self.mixed_precision {
            MixedPrecisionChoice::No => Products::Full,
            MixedPrecisionChoice::Bf16 => Products::Bf16,
        }
    }

    /// The number format of the finished model.
    pub fn stored_dtype(&self) -> DType {
        match self.dtype {
            StoredChoice::F32 => DType::F32,
            StoredChoice::F16 => DType::F16,
        }
    }
}

fn to_fields(settings: &TrainSettings) -> Result<Map<String, Value>> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(Error::invalid("the settings", "unwritable", "a number in them is not finite")),
    }
}

fn from_fields(fields: Map<String, Value>) -> Result<TrainSettings> {
    serde_json::from_value(Value::Object(fields))
        .map_err(|e| Error::invalid("a setting of the run", e, "take the config.json that the run was started with"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digits() -> Result<ImageSet> {
        let labels = (0..4).map(|i| i % 2).collect();
        ImageSet::new([1, 28, 28], vec![0; 4 * 784])?.with_labels(labels, vec!["0".into(), "1".into()])
    }

    #[test]
    fn the_network_fits_the_images() -> Result<()> {
        let set = digits()?;
        let network = TrainSettings::default().network(&set)?;
        assert_eq!((network.in_channels, network.out_channels, network.num_classes()), (1, 1, 2));
        assert_eq!((network.null_class, network.block_out_channels.len()), (Some(2), 3));
        let learned = TrainSettings { learned_variance: true, unconditional: true, ..TrainSettings::default() };
        let network = learned.network(&set)?;
        assert_eq!((network.out_channels, network.num_classes(), network.null_class), (2, 0, None));
        // 28 is no multiple of 8.
        let deep = TrainSettings { channels: vec![8; 4], ..TrainSettings::default() };
        assert!(deep.network(&set).is_err_and(|e| e.to_string().contains("multiples of 8")));
        Ok(())
    }

    #[test]
    fn what_is_given_counts_and_epochs_become_steps() -> Result<()> {
        let given = json!({"batch_size": 3, "epochs": 5, "prediction_type": "flow"});
        let settings = TrainSettings::default().with(given.as_object().unwrap_or(&Map::new()), 4)?;
        assert_eq!((settings.steps, settings.batch_size), (7, 3));
        assert_eq!(settings.scheduler()["_class_name"], "FlowMatchEulerDiscreteScheduler");
        assert_eq!(TrainSettings::from_config(&json!({"settings": settings.to_json()?}))?, settings);
        let wrong = json!({"prediction_type": "noise"});
        assert!(TrainSettings::default().with(wrong.as_object().unwrap_or(&Map::new()), 4).is_err());
        Ok(())
    }

    #[test]
    fn a_difference_is_found_where_it_matters() -> Result<()> {
        let settings = TrainSettings::default();
        let other = TrainSettings { checkpoint_every: 7, ..settings.clone() };
        assert_eq!(settings.difference(&other)?, None);
        let other = TrainSettings { learning_rate: 0.5, ..settings.clone() };
        let (name, here, there) = settings.difference(&other)?.unwrap_or_default();
        assert_eq!((name.as_str(), here, there), ("learning_rate", json!(1e-3), json!(0.5)));
        Ok(())
    }
}
