//! The files of a model, on disk or compiled in.

use super::{FileLayout, SingleFile};
use crate::config::{ConfigFields, LONGEST};
use crate::files::{bytes_sha256, file_sha256, sha256, text_of};
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of the largest file that is read whole: configurations and vocabularies.
const LARGEST_TEXT: u64 = 64 << 20;

/// The scheduler's configuration, in its folder and in the layout.
const SCHEDULER_FILE: &str = "scheduler_config.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";

fn missing(path: &Path) -> Error {
    let fix = "a model in diffusers layout has it; the folder is another, or its download is not complete";
    Error::unusable(ErrorKind::Model, format!("the file {}", path.display()), "missing", fix)
}

/// A model in diffusers' folder layout, or one whose weights are in one file and the rest in that layout.
#[derive(Debug, Clone)]
pub enum ModelFiles {
    /// A folder on disk.
    Folder(PathBuf),
    /// Files compiled into the program, by their paths in the layout.
    Embedded {
        /// What messages call the model.
        name: &'static str,
        /// Path and contents of each file.
        files: &'static [(&'static str, &'static [u8])],
    },
    /// The weights in one file.
    Single {
        /// Configurations and tokenizer, and the weights of other components if the file holds a denoising network alone.
        configs: Arc<ModelFiles>,
        /// The weights of all other components.
        weights: SingleFile,
        /// What it calls them.
        layout: &'static dyn FileLayout,
        /// Fields of the scheduler's configuration that the weights' file says, in place of those in `configs`.
        scheduler: Map<String, Value>,
    },
    /// A model one of whose components has its weights elsewhere, in a file of its own.
    Replaced {
        /// The model.
        model: Arc<ModelFiles>,
        /// The component's folder.
        component: &'static str,
        /// Its weights.
        weights: SingleFile,
        /// What the file calls them.
        layout: &'static dyn FileLayout,
    },
}

impl ModelFiles {
    /// The model in a folder.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn folder(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_path_buf()));
        }
        let fix = if path.is_file() {
            "it is a file; give the folder of a model in diffusers layout (with model_index.json, unet/, vae/, ...)"
        } else {
            "there is no such folder; give the path of a model in diffusers layout"
        };
        Err(Error::missing("the model", path.display(), fix))
    }

    /// Where a file is, for messages.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(name),
            Self::Single { weights, .. } if weights.name() == name => weights.path().to_path_buf(),
            Self::Single { configs, .. } => configs.path(name),
            Self::Replaced { weights, .. } if weights.name() == name => weights.path().to_path_buf(),
            Self::Replaced { model, .. } => model.path(name),
            Self::Embedded { name: model, .. } => Path::new(model).join(name),
        }
    }

    /// Whether there is a file of this name.
    pub fn exists(&self, name: &str) -> bool {
        match self {
            Self::Folder(folder) => folder.join(name).is_file(),
            Self::Single { configs: model, .. } | Self::Replaced { model, .. } => model.exists(name),
            Self::Embedded { files, .. } => files.iter().any(|(n, _)| *n == name),
        }
    }

    /// The contents of a file.
    ///
    /// # Errors
    /// If there is no such file, or it cannot be read.
    pub fn read(&self, name: &str) -> Result<Cow<'static, [u8]>> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                let metadata = path.metadata().map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => missing(&path),
                    _ => Error::io("read", &path)(error),
                })?;
                if !metadata.is_file() || metadata.len() > LARGEST_TEXT {
                    return Err(Error::malformed(
                        ErrorKind::Model,
                        "configuration file",
                        &path,
                        "it is no file, or too large to be one",
                    ));
                }
                Ok(Cow::Owned(std::fs::read(&path).map_err(Error::io("read", &path))?))
            }
            Self::Single { configs, scheduler, .. } if name == SCHEDULER && !scheduler.is_empty() => {
                let mut fields = configs.config("scheduler", SCHEDULER_FILE)?.fields().clone();
                fields.extend(scheduler.clone());
                Ok(Cow::Owned(Value::Object(fields).to_string().into_bytes()))
            }
            Self::Single { configs: model, .. } | Self::Replaced { model, .. } => model.read(name),
            Self::Embedded { .. } => self.embedded(name).map(Cow::Borrowed).ok_or_else(|| missing(&self.path(name))),
        }
    }

    /// The contents of a text file.
    ///
    /// # Errors
    /// If there is no such file, or it is not UTF-8.
    pub fn read_text(&self, name: &str) -> Result<String> {
        text_of(self.read(name)?.into_owned())
            .map_err(|reason| Error::malformed(ErrorKind::Model, "text file", &self.path(name), reason))
    }

    /// A component's configuration file, such as `unet/config.json`, with what the one file of the weights says of itself.
    ///
    /// # Errors
    /// If there is no such file, or it is not one JSON object.
    pub fn config(&self, component: &'static str, file: &str) -> Result<ConfigFields> {
        if let Self::Replaced { model, component: replaced, weights, layout } = self {
            let fields = model.config(component, file)?;
            return Ok(if component == *replaced { layout.config(weights.file(), component, fields) } else { fields });
        }
        let name = format!("{component}/{file}");
        let fields = ConfigFields::from_json(component, &self.read_text(&name)?, &self.path(&name))?;
        Ok(match self {
            Self::Single { weights, layout, .. } => layout.config(weights.file(), component, fields),
            Self::Folder(_) | Self::Embedded { .. } | Self::Replaced { .. } => fields,
        })
    }

    /// `model_index.json`, which names the pipeline and each component's class; null if there is none.
    ///
    /// # Errors
    /// If it is no JSON.
    pub fn index(&self) -> Result<Value> {
        const NAME: &str = "model_index.json";
        if !self.exists(NAME) {
            return Ok(Value::Null);
        }
        let malformed = |reason: String| Error::malformed(ErrorKind::Model, "JSON file", &self.path(NAME), reason);
        let text = self.read_text(NAME)?;
        if text.len() > LONGEST {
            return Err(malformed(format!("it has {} bytes, and at most {LONGEST} are read", text.len())));
        }
        serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))
    }

    /// The bytes of an embedded file.
    pub(super) fn embedded(&self, name: &str) -> Option<&'static [u8]> {
        match self {
            Self::Folder(_) | Self::Single { .. } => None,
            Self::Replaced { weights, .. } if weights.name() == name => None,
            Self::Replaced { model, .. } => model.embedded(name),
            Self::Embedded { files, .. } => files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| *bytes),
        }
    }

    /// The SHA-256 of a file in hexadecimal, read in pieces.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn sha256(&self, name: &str) -> Result<String> {
        if let Some(bytes) = self.embedded(name) {
            return Ok(bytes_sha256(bytes));
        }
        file_sha256(&self.path(name))
    }
}

/// The SHA-256 of a safetensors file without its header, in hexadecimal, by which LoRAs are known whatever their metadata say
/// (`sshs_model_hash` of kohya's programs); of any other file that of the whole.
///
/// # Errors
/// If the file cannot be read.
pub fn tensors_sha256(path: &Path) -> Result<String> {
    if !path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) {
        return file_sha256(path);
    }
    let after_header = |mut file: std::fs::File| {
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        file.seek(SeekFrom::Start(u64::from_le_bytes(length).saturating_add(8)))?;
        sha256(file)
    };
    std::fs::File::open(path).and_then(after_header).map_err(Error::io("read", path))
}
