//! From a model's files to a pipeline.

use crate::adapted::{Blueprint, bundled, text_encoder};
use crate::adapters::{Adapters, LoraChoice};
use crate::control;
use crate::device::{DTypeChoice, DeviceChoice, NumberFormat, kernels_compute};
use crate::latent_diffusion::{LatentDiffusion, ModelParts};
use crate::model::{Defaults, Model, component_alone, component_parameters};
use crate::parts::Parts;
use crate::records::record::UsedAutoencoder;
use crate::settings::ModelFacts;
use crate::stages::{Decode, Denoise, Encode};
use crate::task::{TaskKind, Usage, check_task};
use crate::used_weights::{WeightFile, WeightSums};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tweedie::checkpoints::{ComponentKind, ModelFiles, SingleFile};
use tweedie::families::{Families, KeptWeights, Loader, NetworkFacts};
use tweedie::kernels::MatmulPrecision;
use tweedie::layers::{Backend, Weights};
use tweedie::models::{ControlModel, Halves, LatentSpace};
use tweedie::{Device, Error, ErrorKind, Result};

/// Says with which model, where and in which number format a pipeline runs.
#[derive(Debug, Clone, Default)]
pub struct Builder {
    families: Families,
    model: Model,
    parts: Parts,
    vae: Option<Model>,
    preview_vae: Option<Model>,
    previews: bool,
    device: DeviceChoice,
    dtype: DTypeChoice,
    backend: Option<Backend>,
    products: Option<MatmulPrecision>,
    adapters: Adapters,
    usage: Usage,
}

impl Builder {
    /// The families that the model may belong to, instead of the library's own.
    #[must_use]
    pub fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

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

    /// Another denoising network than the model's, alone in a file: with diffusers' names or the original ones, in any form that
    /// models are read in, such as GGUF.
    #[must_use]
    pub fn unet(mut self, file: Option<PathBuf>) -> Self {
        self.parts.unet = file;
        self
    }

    /// Other text encoders than the model's, each alone in a file, with transformers' names or OpenCLIP's. Of several each takes the
    /// place of the one that is as wide.
    #[must_use]
    pub fn text_encoders(mut self, files: Vec<PathBuf>) -> Self {
        self.parts.text_encoders = files;
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

    /// Whether the observer is told of previews without an autoencoder for them too, where the pictures are small: the model's own
    /// decoder draws them then.
    #[must_use]
    pub fn previews(mut self, wanted: bool) -> Self {
        self.previews = wanted;
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
    pub fn products(mut self, products: MatmulPrecision) -> Self {
        self.products = Some(products);
        self
    }

    /// Whether kernels will compute.
    pub(crate) fn computes_with_kernels(&self) -> bool {
        self.device.open().is_ok_and(|device| kernels_compute(self.backend, &device))
    }

    /// The model, if it is the embedded one.
    pub(crate) fn embedded(&self) -> Option<&Model> {
        Some(&self.model).filter(|model| matches!(model, Model::Embedded))
    }

    /// Loads the model.
    ///
    /// # Errors
    /// If a file is missing or damaged, if weights do not fit their configuration, or if the model is not one
    /// for the task that it is loaded for.
    pub fn build(self) -> Result<LatentDiffusion> {
        let start = Instant::now();
        let Self { families, backend, products, .. } = &self;
        let own = self.model.files_for(families)?;
        let prediction_doubt = self.model.prediction_doubt(&own, families);
        let files = self.parts.over(own, families)?;
        let device = self.device.open()?;
        let detected = families.detect(&files)?;
        let network = detected.component(ComponentKind::Network)?.folder;
        let format = self.dtype.on(&device, *products, || component_parameters(&files, network))?;
        let loader = Loader { backend: *backend, ..format.loader(&files, &device) };

        let architecture = detected.family.architecture(&files)?;
        let network_facts = architecture.network_facts();
        let target = detected.family.lora_target(architecture.layers_per_block());
        let loras = self.adapters.open_loras(&target)?;
        let loader = Loader { loras: Some(&loras), ..loader };
        // Requests put LoRAs beside the weights of the first two stages.
        let kept = KeptWeights::default();
        let adaptable = Loader { kept: (self.usage == Usage::Any).then_some(&kept), ..loader };
        let in_model = detected.component(ComponentKind::Autoencoder)?.folder;
        let other = |model: &Option<Model>| {
            let autoencoder = model.as_ref().map(|vae| OtherAutoencoder::find(vae, &files, in_model, families));
            autoencoder.transpose()
        };
        let other_vae = other(&self.vae)?;
        let (vae_files, vae_folder) = other_vae.as_ref().map_or((&files, in_model), OtherAutoencoder::place);
        let vae = architecture.autoencoder(vae_files, vae_folder)?;
        check_channels(&network_facts, &vae.latent_space(), self.usage.task())?;
        let preview_vae = other(&self.preview_vae)?;
        let preview = preview_vae.as_ref().map(|other| {
            let (files, folder) = other.place();
            let preview = architecture.autoencoder(files, folder)?;
            check_preview(&preview.latent_space(), &vae.latent_space())?;
            Ok::<_, Error>((Loader { files, ..loader }, folder, preview))
        });
        let preview = preview.transpose()?;
        let scheduler = files.config("scheduler", "scheduler_config.json")?;
        let defaults = Defaults::read(&files)?;
        let embeddings = self.adapters.read_embeddings()?;
        let used = self.adapters.used(&embeddings);
        let embeddings = [embeddings.clone(), bundled(&loras, &embeddings)?].concat();

        let (text_encoder, text_files) = text_encoder(architecture.as_ref(), &adaptable, &embeddings)?;
        architecture.check_text(text_encoder.as_ref())?;
        let xl = architecture.xl(&files, text_encoder.as_ref())?;
        let controls = self.adapters.controls.iter().map(|model| control::load(model, &loader, architecture.as_ref()));
        let (controls, used_controls): (Vec<_>, Vec<_>) = controls.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let latent_space = vae.latent_space();
        let (vae, vae_weights) = vae.load(&Loader { files: vae_files, ..loader }, vae_folder, self.usage.halves())?;
        let preview = preview.map(|(loader, folder, preview)| preview.load(&loader, folder, Halves::Decoder));
        let preview = preview.transpose()?.map(|(vae, _)| Decode::new(vae));
        // A network for one run is loaded when the text encoder is let go of, unless something is put on top of it.
        let comes_later = self.usage != Usage::Any && self.adapters.loras.is_empty() && controls.is_empty();
        let build = |weights: &Weights<'_>| architecture.network(weights, format.activations);
        let built = (!comes_later).then(|| adaptable.load(network, &[], build)).transpose()?;
        let warnings = loras.finish(&detected.name())?;
        let facts = ModelFacts {
            network: network_facts,
            latent_space,
            usual: architecture.usual_settings(),
            scheduler,
            prediction_doubt,
            defaults,
            text_layers: text_encoder.skippable_layers(),
            guessing_controls: (controls.iter())
                .map(|control| matches!(control, ControlModel::ControlNet(_)))
                .collect(),
            xl,
            warnings,
        };
        let used_vae =
            self.vae.as_ref().map(|vae| UsedAutoencoder { name: vae.name(), file: vae_weights.first().cloned() });
        let adapters = [used, used_controls].concat();
        let encode = Encode::new(text_encoder, device.clone()).offering(&embeddings);
        let blueprint = Blueprint {
            kept,
            files: files.clone(),
            network,
            target,
            embeddings,
            family: detected.name(),
            format,
            backend: *backend,
            device: device.clone(),
            architecture,
        };
        let (network, network_files, blueprint, later) = match built {
            Some((built, names)) => (Some(built), names, (self.usage == Usage::Any).then_some(blueprint), None),
            None => (None, blueprint.network_files()?, None, Some(blueprint)),
        };
        let denoise = network.map(|network| Denoise::new(network, device.clone()).with_controls(controls));
        let parts = ModelParts { encode, denoise, later, decode: Decode::new(vae), preview };
        Ok(LatentDiffusion {
            parts: parts.kept(self.usage),
            facts,
            blueprint,
            adapters,
            weights: WeightSums::new(
                [(&files, text_files), (&files, network_files), (vae_files, vae_weights)]
                    .into_iter()
                    .flat_map(|(files, names)| WeightFile::all(files, &names))
                    .collect(),
            ),
            vae: used_vae,
            model_name: self.model.name(),
            format,
            device,
            load_seconds: start.elapsed().as_secs_f64(),
            previews: self.previews,
        })
    }
}

/// An autoencoder in place of a model's own.
pub(crate) struct OtherAutoencoder {
    files: ModelFiles,
    /// Its folder among them.
    folder: String,
}

impl OtherAutoencoder {
    /// Finds its files. A file has the configuration of the autoencoder that it replaces, in the folder `in_model` of the files
    /// `replaced`, unless it is a tiny one, whose configuration follows from its tensors.
    pub(crate) fn find(model: &Model, replaced: &ModelFiles, in_model: &str, families: &Families) -> Result<Self> {
        let in_model = in_model.to_owned();
        match model {
            Model::File { path, config } => {
                let configs = match (config, replaced) {
                    (Some(folder), _) => ModelFiles::folder(folder)?,
                    (None, ModelFiles::Single { configs, .. }) => configs.as_ref().clone(),
                    (None, files) => files.clone(),
                };
                let weights = SingleFile::open(path)?;
                let layout = families.file_layout(&configs);
                if !layout.holds(weights.file(), &in_model) {
                    let fix =
                        "it has no autoencoder; give it with `model`, and the folder of a whole model with `config`";
                    return Err(Error::unusable(
                        ErrorKind::Model,
                        "the autoencoder",
                        format!("{}, a UNet", path.display()),
                        fix,
                    ));
                }
                // An autoencoder has no scheduler to say something of.
                let files =
                    ModelFiles::Single { configs: Arc::new(configs), weights, layout, scheduler: Default::default() };
                Ok(Self { files, folder: in_model })
            }
            Model::Folder(path) | Model::Cached { folder: path, .. }
                if !path.join(&in_model).is_dir() && path.join("config.json").is_file() =>
            {
                let (files, folder) = component_alone(path, "the folder of the autoencoder")?;
                Ok(Self { files, folder })
            }
            model => Ok(Self { files: model.files_for(families)?, folder: in_model }),
        }
    }

    /// The files, and the autoencoder's folder among them.
    pub(crate) fn place(&self) -> (&ModelFiles, &str) {
        (&self.files, &self.folder)
    }
}

impl NumberFormat {
    /// A loader of a model's components in this format, without adapters.
    pub(crate) fn loader<'a>(self, files: &'a ModelFiles, device: &'a Device) -> Loader<'a> {
        let Self { weights, held, products, activations } = self;
        let products = Some(products);
        Loader { weights, held, activations, products, ..Loader::new(files, device) }
    }
}

/// `task`: the one that the model is loaded for; nothing if for all.
fn check_channels(network: &NetworkFacts, latent: &LatentSpace, task: Option<TaskKind>) -> Result<()> {
    let (NetworkFacts { in_channels, out_channels, .. }, latent) = (*network, latent.channels);
    let inpaints = in_channels == 2 * latent + 1;
    if !(in_channels == latent || inpaints) || out_channels < latent {
        let fix = format!("the autoencoder has {latent} latent channels; the two do not belong together");
        return Err(Error::unusable(ErrorKind::Model, "in_channels of the unet", in_channels, fix));
    }
    task.map_or(Ok(()), |task| check_task(task, in_channels, latent))
}

/// Whether previews of the model's latents can be drawn by this autoencoder, at the size of its pictures.
fn check_preview(preview: &LatentSpace, model: &LatentSpace) -> Result<()> {
    let form = |latent: &LatentSpace| (latent.channels, latent.factor);
    let name = |(channels, factor)| format!("{channels} channels at 1/{factor} of the size");
    if form(preview) == form(model) {
        return Ok(());
    }
    let fix = format!("the model's have {}; take one made for this model's family", name(form(model)));
    Err(Error::unusable(ErrorKind::Model, "the latents of the autoencoder for previews", name(form(preview)), fix))
}
