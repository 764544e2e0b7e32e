//! Which weights made a picture.

use crate::device::NumberFormat;
use serde_json::{Map, Value};
use std::sync::OnceLock;
use tweedie::checkpoints::ModelFiles;
use tweedie::{DType, Result};

/// The weights of a run, with their hashes once somebody has asked for them.
#[derive(Debug)]
pub(crate) struct UsedWeights {
    /// What pictures' settings call the model.
    pub model_name: String,
    /// The number format that the weights are held in.
    pub dtype: &'static str,
    files: Vec<WeightFile>,
    hashes: OnceLock<Result<Map<String, Value>, String>>,
}

/// One file of weights.
#[derive(Debug, Clone)]
pub(crate) struct WeightFile {
    /// The model that it belongs to.
    pub files: ModelFiles,
    /// Its name there.
    pub name: String,
}

impl WeightFile {
    /// Several files of one model.
    pub fn all(files: &ModelFiles, names: &[String]) -> Vec<Self> {
        names.iter().map(|name| Self { files: files.clone(), name: name.clone() }).collect()
    }
}

impl UsedWeights {
    /// A file that is named more than once counts once.
    pub fn new(model_name: &str, mut files: Vec<WeightFile>, format: NumberFormat) -> Self {
        let mut seen = Vec::new();
        files.retain(|file| {
            let path = file.files.path(&file.name);
            let new = !seen.contains(&path);
            seen.push(path);
            new
        });
        Self {
            model_name: model_name.into(),
            dtype: match format.weights {
                DType::F16 => "f16",
                DType::BF16 => "bf16",
                _ => "f32",
            },
            files,
            hashes: OnceLock::new(),
        }
    }

    /// The SHA-256 of each weight file, by its name in the model's folder.
    pub fn hashes(&self) -> Result<&Map<String, Value>, &str> {
        let hash = || {
            let each =
                self.files.iter().map(|WeightFile { files, name }| Ok((name.clone(), files.sha256(name)?.into())));
            each.collect::<Result<Map<_, _>>>().map_err(|e| e.to_string())
        };
        self.hashes.get_or_init(hash).as_ref().map_err(String::as_str)
    }
}
