//! From a model's files to a pipeline in pixel space.

use super::PixelPipeline;
use crate::device::{DTypeChoice, DeviceChoice};
use crate::model::{Defaults, Model, component_parameters, folder_of_model};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tweedie::checkpoints::{ComponentKind, ModelFiles};
use tweedie::families::{Families, Loader, load_classifier};
use tweedie::layers::{Backend, Weights};
use tweedie::training::runs::UnfinishedRun;
use tweedie::{Error, ErrorKind, Result};

/// A model in pixel space as a user names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PixelModel {
    /// The digits that are compiled into the program.
    #[default]
    Mnist,
    /// A folder in diffusers layout, or a run of `tweedie train` with one in `model/`.
    Folder(PathBuf),
    /// A checkpoint of a run of `tweedie train` that has not finished, or of any.
    Unfinished(UnfinishedRun),
    /// A model of the hub in its cache.
    Cached {
        /// Its name there.
        name: String,
        /// Its files, in diffusers layout.
        folder: PathBuf,
    },
}

impl PixelModel {
    /// The model in a folder, as [`Model::at`] finds it.
    ///
    /// # Errors
    /// As there.
    pub fn at(path: PathBuf) -> Result<Self> {
        Ok(match Model::at(path.clone(), None)? {
            Model::Unfinished(run) => Self::Unfinished(run),
            _ => Self::Folder(path),
        })
    }

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
            Self::Unfinished(run) => run.files(),
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
            Self::Unfinished(run) => run.name(),
            Self::Folder(path) => {
                let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
                whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

/// The model in a folder, or in `model/` of a training run's folder.
fn inside(path: &Path, component: &str) -> Result<ModelFiles> {
    let has = |folder: &Path| folder.join(component).join("config.json").is_file();
    ModelFiles::folder(&folder_of_model(path, has))
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
        let detected = Families::built_in().detect(&files)?;
        let Some(architecture) = detected.family.pixel_architecture(&files)? else {
            let fix = "it draws what a text says; make pictures from a text with it (txt2img), as `model`";
            return Err(Error::unusable(ErrorKind::Model, "the model", self.model.name(), fix));
        };
        let network = detected.component(ComponentKind::Network)?.folder;
        let format = self.dtype.on(&device, None, || component_parameters(&files, network))?;
        let scheduler = files.config("scheduler", "scheduler_config.json")?;
        let defaults = Defaults::read(&files)?;
        let index = files.index()?;
        let pipeline_class = index["_class_name"].as_str().map(str::to_owned);
        let class_names = class_names(&index);

        let loader = Loader { backend: self.backend, ..format.loader(&files, &device) };
        let build = |weights: &Weights<'_>| architecture.network(weights, format.activations);
        let (network, weight_files) = loader.load(network, &[], build)?;
        let classifier = self.classifier.as_deref().map(|path| {
            let files = inside(path, "classifier")?;
            Ok::<_, Error>(load_classifier(&Loader { files: &files, ..loader.in_f32() }, "classifier")?.0)
        });
        Ok(PixelPipeline {
            facts: architecture.facts(),
            network,
            classifier: classifier.transpose()?,
            scheduler,
            pipeline_class,
            class_names,
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

/// The names of classes in `model_index.json`, where they stand by their numbers as the index of diffusers' DiT has them; none if
/// they are not all there.
fn class_names(index: &Value) -> Vec<String> {
    let Some(labels) = index["id2label"].as_object() else { return Vec::new() };
    let name = |number: usize| labels.get(&number.to_string())?.as_str().map(str::to_owned);
    (0..labels.len()).map(name).collect::<Option<_>>().unwrap_or_default()
}
