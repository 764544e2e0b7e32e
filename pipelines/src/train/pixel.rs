//! Settings of training in pixel space, and what they mean for network, schedule and objective.

use super::choices::{BetaChoice, MixedPrecisionChoice, PredictionChoice, StoredChoice};
use super::objectives::objective;
use super::settings::{
    CommonSettings, Preparation, TrainingData, TrainingSettings, at_least_one, ddpm_scheduler, flow_scheduler, setting,
    switch, zero_or_above,
};
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{json, option, options, serde_by_options};
use serde_json::{Map, Value};
use std::sync::Arc;
use tweedie::config::ConfigFields;
use tweedie::models::UNet2DConfig;
use tweedie::models::unet2d::{BlockKind, ClassEmbedding, TimeEmbedding};
use tweedie::training::data::{Augmentation, Batches, ImageSet};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{PixelDiffusion, PixelDiffusionConfig};
use tweedie::training::{ClassDropout, Objective, OptimizerOptions, ParameterSet};
use tweedie::{Error, Result};

/// The weight of the variational bound beside L_simple (Nichol and Dhariwal 2021, section 3.1).
const BOUND_WEIGHT: f64 = 0.001;

options! {
    /// Settings of training a diffusion model in pixel space. The defaults are for MNIST on a few CPU cores.
    #[derive(Debug, Clone, PartialEq)]
    pub struct PixelTrainingSettings {
        flat {
            /// What all kinds of training have.
            common: CommonSettings;
        }
        options {
            /// Steps of the run.
            steps: u64 = 6000 => setting(OptionKind::Count, "N").excluded_by("epochs");
            /// Passes over the data, in the place of `steps`.
            epochs: Option<u64> = None => option(OptionKind::Count, "N");
            /// Steps between grids of samples.
            sample_every: u64 = 1000 => setting(OptionKind::Count, "N");
            /// Learning rate after the warm-up.
            learning_rate: f64 = 1e-3 => setting(OptionKind::Number, "F");
            /// Steps over which the learning rate rises.
            warmup_steps: u64 = 100 => setting(OptionKind::Count, "N");
            /// Largest norm of the gradient; 0 does not cut it.
            grad_clip: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// Decay of the moving average of weights.
            ema_decay: f64 = 0.999 => setting(OptionKind::Number, "F");
            /// Averages of weights that are kept beside, to choose one afterwards: the lengths of their memories as relative
            /// standard deviations (EDM2).
            power_averages: Vec<f64> = vec![] => setting(OptionKind::Numbers, "F,F,...").default("none");
            /// The one of `power_averages` that the finished model has, in the place of the one of `ema_decay`. A run that is
            /// finished makes its model again with another one when it is resumed with it.
            average: Option<f64> = None => setting(OptionKind::Number, "F");
            /// What the network predicts.
            prediction_type: PredictionChoice = PredictionChoice::V =>
                setting(OptionKind::Choice(PredictionChoice::NAMES), "NAME");
            /// How betas grow.
            beta_schedule: BetaChoice = BetaChoice::Cosine => setting(OptionKind::Choice(BetaChoice::NAMES), "NAME");
            /// Rescale betas to zero terminal SNR, so that the last timestep is noise alone, and sample from that one on.
            zero_terminal_snr: bool = false => switch(FlagValue::On);
            /// Training timesteps.
            timesteps: usize = 1000 => setting(OptionKind::Count, "N");
            /// Learn the variance of the reverse step (hybrid loss).
            learned_variance: bool = false => switch(FlagValue::On);
            /// Minimise the variational bound alone, through which mean and variance of the reverse step are learned, in the place
            /// of the hybrid loss.
            variational_bound: bool = false => switch(FlagValue::On).needs("learned_variance");
            /// Draw timesteps by the size of their losses.
            importance_sampling: bool = false => switch(FlagValue::On);
            /// Gamma of the min-SNR weights; 0 for even weights.
            min_snr_gamma: f64 = 0.0 => setting(OptionKind::Number, "F");
            /// Do not tell the network classes.
            unconditional: bool = false => switch(FlagValue::On);
            /// Share of images whose class is dropped, for classifier-free guidance.
            class_dropout: f64 = 0.1 => setting(OptionKind::Number, "F");
            /// Mirror half of the pictures.
            flip: bool = false => switch(FlagValue::On);
            /// The most pixels by which pictures are moved at random; what comes in has the colour of the first pixel.
            shift: usize = 0 => setting(OptionKind::Count, "N");
            /// Channels at each resolution.
            channels: Vec<usize> = vec![16, 32, 96] => setting(OptionKind::Counts, "N,N,...").default("16,32,96");
            /// Residual blocks at each resolution.
            blocks: usize = 1 => setting(OptionKind::Count, "N");
            /// The network in diffusers' form, in the place of `channels` and `blocks`.
            unet_config: Option<Map<String, Value>> = None => json().always_recorded();
            /// Which products are of rounded numbers: no, or bf16, which is faster where the CPU multiplies bf16 (AVX-512
            /// BF16, AMX); weights and sums stay f32.
            mixed_precision: MixedPrecisionChoice = MixedPrecisionChoice::No =>
                setting(OptionKind::Choice(MixedPrecisionChoice::NAMES), "NAME");
            /// Number format of the finished model.
            dtype: StoredChoice = StoredChoice::F32 => setting(OptionKind::Choice(StoredChoice::NAMES), "NAME");
        }
    }
}

impl Default for PixelTrainingSettings {
    fn default() -> Self {
        Self::of(CommonSettings::default())
    }
}

serde_by_options!(PixelTrainingSettings);

impl TrainingSettings for PixelTrainingSettings {
    type Data = TrainingData;
    type Task = PixelDiffusion;
    type Batches = Batches;

    const FREE: &'static [&'static str] = &["sample_every", "dtype", "average"];

    fn common(&self) -> &CommonSettings {
        &self.common
    }

    fn settled(mut self, data: &TrainingData) -> Self {
        self.common.settle(&mut self.steps, &mut self.epochs, data);
        self
    }

    fn check(&self) -> Result<()> {
        self.common.check()?;
        at_least_one("steps", self.steps)?;
        at_least_one("timesteps", self.timesteps as u64)?;
        at_least_one("sample_every", self.sample_every)?;
        zero_or_above("grad_clip", self.grad_clip)?;
        zero_or_above("min_snr_gamma", self.min_snr_gamma)?;
        if self.timesteps > 100_000 {
            return Err(Error::invalid("`timesteps`", self.timesteps, "take at most 100000"));
        }
        if self.zero_terminal_snr && !matches!(self.prediction_type, PredictionChoice::V | PredictionChoice::Sample) {
            let fix = "noise alone says nothing of the picture through epsilon, and a flow ends in it anyway; take v_prediction";
            return Err(Error::invalid("`prediction_type` with `zero_terminal_snr`", self.prediction_type.name(), fix));
        }
        if self.variational_bound && !self.learned_variance {
            let fix = "the variance is learned through it; set `learned_variance` too";
            return Err(Error::invalid("`variational_bound`", "on", fix));
        }
        Ok(())
    }

    fn architecture(&self, data: &TrainingData) -> Result<Map<String, Value>> {
        let network = self.network(&data.train)?.to_fields();
        let parts = [("unet", network), ("scheduler", self.scheduler())];
        Ok(parts.into_iter().map(|(name, fields)| (name.to_owned(), Value::Object(fields))).collect())
    }

    fn task(&self, data: &mut TrainingData) -> Result<(PixelDiffusion, Vec<ParameterSet>)> {
        let (task, set) = PixelDiffusion::new(self.config(&data.train)?, self.common.seed, self.optimizer())?;
        Ok((task, vec![set.with_power_averages(&self.power_averages, self.average)?]))
    }

    fn check_batches(&self, data: &TrainingData) -> Result<()> {
        self.batches_of(&data.train).map(drop)
    }

    fn batches(&self, data: &TrainingData, _: &PixelDiffusion, _: &mut Preparation<'_, '_>) -> Result<Batches> {
        self.batches_of(&data.train)
    }

    fn plan(&self) -> RunPlan {
        RunPlan { steps: self.steps, sample_every: Some(self.sample_every), ..self.common.plan() }
    }

    fn warnings(&self) -> Vec<String> {
        self.mixed_precision.warning().into_iter().collect()
    }
}

impl PixelTrainingSettings {
    /// What is trained on pictures like those of a set.
    ///
    /// # Errors
    /// If the network does not fit them, or the settings contradict each other.
    pub fn config(&self, set: &ImageSet) -> Result<PixelDiffusionConfig> {
        let network = self.network(set)?;
        let dropout = |null: usize| ClassDropout { probability: self.class_dropout, null_class: null as u32 };
        Ok(PixelDiffusionConfig {
            size: (set.height(), set.width()),
            objective: self.objective()?,
            importance_sampling: self.importance_sampling,
            class_dropout: network.null_class.map(dropout),
            class_names: if self.conditional(set) { set.classes().to_vec() } else { Vec::new() },
            products: self.mixed_precision.into(),
            scheduler: self.scheduler(),
            dtype: self.dtype.into(),
            network,
        })
    }

    fn batches_of(&self, set: &Arc<ImageSet>) -> Result<Batches> {
        let augmentation = Augmentation { flip: self.flip, shift: self.shift, crop: None };
        self.common.batches(set, augmentation)
    }

    /// How the network's parameters are moved.
    pub fn optimizer(&self) -> OptimizerOptions {
        let learning_rate = self.common.learning_rate(self.learning_rate, self.warmup_steps, self.steps);
        self.common.optimizer(learning_rate, self.grad_clip, self.ema_decay)
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
            Some(fields) => UNet2DConfig::from_fields(&ConfigFields::from_fields("unet", fields.clone()))?,
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
            let fix = format!("the data has {classes} classes (with `unconditional` none are used)");
            return wrong("num_class_embeds", fix);
        }
        if config.time_embedding != TimeEmbedding::Positional {
            return wrong("time_embedding_type", "networks that are trained here take positional".into());
        }
        let shrink = 1usize << (config.block_out_channels.len() - 1);
        for side in [set.height(), set.width()] {
            if side % shrink != 0 {
                let fix = format!("{} resolutions need sides that are multiples of {shrink}", shrink.ilog2() + 1);
                return Err(Error::invalid("a side of the images", side, fix + "; give fewer `channels`"));
            }
        }
        Ok(config)
    }

    fn small_network(&self, set: &ImageSet, classes: usize) -> Result<UNet2DConfig> {
        let count = self.channels.len();
        if count == 0 || count > 8 || self.channels.contains(&0) {
            return Err(Error::invalid("`channels`", format!("{:?}", self.channels), "give 1 to 8 widths above 0"));
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
    pub fn scheduler(&self) -> Map<String, Value> {
        if self.prediction_type == PredictionChoice::Flow {
            return flow_scheduler(self.timesteps);
        }
        let mut scheduler = ddpm_scheduler(self.beta_schedule, self.timesteps);
        scheduler.extend([
            ("prediction_type".to_owned(), self.prediction_type.name().into()),
            ("variance_type".to_owned(), if self.learned_variance { "learned_range" } else { "fixed_small" }.into()),
        ]);
        if self.zero_terminal_snr {
            scheduler.extend([
                ("rescale_betas_zero_snr".to_owned(), true.into()),
                ("timestep_spacing".to_owned(), "trailing".into()),
            ]);
        }
        scheduler
    }

    /// The objective.
    ///
    /// # Errors
    /// If the settings contradict each other.
    pub fn objective(&self) -> Result<Objective> {
        let objective = objective(&ConfigFields::from_fields("scheduler", self.scheduler()), self.min_snr_gamma)?;
        match (self.learned_variance, self.variational_bound) {
            (true, true) => objective.with_variational_bound(),
            (true, false) => objective.with_learned_variance(BOUND_WEIGHT),
            (false, _) => Ok(objective),
        }
    }
}
