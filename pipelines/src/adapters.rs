//! What a user puts on top of a model.

use crate::model::Model;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tweedie::Result;
use tweedie::adapters::{LoraTarget, Loras, TextualInversion};
use tweedie::checkpoints::tensors_sha256;
use tweedie::files::file_sha256;

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
        let loras = self.loras.iter().map(|lora| UsedAdapter::new(LORAS, &lora.path, json!({"weight": lora.weight})));
        let embeddings = self.embeddings.iter().zip(embeddings);
        let embeddings =
            embeddings.map(|(choice, read)| UsedAdapter::new(EMBEDDINGS, &choice.path, json!({"token": read.token()})));
        loras.chain(embeddings).collect()
    }
}

/// The lists of a picture's settings.
pub(crate) const LORAS: &str = "loras";
pub(crate) const EMBEDDINGS: &str = "embeddings";

/// Hexadecimal digits by which A1111's web UI and picture sites know a network.
const A1111_DIGITS: usize = 12;

/// The sums of an adapter's file, in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdapterSums {
    /// The SHA-256 of its bytes.
    pub sha256: String,
    /// By what others know it: the start of the SHA-256, for a LoRA of its tensors alone.
    pub short: String,
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

    /// What its file is known by.
    pub fn sums(&self) -> Result<AdapterSums> {
        let sha256 = file_sha256(&self.path)?;
        let known_by = if self.list == LORAS { tensors_sha256(&self.path)? } else { sha256.clone() };
        Ok(AdapterSums { short: known_by.chars().take(A1111_DIGITS).collect(), sha256 })
    }

    /// What A1111's web UI calls it, which has its networks by the names of their files, and embeddings by their words.
    pub fn name(&self) -> String {
        let text = |field: &str| self.fields.get(field).and_then(Value::as_str);
        let of_file = || self.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        text("token").map_or_else(of_file, str::to_owned)
    }
}

/// Whether a text has the word of an embedding, which is found in any letter case and within words too.
pub(crate) fn has_word(text: &str, word: &str) -> bool {
    text.to_lowercase().contains(&word.to_lowercase())
}
