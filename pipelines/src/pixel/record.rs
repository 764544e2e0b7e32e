//! What a picture carries of how it was made.

use super::PixelSettings;
use crate::device::NumberFormat;
use serde_json::{Map, Value, json};
use std::sync::OnceLock;
use tweedie::checkpoints::ModelFiles;
use tweedie::images::TextChunk;
use tweedie::{DType, Result};

/// The settings of a run in pixel space, for its pictures and for `--json`.
///
/// The SHA-256 of the weights is computed when it is first needed: see [`PixelRecord::hash_weights`].
#[derive(Debug)]
pub struct PixelRecord {
    settings: PixelSettings,
    model_name: String,
    files: ModelFiles,
    weight_files: Vec<String>,
    dtype: &'static str,
    hashes: OnceLock<Result<Map<String, Value>, String>>,
}

impl PixelRecord {
    pub(super) fn new(
        settings: &PixelSettings,
        model_name: &str,
        files: &ModelFiles,
        weight_files: &[String],
        format: NumberFormat,
    ) -> Self {
        Self {
            settings: settings.clone(),
            model_name: model_name.into(),
            files: files.clone(),
            weight_files: weight_files.to_vec(),
            dtype: match format.weights {
                DType::F16 => "f16",
                DType::BF16 => "bf16",
                _ => "f32",
            },
            hashes: OnceLock::new(),
        }
    }

    /// The SHA-256 of each weight file, by its name in the model's folder.
    ///
    /// # Errors
    /// If a file can no longer be read.
    pub fn hash_weights(&self) -> Result<&Map<String, Value>, &str> {
        let hash = || {
            let each = self.weight_files.iter().map(|name| Ok((name.clone(), self.files.sha256(name)?.into())));
            each.collect::<Result<Map<_, _>>>().map_err(|e| e.to_string())
        };
        self.hashes.get_or_init(hash).as_ref().map_err(String::as_str)
    }

    /// Everything as JSON, of the image at `index`; of all images without one.
    pub fn json(&self, index: Option<usize>) -> Value {
        let s = &self.settings;
        let fields = s.scheduler_config.fields().iter().filter(|(name, _)| !name.starts_with('_'));
        let scheduler: Map<String, Value> = fields.map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut json = json!({
            "program": concat!("tweedie ", env!("CARGO_PKG_VERSION")),
            "kind": "sample",
            "seed": s.seed_of(index.unwrap_or(0)),
            "steps": s.steps,
            "guidance_scale": s.guidance_scale,
            "scheduler": s.scheduler.name(),
            "scheduler_config": scheduler,
            "width": s.width,
            "height": s.height,
            "dtype": self.dtype,
            "model": self.model_name,
            "weights_sha256": self.hash_weights().cloned().unwrap_or_default(),
        });
        match index {
            Some(index) => json["class"] = s.class_of(index).into(),
            None => {
                json["classes"] = (0..s.num_images).filter_map(|i| s.class_of(i)).collect::<Vec<_>>().into();
                json["num_images"] = s.num_images.into();
            }
        }
        if s.classifier_scale != 0.0 {
            json["classifier_scale"] = s.classifier_scale.into();
        }
        json
    }

    /// The text of a picture: `tweedie`, which is [`Self::json`].
    pub fn chunks(&self, index: Option<usize>) -> Vec<TextChunk> {
        vec![TextChunk::new("tweedie", self.json(index).to_string())]
    }
}
