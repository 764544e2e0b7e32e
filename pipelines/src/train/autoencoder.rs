//! Settings of training an autoencoder.

use super::choices::{MixedPrecisionChoice, StoredChoice};
use super::component::Component;
use super::settings::{
    CommonSettings, FROM, Preparation, START, TrainingData, TrainingSettings, at_least_one, setting, switch,
    zero_or_above,
};
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{json, option, options, serde_by_options};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use tweedie::config::ConfigFields;
use tweedie::models::{AutoencoderConfig, PatchDiscriminatorConfig};
use tweedie::training::data::{Augmentation, Batches, ImageSet};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{Adversarial, AutoencoderTraining, AutoencoderTrainingConfig};
use tweedie::training::{OptimizerOptions, ParameterSet, ReconstructionLoss};
use tweedie::{Error, Result};

/// The folder of an autoencoder in a model.
const VAE: &str = "vae";

options! {
    /// Settings of training an autoencoder. The defaults are for pictures of 128 pixels a side on a few CPU cores.
    #[derive(Debug, Clone, PartialEq)]
    pub struct AutoencoderTrainingSettings {
        flat {
            /// What all kinds of training have.
            common: CommonSettings;
        }
        options {
            /// Steps of the run.
            steps: u64 = 6000 => setting(OptionKind::Count, "N").excluded_by("epochs");
            /// Passes over the data, in the place of `steps`.
            epochs: Option<u64> = None => option(OptionKind::Count, "N");
            /// Steps between grids of reconstructions.
            sample_every: u64 = 500 => setting(OptionKind::Count, "N");
            /// Learning rate after the warm-up.
            learning_rate: f64 = 4e-4 => setting(OptionKind::Number, "F");
            /// Steps over which the learning rate rises.
            warmup_steps: u64 = 100 => setting(OptionKind::Count, "N");
            /// Largest norm of the gradient; 0 does not cut it.
            grad_clip: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// Decay of the moving average of weights.
            ema_decay: f64 = 0.999 => setting(OptionKind::Number, "F");
            /// Side of the squares that are cut out of pictures at random, which must be a multiple of the factor by which
            /// latents are smaller; 0 takes pictures whole.
            crop: usize = 64 => setting(OptionKind::Count, "N");
            /// Do not mirror half of the pictures.
            flip: bool = true => switch(FlagValue::Off).named("no_flip");
            /// Channels of latents.
            latent_channels: usize = 8 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// Channels at each resolution, each half of the one before.
            channels: Vec<usize> = vec![32, 64, 96, 96] =>
                setting(OptionKind::Counts, "N,N,...").default("32,64,96,96").excluded_by(FROM);
            /// Residual blocks at each resolution; the decoder has one more.
            blocks: usize = 1 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// The network in diffusers' form, in the place of `channels`, `blocks` and `latent_channels`.
            vae_config: Option<Map<String, Value>> = None => json().always_recorded().excluded_by(FROM);
            /// The folder of an autoencoder to go on from, with its network; it has to be there until the run ends.
            from: Option<PathBuf> = None => setting(OptionKind::Text, "MODEL");
            /// Differences below it are squared, as Huber has it; 0 squares none.
            huber: f64 = 0.0 => setting(OptionKind::Number, "F");
            /// Weight of structural similarity.
            ssim: f64 = 0.5 => setting(OptionKind::Number, "F");
            /// Weight of differences of edges at three resolutions.
            edges: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// Weight of the divergence of latents from the standard normal.
            kl: f64 = 3e-5 => setting(OptionKind::Number, "F");
            /// Weight of halved pictures from halved latents, which keeps latents smooth.
            equivariance: f64 = 0.25 => setting(OptionKind::Number, "F");
            /// Steps after which a discriminator judges reconstructions too; without it none does.
            discriminator_start: Option<u64> = None => setting(OptionKind::Count, "N");
            /// Weight of the discriminator's opinion.
            discriminator_weight: f64 = 0.1 => setting(OptionKind::Number, "F").needs("discriminator_start");
            /// Which products are of rounded numbers: no, or bf16, which is faster where the CPU multiplies bf16 (AVX-512
            /// BF16, AMX); weights and sums stay f32.
            mixed_precision: MixedPrecisionChoice = MixedPrecisionChoice::No =>
                setting(OptionKind::Choice(MixedPrecisionChoice::NAMES), "NAME");
            /// Number format of the finished model.
            dtype: StoredChoice = StoredChoice::F32 => setting(OptionKind::Choice(StoredChoice::NAMES), "NAME");
        }
    }
}

impl Default for AutoencoderTrainingSettings {
    fn default() -> Self {
        Self::of(CommonSettings { batch_size: 16, ..CommonSettings::default() })
    }
}

serde_by_options!(AutoencoderTrainingSettings);

impl TrainingSettings for AutoencoderTrainingSettings {
    type Data = TrainingData;
    type Task = AutoencoderTraining;
    type Batches = Batches;

    /// Where the autoencoder to go on from is may change as long as it is the same, which `architecture` sees.
    const FREE: &'static [&'static str] = &["sample_every", "dtype", "from"];

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
        at_least_one("sample_every", self.sample_every)?;
        zero_or_above("grad_clip", self.grad_clip)
    }

    fn architecture(&self, data: &TrainingData) -> Result<Map<String, Value>> {
        let start = self.start()?;
        let network = self.network(&data.train, start.as_ref())?.to_fields();
        let mut parts = Map::from_iter([(VAE.to_owned(), Value::Object(network))]);
        if let Some(start) = start {
            parts.insert(START.into(), json!({FROM: start.sha256()?}));
        }
        Ok(parts)
    }

    fn task(&self, data: &mut TrainingData) -> Result<(AutoencoderTraining, Vec<ParameterSet>)> {
        let start = self.start()?;
        let config = AutoencoderTrainingConfig {
            network: self.network(&data.train, start.as_ref())?,
            reconstruction: self.reconstruction(),
            kl: self.kl,
            equivariance: self.equivariance,
            adversarial: self.discriminator_start.map(|start| Adversarial {
                start,
                weight: self.discriminator_weight,
                network: PatchDiscriminatorConfig { in_channels: data.train.channels(), channels: 32, layers: 3 },
            }),
            products: self.mixed_precision.into(),
            dtype: self.dtype.into(),
        };
        let (seed, optimizer) = (self.common.seed, self.optimizer());
        let (task, sets) = Component::build_from(start.as_ref(), |weights| {
            AutoencoderTraining::new(config, data.train.clone(), weights, seed, optimizer)
        })?;
        let task = match (data.test.take(), self.common.held_out()) {
            (Some(test), _) => task.judged_by(test),
            (None, Some(share)) => task.judged_by_held_out(share, seed)?,
            (None, None) => task,
        };
        Ok((task.with_record(self.account()), sets))
    }

    fn check_batches(&self, data: &TrainingData) -> Result<()> {
        self.batches_of(&data.train).map(drop)
    }

    fn batches(&self, data: &TrainingData, _: &AutoencoderTraining, _: &mut Preparation<'_, '_>) -> Result<Batches> {
        self.batches_of(&data.train)
    }

    fn plan(&self) -> RunPlan {
        RunPlan { steps: self.steps, sample_every: Some(self.sample_every), ..self.common.plan() }
    }

    fn warnings(&self) -> Vec<String> {
        self.mixed_precision.warning().into_iter().collect()
    }
}

impl AutoencoderTrainingSettings {
    fn batches_of(&self, set: &Arc<ImageSet>) -> Result<Batches> {
        let augmentation = Augmentation { flip: self.flip, shift: 0, crop: (self.crop > 0).then_some(self.crop) };
        self.common.batches(set, augmentation)
    }

    fn reconstruction(&self) -> ReconstructionLoss {
        ReconstructionLoss { huber: self.huber, ssim: self.ssim, edges: self.edges }
    }

    /// How the network's parameters are moved.
    fn optimizer(&self) -> OptimizerOptions {
        let learning_rate = self.common.learning_rate(self.learning_rate, self.warmup_steps, self.steps);
        self.common.optimizer(learning_rate, self.grad_clip, self.ema_decay)
    }

    /// The network: that of the model to go on from, that of the given file, or one made of channels and blocks.
    ///
    /// # Errors
    /// If it does not fit the pictures or contradicts itself.
    fn network(&self, set: &ImageSet, start: Option<&Component>) -> Result<AutoencoderConfig> {
        let fields = match (start, &self.vae_config) {
            (Some(start), _) => start.fields().clone(),
            (None, Some(fields)) => ConfigFields::from_fields(VAE, fields.clone()),
            (None, None) => self.small_network(set)?,
        };
        let config = AutoencoderConfig::from_fields(&fields)?;
        if config.in_channels != set.channels() || config.out_channels != set.channels() {
            return Err(fields.wrong("in_channels", format!("the pictures have {}", set.channels())));
        }
        let factor = config.latent_space().factor;
        let sides = if self.crop > 0 { vec![self.crop] } else { vec![set.height(), set.width()] };
        let least = self.reconstruction().least_side() * if self.equivariance > 0.0 { 2 } else { 1 };
        if let Some(side) = sides.iter().find(|&&side| side < least) {
            let fix = format!(
                "what `ssim`, `edges` and `equivariance` compare needs {least} pixels a side; give more to `crop`, or 0 to take \
                 pictures whole, or 0 to those weights"
            );
            return Err(Error::invalid("a side of what is trained on", side, fix));
        }
        // What is judged and shown in the end is whole.
        for side in sides.into_iter().chain([set.height(), set.width()]) {
            if side % factor != 0 || (self.equivariance > 0.0 && side % (2 * factor) != 0) {
                let fix = format!(
                    "with `channels` of {factor} times fewer latents a side, sides are multiples of {}",
                    2 * factor
                );
                return Err(Error::invalid("a side of the pictures", side, fix));
            }
        }
        Ok(config)
    }

    fn small_network(&self, set: &ImageSet) -> Result<ConfigFields> {
        let count = self.channels.len();
        if count == 0 || count > 8 || self.channels.contains(&0) {
            return Err(Error::invalid("`channels`", format!("{:?}", self.channels), "give 1 to 8 widths above 0"));
        }
        let divides = |groups: &usize| self.channels.iter().all(|channels| channels % groups == 0);
        let groups = (1..=16).rev().find(divides).unwrap_or(1);
        let fields = json!({
            "in_channels": set.channels(),
            "out_channels": set.channels(),
            "latent_channels": self.latent_channels,
            "block_out_channels": self.channels,
            "down_block_types": vec!["DownEncoderBlock2D"; count],
            "up_block_types": vec!["UpDecoderBlock2D"; count],
            "layers_per_block": self.blocks,
            "norm_num_groups": groups,
            "mid_block_add_attention": false,
            "force_upcast": false,
        });
        Ok(ConfigFields::from_fields(VAE, fields.as_object().cloned().unwrap_or_default()))
    }

    /// The autoencoder to go on from.
    fn start(&self) -> Result<Option<Component>> {
        self.from.as_deref().map(|model| Component::in_folder(model, VAE)).transpose()
    }
}
