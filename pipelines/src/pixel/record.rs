//! What a picture carries of how it was made.

use super::{PixelRequest, PixelSettings};
use crate::device::NumberFormat;
use crate::records::provenance::Provenance;
use crate::requests::options::Options;
use crate::used_weights::{UsedWeights, WeightFile, WeightSums};
use serde_json::{Map, Value};
use tweedie::Result;
use tweedie::checkpoints::ModelFiles;
use tweedie::images::TextChunk;

/// The settings of a run in pixel space, for its pictures and for what is printed as JSON.
///
/// The SHA-256 of the weights is computed when it is first needed: see [`PixelRecord::hash_weights`].
#[derive(Debug)]
pub struct PixelRecord {
    settings: PixelSettings,
    weights: UsedWeights,
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
            weights: UsedWeights::new(model_name, WeightSums::new(WeightFile::all(files, weight_files)), format),
        }
    }

    /// The SHA-256 of each weight file, by its name in the model's folder.
    ///
    /// # Errors
    /// If a file can no longer be read.
    pub fn hash_weights(&self) -> Result<&Map<String, Value>, &str> {
        self.weights.hashes()
    }

    /// Everything as JSON, of the image at `index`; of all images without one.
    pub fn json(&self, index: Option<usize>) -> Value {
        let s = &self.settings;
        let provenance = Provenance {
            program: concat!("tweedie ", env!("CARGO_PKG_VERSION")).into(),
            kind: "sample".into(),
            dtype: self.weights.dtype.into(),
            model: self.weights.model_name.clone(),
            weights_sha256: self.hash_weights().cloned().unwrap_or_default(),
            ..Provenance::default()
        };
        let mut fields = provenance.write();
        PixelRequest { seed: s.seed_of(index.unwrap_or(0)), ..s.request() }.put(&mut fields);
        let mut json = Value::from(fields);
        json["width"] = s.width.into();
        json["height"] = s.height.into();
        match index {
            Some(index) => json["class"] = s.class_of(index).into(),
            None => {
                json["classes"] = (0..s.num_images).filter_map(|i| s.class_of(i)).collect::<Vec<_>>().into();
                json["num_images"] = s.num_images.into();
            }
        }
        json
    }

    /// The text of a picture: `tweedie`, which is [`Self::json`].
    pub fn chunks(&self, index: Option<usize>) -> Vec<TextChunk> {
        vec![TextChunk::new(TextChunk::SETTINGS, self.json(index).to_string())]
    }
}
