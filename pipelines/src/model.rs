//! Which model: where its files are and what they say of it.

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision, SingleFile};
use tweedie::config::ConfigFields;
use tweedie::families::{Detected, Families};
use tweedie::models::{EitherAutoencoderConfig, UNet2DConditionConfig, UNet2DConfig};
use tweedie::text::KnownWords;
use tweedie::training::runs::UnfinishedRun;
use tweedie::{DType, Device, Error, ErrorKind, Result};

/// A model as a user names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Model {
    /// The one compiled into the program.
    #[default]
    Embedded,
    /// A folder in diffusers layout.
    Folder(PathBuf),
    /// A model of the hub in its cache.
    Cached {
        /// Its name there.
        name: String,
        /// Its files, in diffusers layout.
        folder: PathBuf,
    },
    /// A checkpoint of a training run that has not finished, or of any.
    Unfinished(UnfinishedRun),
    /// One file with the weights of all components, and the folder of configurations and tokenizer that goes with it;
    /// without one, those of the family that the file belongs to.
    File {
        /// The weights.
        path: PathBuf,
        /// The rest, in diffusers layout.
        config: Option<PathBuf>,
    },
}

impl Model {
    /// A folder or a file, whichever is there. A folder has its own configurations; that of a training run stands for its model,
    /// or for its newest checkpoint until it has finished, and that of a checkpoint for the model that it would be.
    ///
    /// # Errors
    /// If configurations are given for a folder, or it is that of a run whose checkpoints are no models.
    pub fn at(path: PathBuf, config: Option<PathBuf>) -> Result<Self> {
        match config {
            config if path.is_file() => Ok(Self::File { path, config }),
            None => of_folder(path),
            Some(config) => {
                let fix = "it goes with a single file; a folder's configurations are its own";
                Err(Error::invalid("`config`", config.display(), format!("{} is no file, and {fix}", path.display())))
            }
        }
    }

    /// Its files, for the families of the library.
    ///
    /// # Errors
    /// As [`Self::files_for`].
    pub fn files(&self) -> Result<ModelFiles> {
        self.files_for(&Families::built_in())
    }

    /// Its files. One file's layout, and its configurations where none are given, are those of the family that it belongs to.
    ///
    /// # Errors
    /// If the folder or file does not exist or is damaged, the file is of no family, or this build has no embedded model.
    pub fn files_for(&self, families: &Families) -> Result<ModelFiles> {
        match self {
            Self::Folder(path) | Self::Cached { folder: path, .. } => ModelFiles::folder(path),
            Self::Unfinished(run) => run.files(),
            Self::File { path, config } => {
                let weights = SingleFile::open(path)?;
                let (configs, scheduler) = match config {
                    Some(folder) => (ModelFiles::folder(folder)?, Map::new()),
                    None => {
                        let detected = families.detect_file(weights.file())?;
                        (built_in(&detected)?, detected.variant.prediction.scheduler_fields())
                    }
                };
                let layout = families.file_layout(&configs);
                Ok(ModelFiles::Single { configs: Arc::new(configs), weights, layout, scheduler })
            }
            #[cfg(feature = "embedded-model")]
            Self::Embedded => Ok(ModelFiles::Embedded { name: "emoji-ldm", files: tweedie_weights::EMOJI_LDM }),
            #[cfg(not(feature = "embedded-model"))]
            Self::Embedded => {
                Err(Error::invalid("the model", "not given", "this build has no embedded model; use `model`"))
            }
        }
    }

    /// Why the network of the one file, opened as `files`, perhaps predicts something else than it is taken to: the file does
    /// not say it, or says different things, or configurations that were given say something else.
    pub(crate) fn prediction_doubt(&self, files: &ModelFiles, families: &Families) -> Option<PredictionDoubt> {
        let (Self::File { config, .. }, ModelFiles::Single { weights, .. }) = (self, files) else { return None };
        let prediction = families.detect_file(weights.file()).ok()?.variant.prediction;
        let said = prediction.kind.name();
        if config.is_some() {
            let fields = files.config("scheduler", "scheduler_config.json").ok()?;
            let taken = prediction_type(&fields);
            let place = prediction.said_in.filter(|_| said != taken)?;
            return Some(PredictionDoubt::Conflict(format!(
                "the model's file says that its network predicts {said} ({place}), its configurations {taken}; the latter is \
                 taken, and `prediction_type` overrides it"
            )));
        }
        let guessed = prediction.is_guessed.then_some(PredictionDoubt::Guessed(said));
        prediction.conflict.map(PredictionDoubt::Conflict).or(guessed)
    }

    /// What pictures' settings call it.
    pub fn name(&self) -> String {
        match self {
            Self::Embedded => "emoji-ldm".into(),
            Self::Cached { name, .. } => name.clone(),
            Self::Unfinished(run) => run.name(),
            Self::File { path, .. } => {
                path.file_stem().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
            }
            Self::Folder(path) => {
                let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
                whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

/// Why it is not certain what a file's network predicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PredictionDoubt {
    /// The file does not say it, and models of its family differ: it is taken to be this, "v_prediction" or "epsilon".
    Guessed(&'static str),
    /// Different things are said, as this says.
    Conflict(String),
}

/// What a scheduler's file says that the network predicts, or diffusers' default where it leaves it out.
fn prediction_type(scheduler: &ConfigFields) -> &str {
    scheduler.fields().get("prediction_type").and_then(Value::as_str).unwrap_or("epsilon")
}

/// What something is opened for, by which the files of a hub's repository are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// All components of a model.
    Model,
    /// The autoencoder, of a model or alone.
    Autoencoder,
    /// A ControlNet or a T2I-Adapter.
    Control,
    /// A LoRA.
    Lora,
    /// A textual inversion.
    TextualInversion,
    /// A model in pixel space.
    Pixel,
}

impl Purpose {
    /// What diffusers and PEFT call the one file of an adapter.
    pub(crate) fn usual_files(self) -> &'static [&'static str] {
        match self {
            Self::Lora => {
                &["pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_model.safetensors"]
            }
            Self::TextualInversion => &["learned_embeds.safetensors", "learned_embeds.bin"],
            _ => &[],
        }
    }

    /// The adapter in a folder, that of a training run or of another program.
    pub fn adapter_in(self, folder: &Path) -> Option<PathBuf> {
        let folders = [folder.join("model"), folder.to_path_buf()];
        let files = folders.iter().flat_map(|folder| self.usual_files().iter().map(|name| folder.join(name)));
        files.into_iter().find(|file| file.is_file())
    }
}

/// A file if it is one, else a folder.
impl From<PathBuf> for Model {
    fn from(path: PathBuf) -> Self {
        if path.is_file() { Self::File { path, config: None } } else { Self::Folder(path) }
    }
}

/// The configurations and the tokenizer that go with a file of a family.
#[cfg(feature = "built-in-families")]
fn built_in(detected: &Detected) -> Result<ModelFiles> {
    use tweedie_weights::stable_diffusion as sd;
    let (name, files) = match detected.built_in() {
        Some("sd1") => ("the built-in Stable Diffusion 1.x", sd::ONE),
        Some("sd1-inpainting") => ("the built-in Stable Diffusion 1.x, inpainting", sd::ONE_INPAINTING),
        Some("sd2") => ("the built-in Stable Diffusion 2.x", sd::TWO),
        Some("sd2-v") => ("the built-in Stable Diffusion 2.x that predicts v", sd::TWO_V),
        Some("sd2-inpainting") => ("the built-in Stable Diffusion 2.x, inpainting", sd::TWO_INPAINTING),
        Some("sdxl") => ("the built-in Stable Diffusion XL", sd::XL),
        Some("sdxl-inpainting") => ("the built-in Stable Diffusion XL, inpainting", sd::XL_INPAINTING),
        Some("sdxl-refiner") => ("the built-in refiner of Stable Diffusion XL", sd::XL_REFINER),
        _ => {
            let fix = "no configurations are built in for it; give their folder with `config`";
            return Err(Error::unusable(ErrorKind::Model, "the model's family", detected.name(), fix));
        }
    };
    Ok(ModelFiles::Embedded { name, files })
}

#[cfg(not(feature = "built-in-families"))]
fn built_in(detected: &Detected) -> Result<ModelFiles> {
    let fix = "this build has no configurations of its own; give their folder with `config`";
    Err(Error::unusable(ErrorKind::Model, "the model's family", detected.name(), fix))
}

/// `defaults.json`: what a model's folder prefers where the request says nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Defaults {
    /// Number of steps.
    pub steps: Option<usize>,
    /// Guidance scale.
    pub guidance_scale: Option<f64>,
    /// Guidance rescale.
    pub guidance_rescale: Option<f64>,
    /// How far to go from a given picture.
    pub strength: Option<f64>,
    /// Width in pixels.
    pub width: Option<usize>,
    /// Height in pixels.
    pub height: Option<usize>,
    /// The scheduler's name on the command line, for models in pixel space.
    pub scheduler: Option<String>,
}

impl Defaults {
    pub(crate) fn read(files: &ModelFiles) -> Result<Self> {
        const NAME: &str = "defaults.json";
        if !files.exists(NAME) {
            return Ok(Self::default());
        }
        let fields = ConfigFields::from_json("defaults.json", &files.read_text(NAME)?, &files.path(NAME))?;
        Ok(Self {
            steps: fields.optional_usize("steps")?,
            guidance_scale: fields.optional_f64("guidance_scale")?,
            guidance_rescale: fields.optional_f64("guidance_rescale")?,
            strength: fields.optional_f64("strength")?,
            width: fields.optional_usize("width")?,
            height: fields.optional_usize("height")?,
            scheduler: match fields.fields().get("scheduler") {
                None | Some(Value::Null) => None,
                Some(Value::String(name)) => Some(name.clone()),
                Some(_) => return Err(fields.wrong("scheduler", "it must be a scheduler's name")),
            },
        })
    }
}

/// What `model info` shows of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentInfo {
    /// Its folder.
    pub name: &'static str,
    /// Its class in `model_index.json`.
    pub class_name: Option<String>,
    /// Number of parameters.
    pub parameters: usize,
    /// Bytes of its tensors as they are stored.
    pub bytes: usize,
    /// Element types as stored.
    pub dtypes: Vec<String>,
    /// Weight files.
    pub files: Vec<String>,
}

/// What `model info` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// What pictures' settings call the model.
    pub name: String,
    /// The family, as far as the configurations tell.
    pub family: String,
    /// The pipeline's class in `model_index.json`.
    pub pipeline: Option<String>,
    /// The scheduler's class.
    pub scheduler: Option<String>,
    /// What the network predicts, as the scheduler's file has it.
    pub prediction: Option<String>,
    /// Why that is not certain, if it is not.
    pub prediction_doubt: Option<PredictionDoubt>,
    /// Native size of pictures, width and height.
    pub size: Option<(usize, usize)>,
    /// The components that hold weights.
    pub components: Vec<ComponentInfo>,
    /// The words of the captions that it was trained on, if they are few.
    pub words: Vec<String>,
}

/// The folders of networks that judge pictures, and draw none.
const JUDGING: [&str; 2] = ["classifier", "judge"];

/// How many values a component's tensors have.
fn parameters(checkpoint: &Checkpoint) -> usize {
    checkpoint.stored().map(|t| t.shape.iter().product::<usize>()).sum()
}

/// The same of a component, from its files' headers.
pub(crate) fn component_parameters(files: &ModelFiles, component: &str) -> Result<usize> {
    Ok(parameters(&Checkpoint::open(files, component, Precision::Full, DType::F32, &Device::Cpu)?))
}

impl ModelInfo {
    /// Reads headers and configurations, no weights.
    ///
    /// # Errors
    /// If a file is damaged, or there is no component at all.
    pub fn read(model: &Model) -> Result<Self> {
        let families = Families::built_in();
        let files = model.files_for(&families)?;
        let index = files.index()?;
        let class_of = |name: &str| index[name][1].as_str().map(str::to_owned);
        let of_families = families.components();
        let known: Vec<_> = of_families.iter().map(|component| component.folder).chain(JUDGING).collect();
        let mut components = Vec::new();
        for &name in &known {
            if !files.exists(&format!("{name}/config.json")) {
                continue;
            }
            let checkpoint = Checkpoint::open(&files, name, Precision::Full, DType::F32, &Device::Cpu)?;
            let mut dtypes: Vec<String> = checkpoint.stored().map(|t| t.dtype.to_string().to_lowercase()).collect();
            dtypes.sort();
            dtypes.dedup();
            components.push(ComponentInfo {
                name,
                class_name: class_of(name),
                parameters: parameters(&checkpoint),
                bytes: checkpoint.stored_bytes(),
                dtypes,
                files: checkpoint.file_names().to_vec(),
            });
        }
        if components.is_empty() {
            let path = files.path("");
            for (purpose, option) in [(Purpose::Lora, "lora"), (Purpose::TextualInversion, "embedding")] {
                if purpose.adapter_in(&path).is_some() {
                    let fix = format!("it is no model by itself; put it on top of one with `{option}`");
                    return Err(Error::unusable(ErrorKind::Model, "the model", path.display(), fix));
                }
            }
            let fix = format!("it has none of the folders {} with a config.json", known.join(", "));
            return Err(Error::unusable(ErrorKind::Model, "the model", path.display(), fix));
        }
        let has = |name: &str| components.iter().any(|component| component.name == name);
        let unet = has("unet").then(|| files.config("unet", "config.json")).transpose()?;
        let vae = has("vae").then(|| files.config("vae", "config.json")).transpose()?;
        let class_name = unet.as_ref().and_then(|fields| fields.class_name());
        let pixels = unet.as_ref().filter(|_| class_name == Some("UNet2DModel"));
        let pixels = pixels.and_then(|fields| UNet2DConfig::from_fields(fields).ok());
        // A model that cannot run can still be looked at.
        let unet = unet.and_then(|fields| UNet2DConditionConfig::from_fields(&fields).ok());
        let vae = vae.and_then(|fields| EitherAutoencoderConfig::from_fields(&fields).ok());
        let size = unet.as_ref().zip(vae.as_ref()).map(|(unet, vae)| {
            let (height, width) = unet.sample_size;
            let factor = vae.common().latent_space().factor;
            (width * factor, height * factor)
        });
        let size = size.or(pixels.as_ref().and_then(|unet| unet.sample_size).map(|(height, width)| (width, height)));
        let scheduler = "scheduler/scheduler_config.json";
        let scheduler =
            files.exists(scheduler).then(|| files.config("scheduler", "scheduler_config.json")).transpose()?;
        let words = KnownWords::of_model(&files, "tokenizer")?;
        Ok(Self {
            name: model.name(),
            family: families.detect(&files).map_or_else(|_| "unknown".into(), |detected| detected.name()),
            pipeline: index["_class_name"].as_str().map(str::to_owned),
            prediction: scheduler.as_ref().map(|fields| prediction_type(fields).to_owned()),
            prediction_doubt: model.prediction_doubt(&files, &families),
            scheduler: scheduler.and_then(|fields| fields.class_name().map(str::to_owned)),
            size,
            components,
            words: words.iter().flat_map(KnownWords::iter).map(str::to_owned).collect(),
        })
    }
}

/// The model in a folder, or of the training run in it.
fn of_folder(path: PathBuf) -> Result<Model> {
    if !path.is_dir() || path.join("model_index.json").exists() {
        return Ok(Model::Folder(path));
    }
    if let Some(run) = UnfinishedRun::at(&path)? {
        return Ok(Model::Unfinished(run));
    }
    let is_run = path.join("metrics.jsonl").is_file();
    Ok(Model::Folder(folder_of_model(&path, |_| !is_run)))
}

/// Where the model is that a folder stands for: there, or if it is none, in `model/` as a training run leaves it.
pub(crate) fn folder_of_model(path: &Path, is_model: impl FnOnce(&Path) -> bool) -> PathBuf {
    let finished = path.join("model");
    if !is_model(path) && finished.is_dir() { finished } else { path.to_path_buf() }
}

/// A folder that holds one component alone, as a component of the folder around it; `what` it is for messages.
pub(crate) fn component_alone(folder: &Path, what: &str) -> Result<(ModelFiles, String)> {
    let whole = folder.canonicalize().map_err(Error::io("read", folder))?;
    match (whole.parent(), whole.file_name().and_then(|name| name.to_str())) {
        (Some(parent), Some(name)) => Ok((ModelFiles::folder(parent)?, name.into())),
        _ => Err(Error::invalid(what, whole.display(), "rename its folder to plain text")),
    }
}
