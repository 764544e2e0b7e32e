//! Training a text-conditioned denoising network in an autoencoder's latents, with its text encoder.

mod autoencoder;

pub use autoencoder::FrozenAutoencoder;

use super::prompt_grid::{Painter, SamplePrompts};
use super::write_json;
use crate::conditioning::Conditioning;
use crate::config::{ConfigFields, DIFFUSERS_VERSION};
use crate::denoising::{Cache, Call, Network};
use crate::images::Picture;
use crate::kernels::MatmulPrecision;
use crate::layers::{WeightSource, Weights};
use crate::models::{ClipTextConfig, ClipTextModel, UNet2DConditionConfig, UNet2DConditionModel};
use crate::text::{Tokenizer, TokenizerFiles};
use crate::training::clip_initialization::{ClipInitialization, WithoutProjection};
use crate::training::data::LatentBatch;
use crate::training::runs::write_tensors;
use crate::training::{
    DenoisingLoss, Draws, FlatWeights, NoisyBatch, Objective, OptimizerOptions, ParameterSet, ParameterSource,
    Parameters, Stream, TrainingTask,
};
use crate::{DType, Device, Error, Result, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The name of the remembered losses in [`TrainingTask::state`].
const LOSS_HISTORY: &str = "loss_history";

/// What a [`LatentDiffusion`] trains, and what for.
#[derive(Debug, Clone)]
pub struct LatentDiffusionConfig {
    /// `unet/config.json`.
    pub unet: Map<String, Value>,
    /// `text_encoder/config.json`.
    pub text_encoder: Map<String, Value>,
    /// Height and width of the pictures of sample grids, and of the finished model by default.
    pub size: (usize, usize),
    /// What is minimised.
    pub objective: Objective,
    /// Whether timesteps are drawn by importance.
    pub importance_sampling: bool,
    /// How much more often noisier timesteps are drawn: [`DenoisingLoss::with_timestep_shift`].
    pub timestep_shift: f64,
    /// The share of pictures whose caption is taken for an empty one, so that the network learns to do without: classifier-free
    /// guidance (Ho and Salimans 2022, algorithm 1).
    pub caption_dropout: f64,
    /// How products are taken in training.
    pub products: MatmulPrecision,
    /// The model's `scheduler_config.json`, of the objective's process.
    pub scheduler: Map<String, Value>,
    /// The number format of the finished model's UNet and text encoder.
    pub dtype: DType,
    /// What sample grids show.
    pub samples: SamplePrompts,
}

/// Where the values before the first step come from; what is not there is drawn from the seed.
#[derive(Clone, Copy, Default)]
pub struct StartingWeights<'a> {
    /// The UNet's.
    pub unet: Option<&'a dyn WeightSource>,
    /// The text encoder's.
    pub text_encoder: Option<&'a dyn WeightSource>,
}

/// Training of a network in an autoencoder's latents (Rombach et al. 2022, equation 3), conditioned on captions, together with
/// the text encoder or with that one frozen. It ends as a model that this program and diffusers' StableDiffusionPipeline take.
#[derive(Debug)]
pub struct LatentDiffusion {
    config: LatentDiffusionConfig,
    unet_config: UNet2DConditionConfig,
    text_config: ClipTextConfig,
    unet: UNet2DConditionModel,
    text_encoder: ClipTextModel,
    /// The text encoder's values, if it is not trained.
    frozen: Option<Parameters>,
    tokenizer: Tokenizer,
    tokenizer_files: TokenizerFiles,
    /// The ids of an empty caption.
    empty: Vec<u32>,
    autoencoder: FrozenAutoencoder,
    loss: DenoisingLoss,
}

impl LatentDiffusion {
    /// The task and its sets of parameters, on the CPU: the UNet's, and the text encoder's if it has an optimiser.
    ///
    /// # Errors
    /// If a network cannot be built, networks, tokenizer and autoencoder do not belong together, or an option has an unusable
    /// value.
    pub fn new(
        config: LatentDiffusionConfig,
        tokenizer_files: TokenizerFiles,
        autoencoder: FrozenAutoencoder,
        start: StartingWeights<'_>,
        seed: u64,
        (unet_optimizer, text_optimizer): (OptimizerOptions, Option<OptimizerOptions>),
    ) -> Result<(Self, Vec<ParameterSet>)> {
        if !(0.0..=1.0).contains(&config.caption_dropout) {
            let fix = "it lies between 0 and 1";
            return Err(Error::invalid("the caption dropout", config.caption_dropout, fix));
        }
        let tokenizer = Tokenizer::from_memory(&tokenizer_files)?;
        let fields = |component, fields: &Map<String, Value>| ConfigFields::from_fields(component, fields.clone());
        let unet_config = UNet2DConditionConfig::from_fields(&fields("unet", &config.unet))?;
        let text_config = ClipTextConfig::from_fields(&fields("text_encoder", &config.text_encoder))?;
        check_parts(&config, &unet_config, &text_config, &tokenizer, &autoencoder)?;

        let source = ParameterSource::new(start.unet, seed);
        let weights = Weights::new(&source).with_products(config.products);
        let unet = UNet2DConditionModel::new(&weights, unet_config.clone(), DType::F32)?;
        let mut sets = vec![ParameterSet::new("unet", source.finish()?, unet_optimizer)?];

        let drawn = ClipInitialization::new(&text_config, seed);
        let without = WithoutProjection(start.text_encoder.unwrap_or(&drawn));
        let source = ParameterSource::from_weights(&without);
        let weights = Weights::new(&source).with_products(config.products);
        let text_encoder = ClipTextModel::new(&weights, text_config.clone())?;
        let parameters = source.finish()?;
        let (text_encoder, frozen) = match text_optimizer {
            Some(optimizer) => {
                sets.push(ParameterSet::new("text_encoder", parameters, optimizer)?);
                (text_encoder, None)
            }
            None => {
                let weights = FlatWeights::new(parameters.layout(), parameters.values(), &Device::Cpu)?;
                let weights = Weights::new(&weights).with_products(config.products);
                (ClipTextModel::new(&weights, text_config.clone())?, Some(parameters))
            }
        };
        let loss = DenoisingLoss::new(config.objective.clone(), config.importance_sampling)
            .with_timestep_shift(config.timestep_shift)?;
        let empty = tokenizer.encode("")?.ids;
        let task = Self {
            config,
            unet_config,
            text_config,
            unet,
            text_encoder,
            frozen,
            tokenizer,
            tokenizer_files,
            empty,
            autoencoder,
            loss,
        };
        Ok((task, sets))
    }

    /// What the sides of pictures must be a multiple of.
    pub fn size_multiple(&self) -> usize {
        size_multiple(&self.unet_config, &self.autoencoder)
    }

    /// The autoencoder.
    pub fn autoencoder(&self) -> &FrozenAutoencoder {
        &self.autoencoder
    }

    /// The tokenizer, by which captions become the ids of batches.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What the network is told of a batch's captions, some of which are taken for empty ones.
    fn conditioning(&self, batch: &LatentBatch, draws: Draws) -> Result<Conditioning> {
        let mut rows = batch.tokens.to_vec2::<u32>()?;
        let uniform = draws.generator(Stream::ClassDropout).uniform(rows.len());
        for (row, u) in rows.iter_mut().zip(uniform) {
            if f64::from(u) < self.config.caption_dropout {
                row.clone_from(&self.empty);
            }
        }
        let ids = Tensor::new(rows, batch.tokens.device())?;
        Ok(Conditioning::text(self.text_encoder.forward(&ids)?.last_hidden_state))
    }

    /// Tensors in the number format of the finished model.
    fn stored(&self, tensors: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(self.config.dtype)?))).collect()
    }

    fn write_text_encoder(&self, tensors: BTreeMap<String, Tensor>, folder: &Path) -> Result<()> {
        write_tensors(&folder.join("text_encoder/model.safetensors"), self.stored(tensors)?)
    }

    /// A picture of what networks with these values do.
    fn grid(&self, unet: (&ParameterSet, &[f32]), text: Option<(&ParameterSet, &[f32])>) -> Result<Picture> {
        let weights =
            |(set, values): (&ParameterSet, &[f32])| FlatWeights::new(set.parameters().layout(), values, &Device::Cpu);
        let unet = UNet2DConditionModel::new(&Weights::new(&weights(unet)?), self.unet_config.clone(), DType::F32)?;
        let trained = text.map(|text| ClipTextModel::new(&Weights::new(&weights(text)?), self.text_config.clone()));
        let trained = trained.transpose()?;
        let encoder = trained.as_ref().unwrap_or(&self.text_encoder);
        let encode = |texts: &[&str]| {
            let ids = texts.iter().map(|text| Ok(self.tokenizer.encode(text)?.ids)).collect::<Result<Vec<_>>>()?;
            Ok::<_, Error>(Conditioning::text(encoder.forward(&Tensor::new(ids, &Device::Cpu)?)?.last_hidden_state))
        };
        let samples = &self.config.samples;
        let prompts: Vec<_> = samples.prompts.iter().map(String::as_str).collect();
        let (autoencoder, scheduler) = (self.autoencoder.network(), &self.config.scheduler);
        let painter = Painter { network: &unet, autoencoder, scheduler };
        painter.grid(samples, &encode(&prompts)?, &encode(&[""])?, self.config.size)
    }
}

/// What the sides of pictures must be a multiple of: autoencoder and UNet halve them so often.
fn size_multiple(unet: &UNet2DConditionConfig, autoencoder: &FrozenAutoencoder) -> usize {
    autoencoder.network().latent_space().factor << (unet.block_out_channels.len() - 1)
}

/// Whether the parts of a model belong together.
fn check_parts(
    config: &LatentDiffusionConfig,
    unet: &UNet2DConditionConfig,
    text: &ClipTextConfig,
    tokenizer: &Tokenizer,
    autoencoder: &FrozenAutoencoder,
) -> Result<()> {
    let wrong = |component, fields: &Map<String, Value>, field: &str, expected: String| {
        Err(ConfigFields::from_fields(component, fields.clone()).wrong(field, expected))
    };
    let space = autoencoder.network().latent_space();
    for (field, channels) in [("in_channels", unet.in_channels), ("out_channels", unet.out_channels)] {
        if channels != space.channels {
            return wrong(
                "unet",
                &config.unet,
                field,
                format!("the autoencoder has {} latent channels", space.channels),
            );
        }
    }
    if unet.cross_attention_dim.iter().any(|&width| width != text.hidden_size) {
        let expected = format!("the text encoder's hidden_size is {}", text.hidden_size);
        return wrong("unet", &config.unet, "cross_attention_dim", expected);
    }
    if unet.addition.is_some() || unet.time_cond_proj_dim.is_some() {
        let expected = "networks that are trained here are told a text and nothing else".into();
        return wrong("unet", &config.unet, "addition_embed_type", expected);
    }
    if text.vocab_size < tokenizer.vocabulary_size() {
        let expected = format!("the tokenizer has {} tokens", tokenizer.vocabulary_size());
        return wrong("text_encoder", &config.text_encoder, "vocab_size", expected);
    }
    if text.max_position_embeddings < tokenizer.max_length() {
        let expected = format!("the tokenizer makes {} ids of a caption", tokenizer.max_length());
        return wrong("text_encoder", &config.text_encoder, "max_position_embeddings", expected);
    }
    let multiple = size_multiple(unet, autoencoder);
    for side in [config.size.0, config.size.1] {
        if side == 0 || side % multiple != 0 {
            let fix = format!(
                "the autoencoder and {} resolutions of the UNet need sides that are multiples of {multiple}; give such a \
                 number to `resize`",
                unet.block_out_channels.len()
            );
            return Err(Error::invalid("a side of the pictures", side, fix));
        }
    }
    Ok(())
}

impl TrainingTask for LatentDiffusion {
    type Batch = LatentBatch;
    type Evaluation = ();

    fn loss(&mut self, _: usize, batch: &LatentBatch, draws: Draws) -> Result<Tensor> {
        let conditioning = self.conditioning(batch, draws)?;
        let latents = batch.draw(&mut draws.generator(Stream::Latents))?;
        let (unet, cache) = (&self.unet, Cache::default());
        let predict =
            |noisy: &NoisyBatch| unet.forward(&Call::of_rows(&noisy.x_t, &noisy.levels, &conditioning, &cache));
        self.loss.mean(&latents, draws, predict)
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        self.loss.history().map(|history| (LOSS_HISTORY.to_owned(), history)).into_iter().collect()
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        self.loss.restore(state.get(LOSS_HISTORY).map(Vec::as_slice))
    }

    /// Grids of the weights as they are and of their average.
    fn samples(&self, sets: &[ParameterSet]) -> Result<Vec<(&'static str, Picture)>> {
        let (unet, text) = split(sets)?;
        let now = self.grid((unet, unet.parameters().values()), text.map(|set| (set, set.parameters().values())))?;
        let averaged = self.grid((unet, unet.average()), text.map(|set| (set, set.average())))?;
        Ok(vec![("", now), ("-ema", averaged)])
    }

    fn checkpoints_are_models(&self) -> bool {
        true
    }

    /// The autoencoder and the tokenizer are as they were given, and so is a text encoder that is not trained.
    fn write_rest(&self, folder: &Path) -> Result<()> {
        let config = &self.config;
        let index = json!({
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": DIFFUSERS_VERSION,
            "feature_extractor": [null, null],
            "image_encoder": [null, null],
            "requires_safety_checker": false,
            "safety_checker": [null, null],
            "scheduler": ["diffusers", config.scheduler["_class_name"]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        write_json(folder, "model_index.json", &index)?;
        let defaults = json!({
            "steps": config.samples.steps,
            "guidance_scale": config.samples.guidance_scale,
            "width": config.size.1,
            "height": config.size.0,
        });
        write_json(folder, "defaults.json", &defaults)?;
        write_json(folder, "scheduler/scheduler_config.json", &Value::Object(config.scheduler.clone()))?;
        write_json(folder, "unet/config.json", &Value::Object(config.unet.clone()))?;
        write_json(folder, "text_encoder/config.json", &Value::Object(config.text_encoder.clone()))?;
        self.tokenizer_files.write(&folder.join("tokenizer"))?;
        self.autoencoder.write(&folder.join("vae"))?;
        let Some(frozen) = &self.frozen else { return Ok(()) };
        self.write_text_encoder(frozen.layout().tensors(frozen.values())?, folder)
    }

    fn evaluate(&self, _: &[ParameterSet]) -> Result<()> {
        Ok(())
    }

    /// A folder in diffusers layout, with the averages of the weights.
    fn write_model(&self, sets: &[ParameterSet], (): &(), folder: &Path) -> Result<()> {
        let (unet, text) = split(sets)?;
        if text.is_some() == self.frozen.is_some() {
            return Err(wrong_sets(sets));
        }
        self.write_rest(folder)?;
        write_tensors(&folder.join("unet/diffusion_pytorch_model.safetensors"), self.stored(unet.tensors()?)?)?;
        text.map_or(Ok(()), |set| self.write_text_encoder(set.tensors()?, folder))
    }
}

/// The UNet's set, and the text encoder's if it is trained.
fn split(sets: &[ParameterSet]) -> Result<(&ParameterSet, Option<&ParameterSet>)> {
    match sets {
        [unet] => Ok((unet, None)),
        [unet, text] => Ok((unet, Some(text))),
        _ => Err(wrong_sets(sets)),
    }
}

/// Sets of another task.
fn wrong_sets(sets: &[ParameterSet]) -> Error {
    Error::invalid("the number of sets of parameters", sets.len(), "this task has one or two")
}
