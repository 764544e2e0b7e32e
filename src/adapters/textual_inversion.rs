//! Textual inversion (Gal et al. 2023): embeddings that were trained from pictures, under a token of their own.

use super::adapter_file;
use crate::checkpoints::{StoredTensor, TensorFile, safetensors_bytes};
use crate::files::write_synced;
use crate::text::TextEncoder;
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The tensors of the two encoders of SDXL.
const OF_TWO: [&str; 2] = ["clip_l", "clip_g"];
/// What a file's metadata call the token.
const TOKEN: &str = "token";

/// A textual inversion: a token, and for each text encoder the embeddings that take its place.
#[derive(Debug, Clone)]
pub struct TextualInversion {
    path: PathBuf,
    token: String,
    /// For each text encoder `[vectors, width]` of f32.
    vectors: Vec<Tensor>,
    bundled: bool,
}

impl TextualInversion {
    /// Reads a file, safetensors or a pickle of PyTorch's, of which nothing is run: one tensor under the token's name, as
    /// diffusers writes it; one called `emb_params`, or `*` in a dictionary called `string_to_param`, as the original
    /// code and A1111's web UI do, also flattened to `string_to_param.*`; or `clip_l` and `clip_g` for the two encoders of SDXL. Without a `token` it is the one that
    /// the file's metadata name, the tensor's name if that is one, or else the file's, as that program has it.
    ///
    /// # Errors
    /// If the file is none of these.
    pub fn read(path: &Path, token: Option<&str>) -> Result<Self> {
        let file = adapter_file::open("embedding", path)?;
        let stored = file.tensors();
        let mut names: Vec<&str> = stored.iter().map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        let wrong = |reason: String| malformed(path, reason);
        let of_file = || path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let (own_name, parts) = match names[..] {
            ["clip_g", "clip_l"] => (of_file(), OF_TWO.to_vec()),
            // diffusers' training script called them so at first.
            ["text_encoders_0", "text_encoders_1"] => (of_file(), names.clone()),
            [name @ ("emb_params" | "*" | "string_to_param" | "string_to_param.*")] => (of_file(), vec![name]),
            [name] => (name.into(), vec![name]),
            _ => {
                let shown = names.iter().take(3).copied().collect::<Vec<_>>().join(", ");
                return Err(wrong(format!(
                    "it holds {} tensors ({shown}); an embedding has one, or clip_l and clip_g; a LoRA belongs to `lora`",
                    names.len()
                )));
            }
        };
        let token = token.or(file.metadata(TOKEN)).map_or(own_name, str::to_owned);
        if token.trim().is_empty() {
            return Err(wrong(format!("its token is {token:?}; give one after the file, as in FILE:<token>")));
        }
        let parts: Vec<&StoredTensor> =
            parts.iter().filter_map(|name| stored.iter().find(|tensor| tensor.name == *name)).collect();
        Ok(Self { path: path.into(), token, vectors: vectors(&file, &parts)?, bundled: false })
    }

    /// One that comes in the file of a LoRA, for the token `word`: its tensors by what a file of its own would call them.
    pub(super) fn bundled(file: &TensorFile, word: &str, parts: &BTreeMap<String, StoredTensor>) -> Result<Self> {
        let of_two = OF_TWO.map(|name| parts.get(name));
        let parts: Vec<&StoredTensor> = match (of_two, parts.len()) {
            ([Some(l), Some(g)], 2) => vec![l, g],
            (_, 1) => parts.values().collect(),
            _ => {
                let names: Vec<&str> = parts.keys().map(String::as_str).collect();
                let reason = format!(
                    "its embedding of {word:?} has {}; it has one tensor, or clip_l and clip_g",
                    names.join(", ")
                );
                return Err(malformed(file.path(), reason));
            }
        };
        Ok(Self { path: file.path().into(), token: word.into(), vectors: vectors(file, &parts)?, bundled: true })
    }

    /// Writes a file as diffusers does, and reads: one tensor under the token's name, or `clip_l` and `clip_g` for two text
    /// encoders, in their order; the metadata name the token too. It waits until the file is on the disk.
    ///
    /// # Shapes
    /// `vectors`: `[count, width]` for each text encoder.
    ///
    /// # Errors
    /// If there is no form for so many encoders, or the file cannot be written.
    pub fn write(token: &str, vectors: &[Tensor], path: &Path) -> Result<()> {
        let names = match vectors.len() {
            1 => vec![token],
            2 => OF_TWO.to_vec(),
            count => return Err(Error::invalid("the number of text encoders of an embedding", count, "it is 1 or 2")),
        };
        let tensors: BTreeMap<String, Tensor> =
            names.into_iter().map(str::to_owned).zip(vectors.iter().cloned()).collect();
        let metadata = [("format", "pt"), (TOKEN, token)].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let bytes = safetensors_bytes(tensors, &metadata.into())
            .map_err(|e| Error::malformed(ErrorKind::Model, "embedding", path, e))?;
        write_synced(path, &bytes)
    }

    /// What stands for it in prompts.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whether it came in the file of a LoRA, so that nobody need have asked for its word.
    pub fn is_bundled(&self) -> bool {
        self.bundled
    }

    /// How many text encoders it was made for.
    pub fn encoders(&self) -> usize {
        self.vectors.len()
    }

    /// Adds the token to a model's text encoder, to each of its networks if it has several. Several vectors take the token and
    /// `TOKEN_1`, `TOKEN_2`, ...; the token in a prompt stands for all of them.
    ///
    /// # Errors
    /// If it was made for other encoders, or a tokenizer knows the token already.
    pub fn add_to(&self, encoder: &mut dyn TextEncoder) -> Result<()> {
        let widths = encoder.embedding_widths();
        let own: Vec<usize> = self.vectors.iter().map(|vectors| vectors.dims()[1]).collect();
        if own != widths {
            let reason = format!(
                "its vectors are {own:?} wide, those of this model's text encoders {widths:?}; take one that was made for \
                 this model's family"
            );
            return Err(Error::malformed(ErrorKind::Model, "embedding", &self.path, reason));
        }
        encoder.add_token(&self.token, &self.vectors)
    }
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::malformed(ErrorKind::Model, "embedding", path, reason)
}

/// The vectors for each text encoder, as many for each.
fn vectors(file: &TensorFile, parts: &[&StoredTensor]) -> Result<Vec<Tensor>> {
    let vectors = parts.iter().map(|stored| {
        let wrong = |reason: String| malformed(file.path(), format!("{} {reason}", stored.name));
        let tensor = file.read(stored, DType::F32, &Device::Cpu)?;
        let tensor = tensor.ok_or_else(|| wrong("has values that are not finite".into()))?;
        match *tensor.dims() {
            [width] => Ok(tensor.reshape((1, width))?),
            [count, _] if count > 0 => Ok(tensor),
            ref dims => Err(wrong(format!("has shape {dims:?}; a list of vectors is needed"))),
        }
    });
    let vectors: Vec<Tensor> = vectors.collect::<Result<_>>()?;
    if vectors.iter().any(|each| each.dims()[0] != vectors[0].dims()[0]) {
        return Err(malformed(file.path(), "clip_l and clip_g have different numbers of vectors".into()));
    }
    Ok(vectors)
}
