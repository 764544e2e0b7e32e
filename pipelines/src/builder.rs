//! From a model's files to a pipeline.

use crate::adapters::{Adapters, LoraChoice};
use crate::control;
use crate::device::{DTypeChoice, DeviceChoice, NumberFormat};
use crate::latent_diffusion::LatentDiffusion;
use crate::model::{Defaults, Model, config, family};
use crate::stages::{Decode, Denoise, Encode};
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Instant;
use tweedie::adapters::Loras;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use tweedie::conditioning::Tokenizer;
use tweedie::layers::{Backend, WeightSource, Weights};
use tweedie::models::{
    AutoencoderConfig, AutoencoderKl, ClipTextConfig, ClipTextModel, Halves, UNet2DConditionConfig,
    UNet2DConditionModel,
};
use tweedie::{DType, Device, Error, Result};

/// Says with which model, where and in which number format a pipeline runs.
#[derive(Debug, Clone)]
pub struct Builder<P> {
    model: Model,
    device: DeviceChoice,
    dtype: DTypeChoice,
    backend: Option<Backend>,
    adapters: Adapters,
    pipeline: PhantomData<P>,
}

impl<P> Default for Builder<P> {
    fn default() -> Self {
        Self {
            model: Model::default(),
            device: DeviceChoice::default(),
            dtype: DTypeChoice::default(),
            backend: None,
            adapters: Adapters::default(),
            pipeline: PhantomData,
        }
    }
}

/// A pipeline over a latent diffusion model: what it needs of one, and how it is made of one.
pub trait Pipeline: Sized {
    /// Whether it shows the network what is known of the picture, if the network is made for that.
    const SHOWS_KNOWN: bool;

    /// The halves of the autoencoder that it uses.
    const HALVES: Halves;

    /// The pipeline over a loaded model.
    fn over(model: LatentDiffusion) -> Self;
}

impl<P> Builder<P> {
    /// A model in a folder in diffusers layout, instead of the embedded one.
    #[must_use]
    pub fn model_folder(self, path: impl Into<PathBuf>) -> Self {
        self.model(Model::Folder(path.into()))
    }

    /// A model.
    #[must_use]
    pub fn model(mut self, model: Model) -> Self {
        self.model = model;
        self
    }

    /// A device.
    #[must_use]
    pub fn device(mut self, device: DeviceChoice) -> Self {
        self.device = device;
        self
    }

    /// A number format for the weights.
    #[must_use]
    pub fn dtype(mut self, dtype: DTypeChoice) -> Self {
        self.dtype = dtype;
        self
    }

    /// Puts adapters on top of the model, in place of those before.
    #[must_use]
    pub fn adapters(mut self, adapters: Adapters) -> Self {
        self.adapters = adapters;
        self
    }

    /// Adds a LoRA file, its change multiplied by `weight`.
    #[must_use]
    pub fn lora(mut self, path: impl Into<PathBuf>, weight: f64) -> Self {
        self.adapters.loras.push(LoraChoice { path: path.into(), weight });
        self
    }

    /// Adds the folder of a control model; the request has a picture for it.
    #[must_use]
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.adapters.controls.push(path.into());
        self
    }

    /// Another way to compute than the device's own: tests run on the CPU what other devices would.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }
}

impl<P: Pipeline> Builder<P> {
    /// Loads the model.
    ///
    /// # Errors
    /// If a file is missing or damaged, if weights do not fit their configuration, or if the model is not one
    /// for this pipeline.
    pub fn build(self) -> Result<P> {
        let start = Instant::now();
        let files = self.model.files()?;
        let device = self.device.open()?;
        let format = self.dtype.on(&device);
        let loader = Loader { files: &files, device: &device, format, backend: self.backend, loras: None };

        let unet_config = loader.unet_config()?;
        let loras = self.adapters.open_loras(&unet_config)?;
        let family = family(&unet_config);
        let loader = Loader { loras: Some(&loras), ..loader };
        let vae_config = loader.vae_config()?;
        check_channels(&unet_config, &vae_config, P::SHOWS_KNOWN)?;
        let scheduler = config(&files, "scheduler", "scheduler_config.json")?;
        let defaults = Defaults::read(&files)?;
        let mut tokenizer = Tokenizer::from_files(&files, "tokenizer")?;

        let embeddings = self.adapters.read_embeddings()?;

        let (mut text_encoder, text_files) = loader.text_encoder()?;
        for embedding in &embeddings {
            embedding.teach(&mut [(&mut tokenizer, &mut text_encoder)])?;
        }
        check_width(&text_encoder, &unet_config)?;
        let controls = self.adapters.controls.iter().map(|path| control::load(path, &loader, &unet_config));
        let (controls, used_controls): (Vec<_>, Vec<_>) = controls.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let (vae, vae_files) = loader.vae(vae_config, P::HALVES)?;
        let (unet, unet_files) = loader.unet(unet_config)?;
        loras.finish(family)?;
        Ok(P::over(LatentDiffusion {
            encode: Encode::new(tokenizer, text_encoder, device.clone()),
            denoise: Denoise::new(unet, device.clone()).with_controls(controls),
            decode: Decode::new(vae),
            scheduler,
            defaults,
            adapters: [self.adapters.used(&embeddings), used_controls].concat(),
            weight_files: [text_files, unet_files, vae_files].concat(),
            model_name: self.model.name(),
            format,
            device,
            load_seconds: start.elapsed().as_secs_f64(),
            files,
        }))
    }
}

/// Loads components of one model.
#[derive(Clone, Copy)]
pub(crate) struct Loader<'a> {
    pub files: &'a ModelFiles,
    pub device: &'a Device,
    pub format: NumberFormat,
    pub backend: Option<Backend>,
    /// What is merged into the weights.
    pub loras: Option<&'a Loras>,
}

impl Loader<'_> {
    pub fn unet_config(&self) -> Result<UNet2DConditionConfig> {
        UNet2DConditionConfig::from_fields(&config(self.files, "unet", "config.json")?)
    }

    pub fn vae_config(&self) -> Result<AutoencoderConfig> {
        AutoencoderConfig::from_fields(&config(self.files, "vae", "config.json")?)
    }

    pub fn text_encoder(&self) -> Result<(ClipTextModel, Vec<String>)> {
        let config = ClipTextConfig::from_fields(&config(self.files, "text_encoder", "config.json")?)?;
        self.load("text_encoder", self.format.weights, &[], |weights| ClipTextModel::new(weights, config))
    }

    pub fn unet(&self, config: UNet2DConditionConfig) -> Result<(UNet2DConditionModel, Vec<String>)> {
        let dtype = self.format.activations;
        self.load("unet", self.format.weights, &[], |weights| UNet2DConditionModel::new(weights, config, dtype))
    }

    pub fn vae(&self, config: AutoencoderConfig, halves: Halves) -> Result<(AutoencoderKl, Vec<String>)> {
        // An autoencoder that overflows when it computes in f16 says so.
        let overflows = config.force_upcast && self.format.activations == DType::F16;
        let NumberFormat { weights, activations } = if overflows { NumberFormat::F32 } else { self.format };
        let unused: &[&str] = if halves == Halves::Decoder { &["encoder.", "quant_conv."] } else { &[] };
        self.load("vae", weights, unused, |weights| AutoencoderKl::new(weights, config, halves, activations))
    }

    pub fn load<T>(
        &self,
        component: &str,
        dtype: DType,
        unused: &[&str],
        build: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<(T, Vec<String>)> {
        let precision = if dtype == DType::F16 { Precision::Half } else { Precision::Full };
        let checkpoint = Checkpoint::open(self.files, component, precision, dtype, self.device)?;
        let names = checkpoint.file_names().to_vec();
        let merged = self.loras.map(|loras| loras.over(component, &checkpoint));
        let source = merged.as_ref().map_or(&checkpoint as &dyn WeightSource, |merged| merged);
        let weights = Weights::new(source);
        let weights = match self.backend {
            Some(backend) => weights.with_backend(backend),
            None => weights,
        };
        let built = build(&weights);
        // What did not fit explains a failure to build better than the failure itself.
        checkpoint.finish(unused)?;
        Ok((built?, names))
    }
}

fn check_channels(unet: &UNet2DConditionConfig, vae: &AutoencoderConfig, shows_known: bool) -> Result<()> {
    if unet.addition.is_some() {
        let fix =
            "Stable Diffusion XL takes two text encoders, which this version does not run; use a 1.x or 2.x model";
        return Err(Error::invalid("addition_embed_type of the unet", "text_time", fix));
    }
    let latent = vae.latent_channels;
    let inpainting = unet.in_channels == 2 * latent + 1;
    let fits = unet.in_channels == latent || (inpainting && shows_known);
    if !fits || unet.out_channels < latent {
        let fix = if inpainting {
            "this is an inpainting model; use it with `tweedie inpaint`, or another model here".into()
        } else {
            format!("the autoencoder has {latent} latent channels; the two do not belong together")
        };
        return Err(Error::invalid("in_channels of the unet", unet.in_channels, fix));
    }
    Ok(())
}

fn check_width(text_encoder: &ClipTextModel, unet: &UNet2DConditionConfig) -> Result<()> {
    let hidden = text_encoder.config().hidden_size;
    match unet.cross_attention_dim.iter().find(|&&width| width != hidden) {
        Some(width) => {
            let fix = format!("the text encoder's hidden_size is {hidden}; the two do not belong together");
            Err(Error::invalid("cross_attention_dim of the unet", width, fix))
        }
        None => Ok(()),
    }
}
