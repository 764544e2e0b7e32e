//! What a user puts on top of a model.

use crate::model::Model;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tweedie::Result;
use tweedie::adapters::{LoraTarget, Loras, TextualInversion};
use tweedie::checkpoints::file_sha256;

/// The adapters of a pipeline; none by default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adapters {
    /// LoRA files, added in this order.
    pub loras: Vec<LoraChoice>,
    /// Textual inversions.
    pub embeddings: Vec<EmbeddingChoice>,
    /// Control models, folders or files; each takes a picture of the request.
    pub controls: Vec<Model>,
}

/// A textual inversion as a user asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingChoice {
    /// The file: safetensors, or a pickle of PyTorch's.
    pub path: PathBuf,
    /// The word for it in prompts; by default what the file says.
    pub token: Option<String>,
}

/// A LoRA as a user asks for it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraChoice {
    /// The file: safetensors, or a pickle of PyTorch's.
    pub path: PathBuf,
    /// What its change is multiplied by; 1 is usual.
    pub weight: f64,
}

impl Adapters {
    /// The LoRAs, for a model.
    pub(crate) fn open_loras(&self, target: &LoraTarget) -> Result<Loras> {
        let files = self.loras.iter().map(|lora| (lora.path.as_path(), lora.weight));
        Loras::open(files, target)
    }

    pub(crate) fn read_embeddings(&self) -> Result<Vec<TextualInversion>> {
        self.embeddings.iter().map(|choice| TextualInversion::read(&choice.path, choice.token.as_deref())).collect()
    }

    /// What pictures say of them, without the hashes of their files. `embeddings` are those that were read.
    pub(crate) fn used(&self, embeddings: &[TextualInversion]) -> Vec<UsedAdapter> {
        let loras = self.loras.iter().map(|lora| UsedAdapter::new("loras", &lora.path, json!({"weight": lora.weight})));
        let embeddings = self.embeddings.iter().zip(embeddings);
        let embeddings = embeddings
            .map(|(choice, read)| UsedAdapter::new("embeddings", &choice.path, json!({"token": read.token()})));
        loras.chain(embeddings).collect()
    }
}

/// An adapter's file, and how it was used.
#[derive(Debug, Clone)]
pub(crate) struct UsedAdapter {
    /// The list of the picture's settings that it belongs to.
    pub list: &'static str,
    pub path: PathBuf,
    /// The settings, its name first.
    pub fields: Map<String, Value>,
}

impl UsedAdapter {
    /// A file with what pictures say of its use.
    pub fn new(list: &'static str, path: &Path, settings: Value) -> Self {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut adapter = Self::named(list, name, path.into());
        adapter.fields.extend(settings.as_object().cloned().unwrap_or_default());
        adapter
    }

    pub fn named(list: &'static str, name: String, path: PathBuf) -> Self {
        Self { list, path, fields: Map::from_iter([("name".to_owned(), Value::from(name))]) }
    }

    pub fn sha256(&self) -> Result<String> {
        file_sha256(&self.path)
    }
}
