//! GGUF files (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>): tensors in GGML's formats, as stable-diffusion.cpp and
//! ComfyUI-GGUF write them.

mod block_format;
mod header;
mod narrow;
mod writer;

pub use block_format::BlockFormat;
pub(crate) use writer::{stored_as, write_gguf};

use super::mapped::Bytes;
use super::{ElementType, ModelFiles, StoredTensor};
use crate::{Error, ErrorKind, Result};
use header::{Header, Tensors, Value};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A GGUF file whose header has been checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: Bytes,
    metadata: BTreeMap<String, Value>,
    tensors: Tensors,
}

impl GgufFile {
    /// Opens a file of a model.
    ///
    /// # Errors
    /// If it cannot be opened, its header and length do not agree, or it has tensors of a format that is not read.
    pub fn open(files: &ModelFiles, name: &str) -> Result<Self> {
        let path = files.path(name);
        let bytes = Bytes::open(files, name)?;
        let malformed = |reason: String| Error::malformed(ErrorKind::Model, "GGUF file", &path, reason);
        let Header { metadata, tensors } = header::read(&bytes)?.map_err(malformed)?;
        Ok(Self { path, bytes, metadata, tensors })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors.
    pub fn tensors(&self) -> Vec<StoredTensor> {
        self.tensors.values().map(|(stored, _)| stored.clone()).collect()
    }

    /// What the header says under a name, if that is a text.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        match self.metadata.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn range(&self, name: &str) -> Option<Range<usize>> {
        self.tensors.get(name).map(|(_, range)| range.clone())
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
