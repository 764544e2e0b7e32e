//! From a model's files to a pipeline in pixel space.

use super::PixelPipeline;
use crate::device::{DTypeChoice, DeviceChoice};
use crate::model::{Defaults, component_parameters};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tweedie::checkpoints::ModelFiles;
use tweedie::families::Loader;
use tweedie::layers::Backend;
use tweedie::models::{ClassEmbedding, LeNet, LeNetConfig, UNet2DConfig, UNet2DModel};
use tweedie::{Error, ErrorKind, Result};

/// A model in pixel space as a user names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PixelModel {
    /// The digits that are compiled into the program.
    #[default]
    Mnist,
    /// A folder in diffusers layout, or a run of `tweedie train` with one in `model/`.
    Folder(PathBuf),
    /// A model of the hub in its cache.
    Cached {
        /// Its name there.
        name: String,
        /// Its files, in diffusers layout.
        folder: PathBuf,
    },
}

impl PixelModel {
    /// Its files.
    ///
    /// # Errors
    /// If the folder does not exist or holds no model, or this build has no embedded one.
    pub fn files(&self) -> Result<ModelFiles> {
        match self {
            Self::Folder(path) | Self::Cached { folder: path, .. } => {
                let files = inside(path, "unet")?;
                if files.exists("unet/config.json") {
                    return Ok(files);
                }
                let fix = "it has neither unet/config.json nor model/unet/config.json; give a folder in diffusers \
                           layout, or the folder of a training run that has finished";
                Err(Error::unusable(ErrorKind::Model, "the checkpoint", path.display(), fix))
            }
            #[cfg(feature = "embedded-mnist")]
            Self::Mnist => Ok(ModelFiles::Embedded { name: "mnist-ddpm", files: tweedie_weights::MNIST_DDPM }),
            #[cfg(not(feature = "embedded-mnist"))]
            Self::Mnist => {
                let fix = "this build has no embedded model of digits; use `checkpoint` with a model that \
                           `tweedie train mnist` made";
                Err(Error::invalid("the model", "mnist", fix))
            }
        }
    }

    /// What pictures' settings call it.
    pub fn name(&self) -> String {
        match self {
            Self::Mnist => "mnist-ddpm".into(),
            Self::Cached { name, .. } => name.clone(),
            Self::Folder(path) => {
                let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
                whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

/// The model in a folder, or in `model/` of a training run's folder.
fn inside(path: &Path, component: &str) -> Result<ModelFiles> {
    let files = ModelFiles::folder(path)?;
    let has = |files: &ModelFiles| files.exists(&format!("{component}/config.json"));
    let finished = path.join("model");
    if !has(&files) && finished.is_dir() {
        return ModelFiles::folder(&finished);
    }
    Ok(files)
}

/// Says with which model, where and in which number format a pipeline in pixel space runs.
#[derive(Debug, Clone, Default)]
pub struct PixelBuilder {
    model: PixelModel,
    classifier: Option<PathBuf>,
    device: DeviceChoice,
    dtype: DTypeChoice,
    backend: Option<Backend>,
}

impl PixelBuilder {
    /// A model, instead of the embedded one.
    #[must_use]
    pub fn model(mut self, model: PixelModel) -> Self {
        self.model = model;
        self
    }

    /// A classifier to guide by: a folder with `classifier/`, or the run that trained it.
    #[must_use]
    pub fn classifier(mut self, path: impl Into<PathBuf>) -> Self {
        self.classifier = Some(path.into());
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
    /// If a file is missing or damaged, if weights do not fit their configuration, or if the model is not one in
    /// pixel space.
    pub fn build(self) -> Result<PixelPipeline> {
        let start = Instant::now();
        let files = self.model.files()?;
        let device = self.device.open()?;
        let format = self.dtype.on(&device, None, || component_parameters(&files, "unet"))?;
        let fields = files.config("unet", "config.json")?;
        if fields.class_name() == Some("UNet2DConditionModel") {
            let fix = "it draws what a text says; make pictures from a text with it (txt2img), as `model`";
            return Err(Error::unusable(ErrorKind::Model, "the model", self.model.name(), fix));
        }
        let unet_config = UNet2DConfig::from_fields(&fields)?;
        check_pixels(&unet_config, &files)?;
        let scheduler = files.config("scheduler", "scheduler_config.json")?;
        let defaults = Defaults::read(&files)?;
        let pipeline_class = files.index()?["_class_name"].as_str().map(str::to_owned);

        let loader = Loader { backend: self.backend, ..format.loader(&files, &device) };
        let (unet, weight_files) =
            loader.load("unet", &[], |weights| UNet2DModel::new(weights, unet_config, format.activations))?;
        let classifier = self.classifier.as_deref().map(|path| {
            let files = inside(path, "classifier")?;
            let loader = Loader { files: &files, ..loader.in_f32() };
            let config = LeNetConfig::from_fields(&files.config("classifier", "config.json")?)?;
            Ok::<_, Error>(loader.load("classifier", &[], |w| LeNet::new(config, w))?.0)
        });
        Ok(PixelPipeline {
            unet,
            classifier: classifier.transpose()?,
            scheduler,
            pipeline_class,
            defaults,
            weight_files,
            model_name: self.model.name(),
            format,
            device,
            load_seconds: start.elapsed().as_secs_f64(),
            files,
        })
    }
}

/// Whether pictures can be made of what the network gives.
fn check_pixels(config: &UNet2DConfig, files: &ModelFiles) -> Result<()> {
    let wrong = |field: &str, value: Value, expected: &str| {
        let path = files.path("unet/config.json");
        Err(Error::unusable(ErrorKind::Model, format!("{field} in {}", path.display()), value, expected))
    };
    let UNet2DConfig { in_channels, out_channels, .. } = *config;
    if files.exists("vae/config.json") || files.exists("vqvae/config.json") {
        let fix =
            "the model works on an autoencoder's latents, which `sample` does not decode; give one in pixel space";
        return Err(Error::unusable(ErrorKind::Model, "the model", files.path("").display(), fix));
    }
    if in_channels != 1 && in_channels != 3 {
        return wrong("in_channels", in_channels.into(), "pictures have 1 or 3 channels; give a model in pixel space");
    }
    if out_channels != in_channels && out_channels != 2 * in_channels {
        let expected = "it must be in_channels, or twice that if the variance is learned";
        return wrong("out_channels", out_channels.into(), expected);
    }
    if config.sample_size.is_none() {
        return wrong("sample_size", Value::Null, "set the side of the pictures that the model was trained on");
    }
    match config.class_embedding {
        ClassEmbedding::Timestep => wrong("class_embed_type", "timestep".into(), "`sample` takes numbered classes"),
        ClassEmbedding::Identity => wrong("class_embed_type", "identity".into(), "`sample` takes numbered classes"),
        _ => Ok(()),
    }
}
