//! What kinds of training have alike that leave a model as it is.

mod data;

pub use data::FrozenModelData;

use super::captioned::sample_prompts;
use super::choices::{DecayChoice, HeldChoice, MixedPrecisionChoice, StoredChoice};
use super::encoded::Encoded;
use super::objectives::objective;
use super::settings::{
    self, CommonSettings, Preparation, TrainingSettings, at_least_one, setting, switch, zero_or_above,
};
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{json, option, options, serde_by_options};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use tweedie::checkpoints::Held;
use tweedie::kernels::RoundedTo;
use tweedie::training::data::{Buckets, CaptionedPictures, LatentBatches, LatentOptions};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{FrozenModel, HeldWeights, SamplePrompts};
use tweedie::training::{Objective, OptimizerOptions};
use tweedie::{DType, Error, Result};

/// Prompts of a sample grid where none are given.
const SAMPLE_PROMPTS: usize = 4;

options! {
    /// Settings of training something small for a model that stays as it is. The defaults are for a few pictures of one thing.
    #[derive(Debug, Clone, PartialEq)]
    pub struct FrozenModelSettings {
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
            /// The model that it is for, which stays as it is; by default the embedded one.
            model: Option<PathBuf> = None => setting(OptionKind::Text, "MODEL");
            /// One caption for all pictures, in the place of those in files.
            caption: Option<String> = None => setting(OptionKind::Text, "TEXT");
            /// Learning rate after the warm-up.
            learning_rate: f64 = 1e-4 => setting(OptionKind::Number, "F");
            /// Steps over which the learning rate rises.
            warmup_steps: u64 = 0 => setting(OptionKind::Count, "N");
            /// Decay of the mean of squared gradients in AdamW.
            adam_beta2: f64 = 0.999 => setting(OptionKind::Number, "F");
            /// Largest norm of each network's gradient; 0 does not cut it.
            grad_clip: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// Gamma of the min-SNR weights; 0 for even weights.
            snr_gamma: f64 = 0.0 => setting(OptionKind::Number, "F");
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
            /// How the weights of the model are held: as they are stored, in f16, which is half of the memory of f32, or
            /// in q8, which is a half of that, and rounded.
            base_dtype: HeldChoice = HeldChoice::Stored => setting(OptionKind::Choice(HeldChoice::NAMES), "NAME");
            /// Which products are of rounded numbers: no, or bf16, which is faster where the CPU multiplies bf16 (AVX-512
            /// BF16, AMX); what is trained and sums stay f32.
            mixed_precision: MixedPrecisionChoice = MixedPrecisionChoice::No =>
                setting(OptionKind::Choice(MixedPrecisionChoice::NAMES), "NAME");
            /// Compute what is within the blocks of transformers again on the way back, in the place of keeping it: less memory,
            /// and longer steps.
            gradient_checkpointing: bool = false => switch(FlagValue::On);
            /// Number format of the finished file.
            dtype: StoredChoice = StoredChoice::F32 => setting(OptionKind::Choice(StoredChoice::NAMES), "NAME");
        }
    }
}

impl Default for FrozenModelSettings {
    fn default() -> Self {
        let lr_schedule = DecayChoice::Constant;
        Self::of(CommonSettings { batch_size: 1, checkpoint_every: 100, lr_schedule, ..CommonSettings::default() })
    }
}

serde_by_options!(FrozenModelSettings);

/// Settings of a kind of training that leaves a model as it is.
pub trait FrozenModelTraining: TrainingSettings<Data = FrozenModelData> {
    /// What all such kinds have.
    fn frozen(&self) -> &FrozenModelSettings;

    /// Finds the captioned pictures in a folder, before a model is looked for.
    ///
    /// # Errors
    /// If the folder has bad data, which is named with file and line, or a setting is missing that they depend on.
    fn pictures(&self, folder: &Path) -> Result<CaptionedPictures>;
}

impl FrozenModelSettings {
    /// Settings that change nothing of what is computed. Where the model is may change as long as it is the same, which
    /// [`Self::architecture`] sees.
    pub(super) const FREE: &'static [&'static str] =
        &["sample_every", "dtype", "latents", "sample_prompts", "guidance_scale", "sample_steps", "model"];

    /// Whether a setting is one of those, or of those of all kinds.
    pub(super) fn is_free(name: &str) -> bool {
        settings::FREE.contains(&name) || Self::FREE.contains(&name)
    }

    /// Puts steps in the place of passes over the data.
    pub(super) fn settle(&mut self, data: &FrozenModelData) {
        self.common.settle(&mut self.steps, &mut self.epochs, data);
    }

    pub(super) fn check(&self) -> Result<()> {
        self.common.check()?;
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

    /// What a run's `config.json` says of the model, by which a run that goes on sees that it is the same.
    pub(super) fn architecture(&self, data: &FrozenModelData) -> Result<Map<String, Value>> {
        let scheduler = data.model()?.scheduler().fields().clone();
        let parts = [("base", data.base().clone()), ("scheduler", scheduler)];
        Ok(parts.into_iter().map(|(name, fields)| (name.to_owned(), Value::Object(fields))).collect())
    }

    /// How the weights of the model are held.
    pub(super) fn held(&self) -> HeldWeights {
        let (dtype, held) = match self.base_dtype {
            HeldChoice::Stored => (DType::F32, Held::AsStored),
            HeldChoice::F16 => (DType::F16, Held::AsAsked),
            HeldChoice::Q8 => (DType::F32, Held::Rounded(RoundedTo::EightBits)),
            HeldChoice::Q4 => (DType::F32, Held::Rounded(RoundedTo::FourBits)),
        };
        HeldWeights { dtype, held, products: self.mixed_precision.into(), ..HeldWeights::default() }
    }

    /// What is minimised.
    pub(super) fn objective(&self, model: &FrozenModel) -> Result<Objective> {
        objective(model.scheduler(), self.snr_gamma)
    }

    /// What sample grids show.
    pub(super) fn samples(&self, data: &FrozenModelData) -> SamplePrompts {
        let prompts = sample_prompts(self.sample_prompts.as_ref(), data.pictures(), SAMPLE_PROMPTS);
        SamplePrompts { prompts, guidance_scale: self.guidance_scale, steps: self.sample_steps }
    }

    /// How parameters are moved. No moving average is kept of them: what is drawn is what was trained.
    pub(super) fn optimizer(&self, peak: f64) -> OptimizerOptions {
        let learning_rate = self.common.learning_rate(peak, self.warmup_steps, self.steps);
        let mut options = self.common.optimizer(learning_rate, self.grad_clip, 0.0);
        options.adamw.beta2 = self.adam_beta2;
        options.ema = None;
        options
    }

    /// The batches of a task with the data's model, of which the user should know `warnings`.
    pub(super) fn batches(
        &self,
        data: &FrozenModelData,
        (model, warnings): (&FrozenModel, &[String]),
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<LatentBatches> {
        warnings.iter().for_each(|warning| preparation.warn(warning.clone()));
        let options = LatentOptions { flip: self.flip, deviations: self.sample_posterior };
        let path = self.latents.clone().unwrap_or_else(|| preparation.folder.join("latents.safetensors"));
        let (autoencoder, pictures) = (model.autoencoder(), data.pictures());
        let least = self.common.batch_size;
        let computed = format!("{} {}", self.base_dtype.name(), self.mixed_precision.name());
        let key = data.latents_key(options, self.buckets.then_some(least), &computed);
        let encoded =
            Encoded { pictures, autoencoder, options, path: &path, of_run: self.latents.is_none(), key: &key };
        let size = data.size();
        let buckets = || match self.buckets {
            true => Buckets::by_aspect(data.sizes(), size.0, autoencoder.latent_space().factor, least),
            false => Ok(Buckets::one(size, pictures.len())),
        };
        let set = encoded.latents(buckets, preparation)?;
        self.common.latent_batches(set, pictures.numbered_captions(), pictures)
    }

    pub(super) fn plan(&self) -> RunPlan {
        RunPlan { steps: self.steps, sample_every: Some(self.sample_every), ..self.common.plan() }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.mixed_precision.warning().into_iter().collect()
    }
}
