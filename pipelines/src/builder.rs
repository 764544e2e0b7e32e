//! From a model's files to a pipeline.

use crate::device::{DTypeChoice, DeviceChoice, NumberFormat};
use crate::model::{Defaults, Model, config};
use crate::stages::{Decode, Denoise, Encode};
use crate::text_to_image::TextToImage;
use std::path::PathBuf;
use std::time::Instant;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision};
use tweedie::conditioning::Tokenizer;
use tweedie::layers::{Backend, Weights};
use tweedie::models::{
    AutoencoderConfig, AutoencoderKl, ClipTextConfig, ClipTextModel, Halves, UNet2DConditionConfig,
    UNet2DConditionModel,
};
use tweedie::{DType, Device, Error, Result};

/// Says with which model, where and in which number format a pipeline runs.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    model: Model,
    device: DeviceChoice,
    dtype: DTypeChoice,
    backend: Option<Backend>,
}

impl Builder {
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

    /// Another way to compute than the device's own: tests run on the CPU what other devices would.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Loads the model.
    ///
    /// # Errors
    /// If a file is missing or damaged, if weights do not fit their configuration, or if the model is not one
    /// that makes pictures from text.
    pub fn build(self) -> Result<TextToImage> {
        let start = Instant::now();
        let files = self.model.files()?;
        let device = self.device.open()?;
        let format = self.dtype.on(&device);
        let loader = Loader { files: &files, device: &device, format, backend: self.backend };

        let unet_config = loader.unet_config()?;
        let vae_config = loader.vae_config()?;
        check_text_to_image(&unet_config, &vae_config)?;
        let scheduler = config(&files, "scheduler", "scheduler_config.json")?;
        let defaults = Defaults::read(&files)?;
        let tokenizer = Tokenizer::from_files(&files, "tokenizer")?;

        let (text_encoder, text_files) = loader.text_encoder()?;
        check_width(&text_encoder, &unet_config)?;
        let (vae, vae_files) = loader.vae(vae_config, Halves::Decoder)?;
        let (unet, unet_files) = loader.unet(unet_config)?;
        Ok(TextToImage {
            encode: Encode::new(tokenizer, text_encoder, device.clone()),
            denoise: Denoise::new(unet, device.clone()),
            decode: Decode::new(vae),
            scheduler,
            defaults,
            weight_files: [text_files, unet_files, vae_files].concat(),
            model_name: self.model.name(),
            format,
            device,
            load_seconds: start.elapsed().as_secs_f64(),
            files,
        })
    }
}

/// Loads components of one model.
pub(crate) struct Loader<'a> {
    pub files: &'a ModelFiles,
    pub device: &'a Device,
    pub format: NumberFormat,
    pub backend: Option<Backend>,
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
        let weights = Weights::new(&checkpoint);
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

fn check_text_to_image(unet: &UNet2DConditionConfig, vae: &AutoencoderConfig) -> Result<()> {
    if unet.addition.is_some() {
        let fix =
            "Stable Diffusion XL takes two text encoders, which this version does not run; use a 1.x or 2.x model";
        return Err(Error::invalid("addition_embed_type of the unet", "text_time", fix));
    }
    if unet.in_channels != vae.latent_channels || unet.out_channels < vae.latent_channels {
        let fix = match unet.in_channels {
            9 => "this is an inpainting model; use one for text to image".into(),
            _ => format!("the autoencoder has {} latent channels; the two do not belong together", vae.latent_channels),
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
