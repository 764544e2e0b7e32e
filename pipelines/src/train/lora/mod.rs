//! Settings of training a LoRA, and what they mean for its factors and its objective.

mod data;

pub use data::LoraTrainingData;

use super::captioned::sample_prompts;
use super::choices::{DecayChoice, HeldChoice, LoraFormChoice, LoraModulesChoice, MixedPrecisionChoice, StoredChoice};
use super::encoded::Encoded;
use super::objectives::objective;
use super::settings::{CommonSettings, Preparation, TrainingSettings, at_least_one, setting, switch, zero_or_above};
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{json, option, options, serde_by_options};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tweedie::training::data::{Buckets, LatentBatches, LatentOptions};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{HeldWeights, LoraTraining, LoraTrainingConfig, SamplePrompts};
use tweedie::training::{LowRankConfig, OptimizerOptions, ParameterSet};
use tweedie::{DType, Error, Result};

/// Prompts of a sample grid where none are given.
const SAMPLE_PROMPTS: usize = 4;

options! {
    /// Settings of training a LoRA. The defaults are for a few pictures of one thing.
    #[derive(Debug, Clone, PartialEq)]
    pub struct LoraTrainingSettings {
        flat {
            /// What all kinds of training have.
            common: CommonSettings;
        }
        options {
            /// Steps of the run.
            steps: u64 = 1000 => setting(OptionKind::Count, "N").excluded_by("epochs");
            /// Passes over the data, in the place of `steps`.
            epochs: Option<u64> = None => option(OptionKind::Count, "N");
            /// Steps between grids of samples.
            sample_every: u64 = 200 => setting(OptionKind::Count, "N");
            /// The model that the LoRA is for, which stays as it is; by default the embedded one.
            model: Option<PathBuf> = None => setting(OptionKind::Text, "MODEL");
            /// One caption for all pictures, in the place of those in files.
            caption: Option<String> = None => setting(OptionKind::Text, "TEXT");
            /// Rank of the changes of weights.
            rank: usize = 8 => setting(OptionKind::Count, "N");
            /// What a change is multiplied by, times the rank; by default the rank.
            alpha: Option<f64> = None => setting(OptionKind::Number, "F");
            /// Which weights change: those of attention, all of the transformer blocks, or those of residual blocks too (LoCon).
            modules: LoraModulesChoice = LoraModulesChoice::Attention =>
                setting(OptionKind::Choice(LoraModulesChoice::NAMES), "NAME");
            /// Change the text encoder too.
            train_text_encoder: bool = false => switch(FlagValue::On);
            /// Learning rate after the warm-up.
            learning_rate: f64 = 1e-4 => setting(OptionKind::Number, "F");
            /// The text encoder's learning rate, as a share of `learning_rate`.
            text_learning_rate: f64 = 0.5 => setting(OptionKind::Number, "F").needs("train_text_encoder");
            /// Steps over which the learning rate rises.
            warmup_steps: u64 = 0 => setting(OptionKind::Count, "N");
            /// Decay of the mean of squared gradients in AdamW.
            adam_beta2: f64 = 0.999 => setting(OptionKind::Number, "F");
            /// Largest norm of each network's gradient; 0 does not cut it.
            grad_clip: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// Gamma of the min-SNR weights; 0 for even weights.
            snr_gamma: f64 = 0.0 => setting(OptionKind::Number, "F");
            /// Share of captions that are taken for empty ones.
            caption_dropout: f64 = 0.0 => setting(OptionKind::Number, "F");
            /// Mirror half of the pictures; captions that tell left from right are wrong then.
            flip: bool = false => switch(FlagValue::On);
            /// Keep the proportions of pictures: each has the one of several sizes of about as many pixels that fits it best, and
            /// those of a batch have one.
            buckets: bool = false => switch(FlagValue::On);
            /// Take the means of the autoencoder's distributions, in the place of latents that are drawn from them each time.
            sample_posterior: bool = true => switch(FlagValue::Off).named("no_sample_posterior");
            /// The file in which latents are kept, in the place of latents.safetensors in the run's folder.
            latents: Option<PathBuf> = None => setting(OptionKind::Text, "FILE");
            /// Prompts of sample grids, in the place of some captions.
            sample_prompts: Option<Vec<String>> = None => json().always_recorded();
            /// Guidance of sample grids.
            guidance_scale: f64 = 7.5 => setting(OptionKind::Number, "F");
            /// Steps of sample grids.
            sample_steps: usize = 20 => setting(OptionKind::Count, "N");
            /// How the weights of the model are held: as they are stored, or in f16, which is half of the memory of f32.
            base_dtype: HeldChoice = HeldChoice::Stored => setting(OptionKind::Choice(HeldChoice::NAMES), "NAME");
            /// Which products are of rounded numbers: no, or bf16, which is faster where the CPU multiplies bf16 (AVX-512
            /// BF16, AMX); factors and sums stay f32.
            mixed_precision: MixedPrecisionChoice = MixedPrecisionChoice::No =>
                setting(OptionKind::Choice(MixedPrecisionChoice::NAMES), "NAME");
            /// Number format of the finished file.
            dtype: StoredChoice = StoredChoice::F32 => setting(OptionKind::Choice(StoredChoice::NAMES), "NAME");
            /// How the finished file calls its tensors: as kohya's scripts do, or as PEFT and diffusers do.
            lora_format: LoraFormChoice = LoraFormChoice::Kohya =>
                setting(OptionKind::Choice(LoraFormChoice::NAMES), "NAME");
        }
    }
}

impl Default for LoraTrainingSettings {
    fn default() -> Self {
        let lr_schedule = DecayChoice::Constant;
        Self::of(CommonSettings { batch_size: 1, checkpoint_every: 100, lr_schedule, ..CommonSettings::default() })
    }
}

serde_by_options!(LoraTrainingSettings);

impl TrainingSettings for LoraTrainingSettings {
    type Data = LoraTrainingData;
    type Task = LoraTraining;
    type Batches = LatentBatches;

    /// Where the model is may change as long as it is the same, which `architecture` sees.
    const FREE: &'static [&'static str] = &[
        "checkpoint_every",
        "sample_every",
        "dtype",
        "lora_format",
        "latents",
        "sample_prompts",
        "guidance_scale",
        "sample_steps",
        "model",
    ];

    fn common(&self) -> &CommonSettings {
        &self.common
    }

    fn settled(mut self, images: usize) -> Self {
        self.common.settle(&mut self.steps, &mut self.epochs, images);
        self
    }

    fn check(&self) -> Result<()> {
        self.common.check()?;
        self.low_rank().check()?;
        at_least_one("steps", self.steps)?;
        at_least_one("sample_every", self.sample_every)?;
        at_least_one("sample_steps", self.sample_steps as u64)?;
        zero_or_above("grad_clip", self.grad_clip)?;
        zero_or_above("snr_gamma", self.snr_gamma)?;
        if !(0.0..1.0).contains(&self.adam_beta2) {
            return Err(Error::invalid("`adam_beta2`", self.adam_beta2, "it is 0 or above, and below 1"));
        }
        Ok(())
    }

    fn architecture(&self, data: &LoraTrainingData) -> Result<Map<String, Value>> {
        let scheduler = data.model()?.scheduler().fields().clone();
        let parts = [("base", data.base().clone()), ("scheduler", scheduler)];
        Ok(parts.into_iter().map(|(name, fields)| (name.to_owned(), Value::Object(fields))).collect())
    }

    fn task(&self, data: &mut LoraTrainingData) -> Result<(LoraTraining, Vec<ParameterSet>)> {
        let model = data.take_model()?;
        let captions: Vec<String> = data.pictures().captions().map(str::to_owned).collect();
        let prompts = sample_prompts(self.sample_prompts.as_ref(), data.pictures(), SAMPLE_PROMPTS);
        let config = LoraTrainingConfig {
            low_rank: self.low_rank(),
            objective: objective(model.scheduler(), self.snr_gamma)?,
            captions,
            caption_dropout: self.caption_dropout,
            size: data.size(),
            samples: SamplePrompts { prompts, guidance_scale: self.guidance_scale, steps: self.sample_steps },
            form: self.lora_format.into(),
            dtype: self.dtype.into(),
            metadata: self.metadata(data, model.family_id()),
        };
        let text_optimizer =
            self.train_text_encoder.then(|| self.optimizer(self.learning_rate * self.text_learning_rate));
        LoraTraining::new(config, model, self.common.seed, (self.optimizer(self.learning_rate), text_optimizer))
    }

    fn check_batches(&self, _: &LoraTrainingData) -> Result<()> {
        Ok(())
    }

    fn batches(
        &self,
        data: &LoraTrainingData,
        task: &LoraTraining,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<LatentBatches> {
        task.warnings().iter().for_each(|warning| preparation.warn(warning.clone()));
        let options = LatentOptions { flip: self.flip, deviations: self.sample_posterior };
        let path = self.latents.clone().unwrap_or_else(|| preparation.folder.join("latents.safetensors"));
        let (autoencoder, pictures) = (task.model().autoencoder(), data.pictures());
        let key = data.latents_key(options, self.buckets);
        let encoded = Encoded { pictures, autoencoder, options, path: &path, key: &key };
        let (size, batch_size, seed) = (data.size(), self.common.batch_size, self.common.seed);
        let buckets = || match self.buckets {
            true => Buckets::by_aspect(data.sizes(), size.0, autoencoder.latent_space().factor, batch_size),
            false => Ok(Buckets::one(size, pictures.len())),
        };
        let set = encoded.latents(buckets, preparation)?;
        LatentBatches::new(Arc::new(set), Arc::new(pictures.numbered_captions()), batch_size, seed)
    }

    fn plan(&self) -> RunPlan {
        RunPlan { steps: self.steps, sample_every: Some(self.sample_every), ..self.common.plan() }
    }

    fn warnings(&self) -> Vec<String> {
        self.mixed_precision.warning().into_iter().collect()
    }
}

impl LoraTrainingSettings {
    /// How the weights of the model are held.
    fn held(&self) -> HeldWeights {
        let (dtype, keeps_halves) = match self.base_dtype {
            HeldChoice::Stored => (DType::F32, true),
            HeldChoice::F16 => (DType::F16, false),
        };
        HeldWeights { dtype, keeps_halves, products: self.mixed_precision.into(), ..HeldWeights::default() }
    }

    fn low_rank(&self) -> LowRankConfig {
        let alpha = self.alpha.unwrap_or(self.rank as f64);
        LowRankConfig { rank: self.rank, alpha, modules: self.modules.into() }
    }

    /// How factors are moved. No moving average is kept of them: what is drawn is what was trained.
    fn optimizer(&self, peak: f64) -> OptimizerOptions {
        let learning_rate = self.common.learning_rate(peak, self.warmup_steps, self.steps);
        let mut options = self.common.optimizer(learning_rate, self.grad_clip, 0.0);
        options.adamw.beta2 = self.adam_beta2;
        options.ema = None;
        options
    }

    /// What kohya's scripts say of a run in the file, without anything that differs from one time to the next.
    fn metadata(&self, data: &LoraTrainingData, family: &str) -> BTreeMap<String, String> {
        let version = match family {
            "sd1" => "sd_v1",
            "sd2" => "sd_v2",
            "sdxl" => "sdxl_base_v1-0",
            other => other,
        };
        let LowRankConfig { rank, alpha, .. } = self.low_rank();
        let name =
            self.model.as_ref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
        let (height, width) = data.size();
        let hash = data.base()["sha256"].as_str().unwrap_or_default();
        let fields = [
            ("ss_base_model_version", version.to_owned()),
            ("ss_sd_model_name", name.unwrap_or_else(|| "embedded".into())),
            ("ss_new_sd_model_hash", hash.to_owned()),
            ("ss_network_module", "networks.lora".into()),
            ("ss_network_dim", rank.to_string()),
            ("ss_network_alpha", alpha.to_string()),
            ("ss_max_train_steps", self.steps.to_string()),
            ("ss_steps", self.steps.to_string()),
            ("ss_num_train_images", data.pictures().len().to_string()),
            ("ss_resolution", format!("({width}, {height})")),
            ("ss_batch_size_per_device", self.common.batch_size.to_string()),
            ("ss_gradient_accumulation_steps", self.common.accumulate.to_string()),
            ("ss_learning_rate", self.learning_rate.to_string()),
            ("ss_unet_lr", self.learning_rate.to_string()),
            ("ss_lr_scheduler", self.common.lr_schedule.name().into()),
            ("ss_lr_warmup_steps", self.warmup_steps.to_string()),
            ("ss_optimizer", "AdamW".into()),
            ("ss_max_grad_norm", self.grad_clip.to_string()),
            ("ss_min_snr_gamma", self.snr_gamma.to_string()),
            ("ss_caption_dropout_rate", self.caption_dropout.to_string()),
            ("ss_mixed_precision", self.mixed_precision.name().into()),
            ("ss_seed", self.common.seed.to_string()),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
