//! What a latent diffusion model is trained on: captioned pictures, an autoencoder, a tokenizer.

use super::LatentTrainingSettings;
use crate::builder::OtherAutoencoder;
use crate::device::NumberFormat;
use crate::model::Model;
use crate::train::{Component, TrainingSet, captioned};
use serde_json::{Map, Value};
use std::path::Path;
use tweedie::checkpoints::ModelFiles;
use tweedie::config::ConfigFields;
use tweedie::families::{AutoencoderArchitecture, Families, autoencoder_config};
use tweedie::models::{Halves, LatentSpace};
use tweedie::text::{TokenizerFiles, train_tokenizer};
use tweedie::training::data::{CaptionedPictures, LatentOptions, read_captioned};
use tweedie::training::tasks::FrozenAutoencoder;
use tweedie::{Device, Error, Result};

/// Models that parts are taken from, found.
#[derive(Debug, Clone, Default)]
pub struct TrainingModels {
    /// That of the autoencoder, if it is given.
    pub vae: Option<Model>,
    /// That which training goes on from.
    pub from: Option<Model>,
    /// That of the text encoder.
    pub text_encoder: Option<Model>,
}

/// Captioned pictures, and the parts of the model that are there before training.
#[derive(Debug)]
pub struct LatentTrainingData {
    pictures: CaptionedPictures,
    size: (usize, usize),
    /// The sizes of the files, if they were looked at.
    sizes: Option<Vec<(usize, usize)>>,
    fingerprint: String,
    autoencoder: Option<FrozenAutoencoder>,
    autoencoder_fingerprint: String,
    latent_space: LatentSpace,
    tokenizer: TokenizerFiles,
    /// The network to go on from, and the schedule of its model.
    base: Option<(Component, ConfigFields)>,
    /// The text encoder that is taken, of that model or of another.
    text_encoder: Option<Component>,
}

impl LatentTrainingData {
    /// Reads the captions of a folder and looks at its pictures, unless their `fingerprint` is that of a run that has seen
    /// them; loads the autoencoder, and reads or trains the tokenizer.
    ///
    /// `resize` is the side of the square that each picture is made to.
    ///
    /// # Errors
    /// If the folder has bad data, which is named with file and line, or a model cannot be used.
    pub fn read(
        folder: &Path,
        resize: Option<usize>,
        settings: &LatentTrainingSettings,
        models: &TrainingModels,
        seen: Option<&SeenPictures>,
    ) -> Result<Self> {
        let families = Families::built_in();
        let base = models.from.as_ref().map(|model| in_folders(model, &families, "`from`")).transpose()?;
        let Some(vae) = models.vae.as_ref().or(models.from.as_ref()) else {
            let fix = "a latent diffusion model works in an autoencoder's latents; train one first, or name a model that has one";
            return Err(Error::invalid("`vae`", "not given", fix));
        };
        let (autoencoder, latent_space) = load_autoencoder(vae, base.as_ref(), &families)?;
        let (class, caption) = (settings.class_data.as_ref(), settings.class_caption.as_ref());
        let pictures = captioned::with_class(read_captioned(folder)?, class, caption)?;
        let fingerprint = pictures.fingerprint()?;
        if settings.buckets && resize.is_none() {
            let fix = "buckets have about N by N pixels; give N to `resize`";
            return Err(Error::invalid("`buckets`", "without `resize`", fix));
        }
        let seen = seen.filter(|seen| seen.fingerprint == fingerprint);
        let sizes = if seen.is_some() { None } else { Some(pictures.sizes()?) };
        let size = match (resize, seen, &sizes) {
            (Some(side @ 1..=4096), ..) => (side, side),
            (Some(side), ..) => {
                return Err(Error::invalid("the side to resize to", side, "give from 1 to 4096 pixels"));
            }
            (None, _, Some(sizes)) => pictures.one_size(sizes)?,
            (None, seen, None) => seen.map_or((0, 0), |seen| seen.size),
        };
        let text_model = models.text_encoder.as_ref().map(|model| in_folders(model, &families, "`text_encoder`"));
        let text_model = text_model.transpose()?.or_else(|| base.clone());
        let tokenizer = match (&text_model, &settings.tokenizer) {
            (_, Some(path)) => tokenizer_at(path)?,
            (Some(files), None) => TokenizerFiles::read(files, "tokenizer")?,
            (None, None) => train_tokenizer(pictures.captions(), settings.merges, settings.tokens)?,
        };
        Ok(Self {
            autoencoder_fingerprint: autoencoder.fingerprint(),
            autoencoder: Some(autoencoder),
            pictures,
            size,
            sizes,
            fingerprint,
            latent_space,
            tokenizer,
            base: base.map(network_and_schedule).transpose()?,
            text_encoder: text_model.map(text_encoder_of).transpose()?,
        })
    }

    /// The pictures.
    pub fn pictures(&self) -> &CaptionedPictures {
        &self.pictures
    }

    /// Height and width of all pictures, or of a square of about as many pixels where they keep their proportions.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Heights and widths of the files.
    pub(super) fn sizes(&self) -> Result<Vec<(usize, usize)>> {
        self.sizes.clone().map_or_else(|| self.pictures.sizes(), Ok)
    }

    /// What pictures are encoded to.
    pub fn latent_space(&self) -> LatentSpace {
        self.latent_space
    }

    /// The tokenizer's files.
    pub fn tokenizer(&self) -> &TokenizerFiles {
        &self.tokenizer
    }

    /// The network to go on from.
    pub(super) fn unet(&self) -> Option<&Component> {
        self.base.as_ref().map(|(unet, _)| unet)
    }

    /// The schedule of its model.
    pub(super) fn scheduler(&self) -> Option<&ConfigFields> {
        self.base.as_ref().map(|(_, scheduler)| scheduler)
    }

    /// The text encoder that is taken.
    pub(super) fn text_encoder(&self) -> Option<&Component> {
        self.text_encoder.as_ref()
    }

    pub(super) fn autoencoder_fingerprint(&self) -> &str {
        &self.autoencoder_fingerprint
    }

    pub(super) fn tokenizer_fingerprint(&self) -> String {
        self.tokenizer.fingerprint()
    }

    pub(super) fn take_autoencoder(&mut self) -> Result<FrozenAutoencoder> {
        let taken = "taken by an earlier task; read the data again";
        self.autoencoder.take().ok_or_else(|| Error::invalid("the autoencoder", "not there", taken))
    }

    /// What latents are made from: pictures, their size, the autoencoder, and which are kept.
    /// `buckets`: the multiple of their sides and the least number of pictures of each, if there are several.
    pub(super) fn latents_key(
        &self,
        LatentOptions { flip, deviations }: LatentOptions,
        buckets: Option<(usize, usize)>,
    ) -> String {
        let ((height, width), pictures, autoencoder) = (self.size, &self.fingerprint, &self.autoencoder_fingerprint);
        format!("{pictures} {autoencoder} {height}x{width} {flip} {deviations} {buckets:?}")
    }
}

impl TrainingSet for LatentTrainingData {
    fn images(&self) -> usize {
        self.pictures.len()
    }

    fn seen_in_epoch(&self, trained: &[usize]) -> usize {
        self.pictures.seen_in_epoch(trained)
    }

    fn record(&self) -> Map<String, Value> {
        captioned::record(&self.pictures, self.size, &self.fingerprint)
    }
}

/// Pictures that a run has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPictures {
    fingerprint: String,
    size: (usize, usize),
}

impl SeenPictures {
    /// Those of a run's configuration, if it says which.
    pub fn by_run(config: &Value) -> Option<Self> {
        let side = |name: &str| config["data"][name].as_u64().map(|side| side as usize);
        let fingerprint = config["data"]["fingerprint"].as_str()?.to_owned();
        Some(Self { fingerprint, size: (side("height")?, side("width")?) })
    }
}

fn network_and_schedule(files: ModelFiles) -> Result<(Component, ConfigFields)> {
    let scheduler = files.config("scheduler", "scheduler_config.json")?;
    Ok((Component::of(files, "unet")?, scheduler))
}

fn text_encoder_of(files: ModelFiles) -> Result<Component> {
    // CLIP's own models have it, for the likeness of texts and pictures.
    Ok(Component::of(files, "text_encoder")?.without(&["text_projection."]))
}

/// A model whose parts are in folders, as those are that a model in training is made of.
fn in_folders(model: &Model, families: &Families, what: &str) -> Result<ModelFiles> {
    match model.files_for(families)? {
        ModelFiles::Single { weights, .. } => {
            let fix = "it is one file; convert it to a folder in diffusers layout first";
            Err(Error::invalid(what, weights.path().display(), fix))
        }
        files => Ok(files),
    }
}

/// The autoencoder of a model, or one alone; where it has no configuration, it takes that of `base`.
pub(in crate::train) fn load_autoencoder(
    model: &Model,
    base: Option<&ModelFiles>,
    families: &Families,
) -> Result<(FrozenAutoencoder, LatentSpace)> {
    // Where a file has no configuration, it takes that of the model that it is for.
    let replaced = match base {
        Some(files) => files.clone(),
        None => ModelFiles::Folder("the model".into()),
    };
    let found = OtherAutoencoder::find(model, &replaced, "vae", families)?;
    let (files, folder) = found.place();
    let loader = NumberFormat::F32.loader(files, &Device::Cpu);
    let (network, names) = autoencoder_config(files, folder)?.load(&loader, folder, Halves::Both)?;
    let space = network.latent_space();
    Ok((FrozenAutoencoder::new(network, files, folder, &names)?, space))
}

/// The tokenizer of a folder, or of the folder `tokenizer` in it.
fn tokenizer_at(path: &Path) -> Result<TokenizerFiles> {
    let inner = path.join("tokenizer");
    let path = if inner.is_dir() { inner.as_path() } else { path };
    let (root, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().and_then(|name| name.to_str()));
    let name = name.ok_or_else(|| Error::invalid("`tokenizer`", path.display(), "give the path of a folder"))?;
    TokenizerFiles::read(&ModelFiles::Folder(root.to_path_buf()), name)
}
