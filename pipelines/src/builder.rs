//! From a model's files to a pipeline.

use crate::adapters::{Adapters, LoraChoice};
use crate::control;
use crate::device::{DTypeChoice, DeviceChoice, NumberFormat};
use crate::latent_diffusion::{LatentDiffusion, ModelParts};
use crate::model::{Defaults, Model, component_alone, config, family, model_index, unet_parameters};
use crate::request::ModelFacts;
use crate::stages::{Decode, Denoise, Encode, TextEncoder};
use crate::task::{TaskKind, Usage};
use crate::used_weights::WeightFile;
use crate::xl::XlFacts;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tweedie::adapters::Loras;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision, SingleFile};
use tweedie::conditioning::Tokenizer;
use tweedie::config::ConfigFields;
use tweedie::kernels::Products;
use tweedie::layers::{Backend, WeightSource, Weights};
use tweedie::models::{
    Autoencoder, AutoencoderConfig, ClipTextConfig, ClipTextModel, ControlModel, EitherAutoencoderConfig, Halves,
    UNet2DConditionConfig, UNet2DConditionModel,
};
use tweedie::{DType, Device, Error, Result};

/// Says with which model, where and in which number format a pipeline runs.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    model: Model,
    vae: Option<Model>,
    preview_vae: Option<Model>,
    device: DeviceChoice,
    dtype: DTypeChoice,
    backend: Option<Backend>,
    products: Option<Products>,
    adapters: Adapters,
    usage: Usage,
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

    /// Another autoencoder than the model's: that of another model, a file, or the folder of an autoencoder alone.
    #[must_use]
    pub fn vae(mut self, vae: Option<Model>) -> Self {
        self.vae = vae;
        self
    }

    /// An autoencoder for previews, a small one as a rule: with it the observer of a run is told of an
    /// [`Event::Preview`](crate::Event::Preview) after every step. It comes in the forms of [`Self::vae`].
    #[must_use]
    pub fn preview_vae(mut self, vae: Option<Model>) -> Self {
        self.preview_vae = vae;
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

    /// Adds a control model, a folder or a file; the request has a picture for it.
    #[must_use]
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.adapters.controls.push(path.into().into());
        self
    }

    /// What the model will be asked for; by default anything, any number of times.
    #[must_use]
    pub fn usage(mut self, usage: Usage) -> Self {
        self.usage = usage;
        self
    }

    /// Another way to compute than the device's own: tests run on the CPU what other devices would.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Other products than are fastest here for the number format: tests see on any machine what some would compute.
    #[must_use]
    pub fn products(mut self, products: Products) -> Self {
        self.products = Some(products);
        self
    }

    /// Loads the model.
    ///
    /// # Errors
    /// If a file is missing or damaged, if weights do not fit their configuration, or if the model is not one
    /// for the task that it is loaded for.
    pub fn build(self) -> Result<LatentDiffusion> {
        let start = Instant::now();
        let files = self.model.files()?;
        let device = self.device.open()?;
        let format = self.dtype.on(&device, self.products, || unet_parameters(&files))?;
        let (backend, products) = (self.backend, Some(format.products));
        let loader = Loader { files: &files, device: &device, format, backend, products, loras: None };

        let unet_config = loader.unet_config()?;
        let loras = self.adapters.open_loras(&unet_config)?;
        let family = family(&unet_config);
        let loader = Loader { loras: Some(&loras), ..loader };
        let vae_source = self.vae.as_ref().map(|vae| autoencoder(vae, &files)).transpose()?;
        let (vae_files, vae_component) = vae_source.as_ref().map_or((&files, "vae"), |(files, name)| (files, name));
        let vae_loader = Loader { files: vae_files, ..loader };
        let vae_config = vae_loader.vae_config(vae_component)?;
        check_channels(&unet_config, vae_config.common(), self.usage.task())?;
        let preview_source = self.preview_vae.as_ref().map(|vae| autoencoder(vae, &files)).transpose()?;
        let preview = preview_source.as_ref().map(|(files, component)| {
            let loader = Loader { files, ..loader };
            let config = loader.vae_config(component)?;
            check_preview(config.common(), vae_config.common())?;
            Ok::<_, Error>((loader, component, config))
        });
        let preview = preview.transpose()?;
        let scheduler = config(&files, "scheduler", "scheduler_config.json")?;
        let defaults = Defaults::read(&files)?;
        let embeddings = self.adapters.read_embeddings()?;

        let (mut encoders, text_files) = loader.text_encoders(&unet_config)?;
        for embedding in &embeddings {
            let pupils = encoders.iter_mut().map(|encoder| (&mut encoder.tokenizer, &mut encoder.model));
            embedding.teach(&mut pupils.collect::<Vec<_>>())?;
        }
        check_width(&encoders, &unet_config)?;
        let xl = XlFacts::of(&unet_config, pooled_width(&encoders), &model_index(&files)?)?;
        let controls = self.adapters.controls.iter().map(|model| control::load(model, &loader, &unet_config));
        let (controls, used_controls): (Vec<_>, Vec<_>) = controls.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let (vae, vae_weights) = vae_loader.vae(vae_component, vae_config, self.usage.halves())?;
        let preview = preview.map(|(loader, component, config)| loader.vae(component, config, Halves::Decoder));
        let preview = preview.transpose()?.map(|(vae, _)| Decode::new(vae));
        let (unet, unet_files) = loader.unet(unet_config)?;
        loras.finish(family)?;
        let parts = ModelParts {
            encode: Encode::new(encoders, device.clone()),
            denoise: Denoise::new(unet, device.clone()).with_controls(controls),
            decode: Decode::new(vae),
            preview,
        };
        let facts = ModelFacts {
            unet: parts.denoise.unet().config().clone(),
            vae: parts.decode.vae().config().clone(),
            scheduler,
            guessed_prediction: self.model.guessed_prediction(&files),
            defaults,
            text_layers: skippable_layers(&parts.encode, xl.is_some()),
            guessing_controls: (parts.denoise.controls().iter())
                .map(|control| matches!(control, ControlModel::ControlNet(_)))
                .collect(),
            xl,
        };
        Ok(LatentDiffusion {
            parts: parts.kept(self.usage),
            facts,
            adapters: [self.adapters.used(&embeddings), used_controls].concat(),
            weights: [(&files, text_files), (&files, unet_files), (vae_files, vae_weights)]
                .into_iter()
                .flat_map(|(files, names)| names.into_iter().map(|name| WeightFile { files: files.clone(), name }))
                .collect(),
            vae_name: self.vae.as_ref().map(Model::name),
            model_name: self.model.name(),
            format,
            device,
            load_seconds: start.elapsed().as_secs_f64(),
        })
    }
}

/// Loads components of one model.
#[derive(Clone, Copy)]
pub(crate) struct Loader<'a> {
    pub files: &'a ModelFiles,
    pub device: &'a Device,
    pub format: NumberFormat,
    pub backend: Option<Backend>,
    pub products: Option<Products>,
    /// What is merged into the weights.
    pub loras: Option<&'a Loras>,
}

impl Loader<'_> {
    pub fn unet_config(&self) -> Result<UNet2DConditionConfig> {
        UNet2DConditionConfig::from_fields(&config(self.files, "unet", "config.json")?)
    }

    /// `component` is the folder that it lies in.
    pub fn vae_config(&self, component: &str) -> Result<EitherAutoencoderConfig> {
        if let ModelFiles::Single { weights, .. } = self.files
            && let Some(config) = weights.tiny_autoencoder()?
        {
            return Ok(EitherAutoencoderConfig::Tiny(config));
        }
        let name = format!("{component}/config.json");
        let text = self.files.read_text(&name)?;
        EitherAutoencoderConfig::from_fields(&ConfigFields::from_json("vae", &text, &self.files.path(&name))?)
    }

    pub fn text_encoder(&self, component: &'static str) -> Result<(ClipTextModel, Vec<String>)> {
        let config = ClipTextConfig::from_fields(&config(self.files, component, "config.json")?)?;
        self.load(component, self.format.weights, &[], |weights| ClipTextModel::new(weights, config))
    }

    /// One text encoder, or those of Stable Diffusion XL that there are: two, and in its refiner the second alone.
    fn text_encoders(&self, unet: &UNet2DConditionConfig) -> Result<(Vec<TextEncoder>, Vec<String>)> {
        const XL: [(&str, &str); 2] = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")];
        let there = |component: &str| self.files.exists(&format!("{component}/config.json"));
        let components = match unet.addition {
            Some(_) if there("text_encoder_2") && !there("text_encoder") => &XL[1..],
            Some(_) => &XL[..],
            None => &XL[..1],
        };
        let (mut encoders, mut names) = (Vec::new(), Vec::new());
        for &(component, folder) in components {
            let tokenizer = Tokenizer::from_files(self.files, folder)?;
            let (model, files) = self.text_encoder(component)?;
            encoders.push(TextEncoder { tokenizer, model });
            names.extend(files);
        }
        Ok((encoders, names))
    }

    pub fn unet(&self, config: UNet2DConditionConfig) -> Result<(UNet2DConditionModel, Vec<String>)> {
        let dtype = self.format.activations;
        self.load("unet", self.format.weights, &[], |weights| UNet2DConditionModel::new(weights, config, dtype))
    }

    pub fn vae(
        &self,
        component: &str,
        config: EitherAutoencoderConfig,
        halves: Halves,
    ) -> Result<(Autoencoder, Vec<String>)> {
        // An autoencoder that overflows when it computes in f16 says so.
        let overflows = config.common().force_upcast && self.format.activations == DType::F16;
        let NumberFormat { weights, activations, .. } = if overflows { NumberFormat::F32 } else { self.format };
        let unused: &[&str] = if halves == Halves::Decoder { &["encoder.", "quant_conv."] } else { &[] };
        self.load(component, weights, unused, |weights| Autoencoder::new(weights, config, halves, activations))
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
        self.load_from(checkpoint, component, unused, build)
    }

    /// Builds a component from weights that were opened otherwise.
    pub fn load_from<T>(
        &self,
        checkpoint: Checkpoint,
        component: &str,
        unused: &[&str],
        build: impl FnOnce(&Weights<'_>) -> Result<T>,
    ) -> Result<(T, Vec<String>)> {
        let names = checkpoint.file_names().to_vec();
        let checkpoint = if self.format.keeps_halves { checkpoint.keeping_halves() } else { checkpoint };
        let merged = self.loras.map(|loras| loras.over(component, &checkpoint));
        let source = merged.as_ref().map_or(&checkpoint as &dyn WeightSource, |merged| merged);
        let weights = Weights::new(source);
        let weights = match self.backend {
            Some(backend) => weights.with_backend(backend),
            None => weights,
        };
        let weights = match self.products {
            Some(products) => weights.with_products(products),
            None => weights,
        };
        let built = build(&weights);
        // What did not fit explains a failure to build better than the failure itself.
        checkpoint.finish(unused)?;
        Ok((built?, names))
    }
}

/// The files of an autoencoder and its folder among them. A file has the configuration of the autoencoder that it
/// replaces, unless it is a tiny one, whose configuration follows from its tensors.
fn autoencoder(model: &Model, replaced: &ModelFiles) -> Result<(ModelFiles, String)> {
    let in_model = "vae".to_owned();
    match model {
        Model::File { path, config } => {
            let configs = match (config, replaced) {
                (Some(folder), _) => ModelFiles::folder(folder)?,
                (None, ModelFiles::Single { configs, .. }) => configs.as_ref().clone(),
                (None, files) => files.clone(),
            };
            let weights = SingleFile::open(path)?;
            Ok((ModelFiles::Single { configs: Arc::new(configs), weights }, in_model))
        }
        Model::Folder(path) | Model::Cached { folder: path, .. }
            if !path.join("vae").is_dir() && path.join("config.json").is_file() =>
        {
            component_alone(path, "the folder of the autoencoder")
        }
        model => Ok((model.files()?, in_model)),
    }
}

/// `task`: the one that the model is loaded for; nothing if for all.
fn check_channels(unet: &UNet2DConditionConfig, vae: &AutoencoderConfig, task: Option<TaskKind>) -> Result<()> {
    let latent = vae.latent_channels;
    let inpaints = unet.in_channels == 2 * latent + 1;
    if !(unet.in_channels == latent || inpaints) || unet.out_channels < latent {
        let fix = format!("the autoencoder has {latent} latent channels; the two do not belong together");
        return Err(Error::invalid("in_channels of the unet", unet.in_channels, fix));
    }
    task.map_or(Ok(()), |task| check_task(task, unet.in_channels, latent))
}

/// Whether a model whose network takes so many channels can do a task: one that is shown mask and masked picture can do
/// nothing else.
pub(crate) fn check_task(task: TaskKind, in_channels: usize, latent_channels: usize) -> Result<()> {
    if in_channels > latent_channels && task != TaskKind::Inpaint {
        let fix = "this is an inpainting model; use it with `tweedie inpaint`, or another model here";
        return Err(Error::invalid("in_channels of the unet", in_channels, fix));
    }
    Ok(())
}

/// Whether previews of the model's latents can be drawn by this autoencoder, at the size of its pictures.
fn check_preview(preview: &AutoencoderConfig, vae: &AutoencoderConfig) -> Result<()> {
    let form = |vae: &AutoencoderConfig| (vae.latent_channels, vae.factor());
    let name = |(channels, factor)| format!("{channels} channels at 1/{factor} of the size");
    if form(preview) == form(vae) {
        return Ok(());
    }
    let fix = format!("the model's have {}; take one made for this model's family", name(form(vae)));
    Err(Error::invalid("the latents of the autoencoder for previews", name(form(preview)), fix))
}

/// How many layers `clip_skip` can skip. Stable Diffusion XL starts to count one layer further back.
fn skippable_layers(encode: &Encode, xl: bool) -> usize {
    let layers = encode.encoders().iter().map(|encoder| encoder.model.config().num_hidden_layers);
    layers.min().unwrap_or(0).saturating_sub(usize::from(xl))
}

/// The network sees the states of all encoders side by side.
fn check_width(encoders: &[TextEncoder], unet: &UNet2DConditionConfig) -> Result<()> {
    let hidden: usize = encoders.iter().map(|encoder| encoder.model.config().hidden_size).sum();
    match unet.cross_attention_dim.iter().find(|&&width| width != hidden) {
        Some(width) => {
            let fix = format!("the text encoder's hidden_size is {hidden}; the two do not belong together");
            Err(Error::invalid("cross_attention_dim of the unet", width, fix))
        }
        None => Ok(()),
    }
}

/// Width of the pooled text: the last encoder's projection.
fn pooled_width(encoders: &[TextEncoder]) -> usize {
    encoders.last().map_or(0, |encoder| encoder.model.config().projection_dim)
}
