//! Settings of training a latent diffusion model, and what they mean for networks, schedule and objective.

mod data;
mod networks;

pub(super) use data::load_autoencoder;
pub use data::{LatentTrainingData, SeenPictures, TrainingModels};

use super::captioned::sample_prompts;
use super::choices::{LatentBetaChoice, MixedPrecisionChoice, PredictionChoice, StoredChoice};
use super::component::Component;
use super::encoded::Encoded;
use super::objectives::objective;
use super::settings::{
    CommonSettings, FROM, Preparation, START, TrainingSettings, at_least_one, flow_scheduler, setting, switch,
    zero_or_above,
};
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{json, option, options, serde_by_options};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use tweedie::config::{ConfigFields, DIFFUSERS_VERSION};
use tweedie::training::data::{BatchSource, Buckets, CaptionBatches, LatentBatches, LatentOptions};
use tweedie::training::runs::RunPlan;
use tweedie::training::tasks::{CaptionWords, LatentDiffusion, LatentDiffusionConfig, SamplePrompts, StartingWeights};
use tweedie::training::{Decay, LearningRate, Objective, OptimizerOptions, ParameterSet, Trainer, TrainerOptions};
use tweedie::{Error, Result};

/// Captions of a step in which a text encoder learns words, the learning rate, and the most steps by default.
const TEXT_BATCH: usize = 64;
const TEXT_RATE: f64 = 1e-3;
const MOST_TEXT_STEPS: u64 = 1000;
/// The most probabilities of words in such a step, 64 MiB of them; fewer captions are taken where they would be more.
const MOST_WORDS: usize = 1 << 24;
/// Prompts of a sample grid where none are given.
const SAMPLE_PROMPTS: usize = 16;

options! {
    /// Settings of training a text-conditioned latent diffusion model. The defaults are for small pictures on a few CPU cores.
    #[derive(Debug, Clone, PartialEq)]
    pub struct LatentTrainingSettings {
        flat {
            /// What all kinds of training have.
            common: CommonSettings;
        }
        options {
            /// Steps of the run.
            steps: u64 = 20_000 => setting(OptionKind::Count, "N").excluded_by("epochs");
            /// Passes over the data, in the place of `steps`.
            epochs: Option<u64> = None => option(OptionKind::Count, "N");
            /// Steps between grids of samples.
            sample_every: u64 = 1000 => setting(OptionKind::Count, "N");
            /// The autoencoder: a folder with its config.json, or a model that has one; by default that of `from`.
            vae: Option<PathBuf> = None => setting(OptionKind::Text, "MODEL");
            /// A model to go on from: its networks, tokenizer, schedule and autoencoder.
            from: Option<PathBuf> = None => setting(OptionKind::Text, "MODEL");
            /// A folder of other pictures of the class that the new thing is of, such as foxes, which the model is to draw as
            /// before (DreamBooth's prior preservation): half of what is seen is of these.
            class_data: Option<PathBuf> = None => setting(OptionKind::Text, "DIR").needs(FROM);
            /// One caption for all of them, in the place of those in files, such as "a fox".
            class_caption: Option<String> = None => setting(OptionKind::Text, "TEXT").needs("class_data");
            /// A model whose text encoder and tokenizer are taken; it is not trained unless `train_text_encoder` is given.
            text_encoder: Option<PathBuf> = None => setting(OptionKind::Text, "MODEL").excluded_by(FROM);
            /// Train a text encoder that was taken from another model.
            train_text_encoder: bool = false => switch(FlagValue::On);
            /// A folder with the tokenizer, in the place of one that is trained on the captions.
            tokenizer: Option<PathBuf> = None => setting(OptionKind::Text, "DIR").excluded_by("text_encoder");
            /// Merges of the tokenizer that is trained on the captions, at most.
            merges: usize = 1000 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// Ids that a caption becomes, with its start and end.
            tokens: usize = 32 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// Learning rate after the warm-up.
            learning_rate: f64 = 6e-4 => setting(OptionKind::Number, "F");
            /// The text encoder's learning rate, as a share of `learning_rate`.
            text_learning_rate: f64 = 0.3 => setting(OptionKind::Number, "F");
            /// Steps over which the learning rate rises.
            warmup_steps: u64 = 200 => setting(OptionKind::Count, "N");
            /// Decay of the mean of squared gradients in AdamW.
            adam_beta2: f64 = 0.99 => setting(OptionKind::Number, "F");
            /// Largest norm of each network's gradient; 0 does not cut it.
            grad_clip: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// Decay of the moving average of weights.
            ema_decay: f64 = 0.9995 => setting(OptionKind::Number, "F");
            /// Averages of weights that are kept beside, to choose one afterwards: the lengths of their memories as relative
            /// standard deviations (EDM2).
            power_averages: Vec<f64> = vec![] => setting(OptionKind::Numbers, "F,F,...").default("none");
            /// The one of `power_averages` that the finished model has, in the place of the one of `ema_decay`. A run that is
            /// finished makes its model again with another one when it is resumed with it.
            average: Option<f64> = None => setting(OptionKind::Number, "F");
            /// What the network predicts.
            prediction_type: PredictionChoice = PredictionChoice::V =>
                setting(OptionKind::Choice(PredictionChoice::NAMES), "NAME").excluded_by(FROM);
            /// How betas grow.
            beta_schedule: LatentBetaChoice = LatentBetaChoice::Cosine =>
                setting(OptionKind::Choice(LatentBetaChoice::NAMES), "NAME").excluded_by(FROM);
            /// Let the last timestep keep some signal, in the place of betas that are rescaled to zero terminal SNR; epsilon
            /// always does.
            no_zero_terminal_snr: bool = false => switch(FlagValue::On).excluded_by(FROM);
            /// Training timesteps.
            timesteps: usize = 1000 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// Draw timesteps by the size of their losses.
            importance_sampling: bool = false => switch(FlagValue::On);
            /// Draw noisier timesteps more often, in which texts matter most: s u / (1 + (s - 1) u) of even u (SD3); 1 draws all
            /// alike.
            timestep_shift: f64 = 1.0 => setting(OptionKind::Number, "F");
            /// Gamma of the min-SNR weights; 0 for even weights.
            snr_gamma: f64 = 0.0 => setting(OptionKind::Number, "F");
            /// Share of captions that are taken for empty ones, for classifier-free guidance.
            caption_dropout: f64 = 0.1 => setting(OptionKind::Number, "F");
            /// Channels at each resolution of the UNet.
            channels: Vec<usize> = vec![96, 128, 160] =>
                setting(OptionKind::Counts, "N,N,...").default("96,128,160").excluded_by(FROM);
            /// Residual blocks at each resolution on the way down.
            blocks: usize = 1 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// Resolutions with attention, the largest being 0; the middle block has it in any case.
            attention: Option<Vec<usize>> = None =>
                setting(OptionKind::Counts, "N,N,...").default("all but the first and the last").excluded_by(FROM);
            /// Heads of the UNet's attention.
            heads: usize = 4 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// The UNet in diffusers' form, in the place of `channels`, `blocks`, `attention` and `heads`.
            unet_config: Option<Map<String, Value>> = None => json().always_recorded().excluded_by(FROM);
            /// Width of the text encoder.
            text_width: usize = 192 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// Layers of the text encoder.
            text_layers: usize = 3 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// Steps of 64 captions, or fewer of a large vocabulary, in which a new text encoder learns their words before the
            /// network is trained.
            text_steps: Option<u64> = None =>
                option(OptionKind::Count, "N").default("a twentieth of the steps, at most 1000");
            /// Heads of the text encoder.
            text_heads: usize = 4 => setting(OptionKind::Count, "N").excluded_by(FROM);
            /// The text encoder in transformers' form, in the place of `text_width`, `text_layers` and `text_heads`.
            text_config: Option<Map<String, Value>> = None => json().always_recorded().excluded_by(FROM);
            /// Mirror half of the pictures; captions that tell left from right are wrong then.
            flip: bool = false => switch(FlagValue::On);
            /// With `resize`, keep the proportions of pictures: each has the one of several sizes of about N by N pixels that fits
            /// it best, and those of a batch have one.
            buckets: bool = false => switch(FlagValue::On);
            /// Draw latents from the autoencoder's distributions, in the place of their means.
            sample_posterior: bool = false => switch(FlagValue::On);
            /// The file in which latents are kept, in the place of latents.safetensors in the run's folder.
            latents: Option<PathBuf> = None => setting(OptionKind::Text, "FILE");
            /// Prompts of sample grids, in the place of some captions.
            sample_prompts: Option<Vec<String>> = None => json().always_recorded();
            /// Guidance of sample grids, and of the finished model by default.
            guidance_scale: f64 = 4.0 => setting(OptionKind::Number, "F");
            /// Steps of sample grids, and of the finished model by default.
            sample_steps: usize = 25 => setting(OptionKind::Count, "N");
            /// Which products are of rounded numbers: no, or bf16, which is faster where the CPU multiplies bf16 (AVX-512
            /// BF16, AMX); weights and sums stay f32.
            mixed_precision: MixedPrecisionChoice = MixedPrecisionChoice::No =>
                setting(OptionKind::Choice(MixedPrecisionChoice::NAMES), "NAME");
            /// Compute what is within the blocks of transformers again on the way back, in the place of keeping it: less memory,
            /// and longer steps.
            gradient_checkpointing: bool = false => switch(FlagValue::On);
            /// Number format of the finished model.
            dtype: StoredChoice = StoredChoice::F32 => setting(OptionKind::Choice(StoredChoice::NAMES), "NAME");
        }
    }
}

impl Default for LatentTrainingSettings {
    fn default() -> Self {
        Self::of(CommonSettings::default())
    }
}

serde_by_options!(LatentTrainingSettings);

impl TrainingSettings for LatentTrainingSettings {
    type Data = LatentTrainingData;
    type Task = LatentDiffusion;
    type Batches = LatentBatches;

    /// Where parts come from may change as long as they are the same, which `architecture` sees.
    const FREE: &'static [&'static str] = &[
        "sample_every",
        "dtype",
        "average",
        "latents",
        "sample_prompts",
        "guidance_scale",
        "sample_steps",
        "vae",
        "from",
        "text_encoder",
        "tokenizer",
    ];

    fn common(&self) -> &CommonSettings {
        &self.common
    }

    fn settled(mut self, data: &LatentTrainingData) -> Self {
        self.common.settle(&mut self.steps, &mut self.epochs, data);
        self
    }

    fn check(&self) -> Result<()> {
        self.common.check()?;
        at_least_one("steps", self.steps)?;
        at_least_one("timesteps", self.timesteps as u64)?;
        at_least_one("sample_every", self.sample_every)?;
        at_least_one("sample_steps", self.sample_steps as u64)?;
        zero_or_above("grad_clip", self.grad_clip)?;
        zero_or_above("snr_gamma", self.snr_gamma)?;
        if !(0.0..1.0).contains(&self.adam_beta2) {
            return Err(Error::invalid("`adam_beta2`", self.adam_beta2, "it is 0 or above, and below 1"));
        }
        if self.timesteps > 100_000 {
            return Err(Error::invalid("`timesteps`", self.timesteps, "take at most 100000"));
        }
        Ok(())
    }

    fn architecture(&self, data: &LatentTrainingData) -> Result<Map<String, Value>> {
        let parts = [
            ("unet", self.unet(data)?),
            ("text_encoder", self.text_encoder_fields(data)?),
            ("scheduler", self.scheduler(data)),
            ("autoencoder", Map::from_iter([("sha256".to_owned(), data.autoencoder_fingerprint().into())])),
            ("vocabulary", Map::from_iter([("sha256".to_owned(), data.tokenizer_fingerprint().into())])),
        ];
        let mut parts: Map<String, Value> =
            parts.into_iter().map(|(name, fields)| (name.to_owned(), Value::Object(fields))).collect();
        let start = [data.unet(), data.text_encoder()].into_iter().flatten().map(Component::sha256);
        let start = start.collect::<Result<Vec<_>>>()?.join(" ");
        if !start.is_empty() {
            parts.insert(START.into(), json!({if data.unet().is_some() { FROM } else { "text_encoder" }: start}));
        }
        Ok(parts)
    }

    fn task(&self, data: &mut LatentTrainingData) -> Result<(LatentDiffusion, Vec<ParameterSet>)> {
        let config = LatentDiffusionConfig {
            unet: self.unet(data)?,
            text_encoder: self.text_encoder_fields(data)?,
            size: data.size(),
            objective: self.objective(data)?,
            importance_sampling: self.importance_sampling,
            timestep_shift: self.timestep_shift,
            caption_dropout: self.caption_dropout,
            products: self.mixed_precision.into(),
            scheduler: self.scheduler(data),
            dtype: self.dtype.into(),
            samples: self.samples(data),
        };
        let is_frozen = data.text_encoder().is_some() && !self.train_text_encoder;
        let text_optimizer = (!is_frozen).then(|| self.optimizer(self.learning_rate * self.text_learning_rate));
        let optimizers = (self.optimizer(self.learning_rate), text_optimizer);
        let (tokenizer, autoencoder) = (data.tokenizer().clone(), data.take_autoencoder()?);
        let (task, sets) = Component::build_from(data.unet(), |unet| {
            Component::build_from(data.text_encoder(), |text_encoder| {
                let start = StartingWeights { unet, text_encoder };
                LatentDiffusion::new(config, tokenizer, autoencoder, start, self.common.seed, optimizers)
            })
        })?;
        let kept = |set: ParameterSet| set.with_power_averages(&self.power_averages, self.average);
        Ok((task, sets.into_iter().map(kept).collect::<Result<_>>()?))
    }

    fn recomputes(&self) -> bool {
        self.gradient_checkpointing
    }

    fn check_batches(&self, _: &LatentTrainingData) -> Result<()> {
        Ok(())
    }

    fn batches(
        &self,
        data: &LatentTrainingData,
        task: &LatentDiffusion,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<LatentBatches> {
        let options = LatentOptions { flip: self.flip, deviations: self.sample_posterior };
        let path = self.latents.clone().unwrap_or_else(|| preparation.folder.join("latents.safetensors"));
        // What a batch has of a small bucket is seen more often than other pictures.
        let least = self.common.batch_size;
        let key = data.latents_key(options, self.buckets.then(|| (task.size_multiple(), least)));
        let (autoencoder, pictures) = (task.autoencoder().network(), data.pictures());
        let encoded =
            Encoded { pictures, autoencoder, options, path: &path, of_run: self.latents.is_none(), key: &key };
        let buckets = || match self.buckets {
            true => Buckets::by_aspect(&data.sizes()?, data.size().0, task.size_multiple(), least),
            false => Ok(Buckets::one(data.size(), pictures.len())),
        };
        let set = encoded.latents(buckets, preparation)?;
        for (channel, (mean, std)) in set.channel_statistics()?.into_iter().enumerate() {
            // A diffusion model takes its data for such of mean 0 and deviation 1.
            if mean.abs() > 1.0 || !(0.5..=2.0).contains(&std) {
                preparation.warn(format!(
                    "channel {channel} of the latents has the mean {mean:.2} and the standard deviation {std:.2}, where 0 and 1 \
                     would be best: the autoencoder's scaling_factor does not fit these pictures"
                ));
            }
        }
        let (tokens, cut) = data.pictures().tokens(task.tokenizer())?;
        if let Some((count, example)) = cut {
            preparation.warn(format!(
                "{count} captions are longer than {} tokens, and what is beyond is not seen, as {example:?}",
                task.tokenizer().max_length() - 2
            ));
        }
        self.common.latent_batches(set, tokens, data.pictures())
    }

    /// A new text encoder learns the words of its captions.
    fn begin(
        &self,
        data: &LatentTrainingData,
        batches: &LatentBatches,
        trainer: &mut Trainer<LatentDiffusion>,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<()> {
        let steps = self.text_steps.unwrap_or((self.steps / 20).min(MOST_TEXT_STEPS));
        if data.text_encoder().is_some() || steps == 0 {
            return Ok(());
        }
        let learning_rate =
            LearningRate { peak: TEXT_RATE, warmup_steps: steps / 20, total_steps: steps, decay: Decay::Cosine };
        let mut optimizer = self.common.optimizer(learning_rate, self.grad_clip, self.ema_decay);
        (optimizer.adamw.beta2, optimizer.ema) = (self.adam_beta2, None);
        let (seed, tokenizer) = (self.common.seed, trainer.task().tokenizer());
        let captions = batches.captions();
        let (task, sets) = CaptionWords::new(&self.text_encoder_fields(data)?, tokenizer, &captions, seed, optimizer)?;
        let most = MOST_WORDS / (tokenizer.max_length() * task.vocabulary());
        let mut captions = CaptionBatches::new(captions, most.clamp(1, TEXT_BATCH), seed)?;
        let mut words = Trainer::new(task, sets, TrainerOptions { seed, accumulate: 1 })?;
        while words.steps() < steps {
            let what = "learning the captions' words";
            if preparation.tell(what, "steps", words.steps() as usize, steps as usize).is_break() {
                return Err(Error::Cancelled);
            }
            let number = words.steps();
            words.step(|| captions.get(number))?;
        }
        let set = &words.sets()[0];
        trainer.start_from(set.name(), set.parameters().values())
    }

    fn plan(&self) -> RunPlan {
        RunPlan { steps: self.steps, sample_every: Some(self.sample_every), ..self.common.plan() }
    }

    fn warnings(&self) -> Vec<String> {
        self.mixed_precision.warning().into_iter().collect()
    }
}

impl LatentTrainingSettings {
    /// How a network's parameters are moved.
    fn optimizer(&self, peak: f64) -> OptimizerOptions {
        let learning_rate = self.common.learning_rate(peak, self.warmup_steps, self.steps);
        let mut options = self.common.optimizer(learning_rate, self.grad_clip, self.ema_decay);
        options.adamw.beta2 = self.adam_beta2;
        options
    }

    fn samples(&self, data: &LatentTrainingData) -> SamplePrompts {
        let (guidance_scale, steps) = (self.guidance_scale, self.sample_steps);
        let prompts = sample_prompts(self.sample_prompts.as_ref(), data.pictures(), SAMPLE_PROMPTS);
        SamplePrompts { prompts, guidance_scale, steps }
    }

    /// The scheduler's file of the model, from which training takes its betas too.
    pub fn scheduler(&self, data: &LatentTrainingData) -> Map<String, Value> {
        if let Some(scheduler) = data.scheduler() {
            return scheduler.fields().clone();
        }
        if self.prediction_type == PredictionChoice::Flow {
            return flow_scheduler(self.timesteps);
        }
        let zero = !self.no_zero_terminal_snr && self.prediction_type != PredictionChoice::Epsilon;
        let fields = json!({
            "_class_name": "DDIMScheduler",
            "_diffusers_version": DIFFUSERS_VERSION,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": self.beta_schedule.name(),
            "clip_sample": false,
            "num_train_timesteps": self.timesteps,
            "prediction_type": self.prediction_type.name(),
            "rescale_betas_zero_snr": zero,
            "set_alpha_to_one": true,
            "steps_offset": 1,
            "timestep_spacing": "trailing",
        });
        fields.as_object().cloned().unwrap_or_default()
    }

    /// The objective: what the scheduler's file says, or rectified flow.
    ///
    /// # Errors
    /// If the settings contradict each other.
    fn objective(&self, data: &LatentTrainingData) -> Result<Objective> {
        let fields = ConfigFields::from_fields("scheduler", self.scheduler(data));
        objective(&fields, self.snr_gamma)
    }
}
