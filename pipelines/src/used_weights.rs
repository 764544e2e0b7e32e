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
    files: ModelFiles,
    names: Vec<String>,
    hashes: OnceLock<Result<Map<String, Value>, String>>,
}

impl UsedWeights {
    pub fn new(model_name: &str, files: &ModelFiles, names: &[String], format: NumberFormat) -> Self {
        Self {
            model_name: model_name.into(),
            dtype: match format.weights {
                DType::F16 => "f16",
                DType::BF16 => "bf16",
                _ => "f32",
            },
            files: files.clone(),
            names: names.to_vec(),
            hashes: OnceLock::new(),
        }
    }

    /// The SHA-256 of each weight file, by its name in the model's folder.
    pub fn hashes(&self) -> Result<&Map<String, Value>, &str> {
        let hash = || {
            let each = self.names.iter().map(|name| Ok((name.clone(), self.files.sha256(name)?.into())));
            each.collect::<Result<Map<_, _>>>().map_err(|e| e.to_string())
        };
        self.hashes.get_or_init(hash).as_ref().map_err(String::as_str)
    }
}
