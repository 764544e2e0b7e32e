//! Tensors in safetensors files.

use crate::checkpoints::safetensors_bytes;
use crate::files::write_synced;
use crate::{Error, ErrorKind, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes tensors into a safetensors file and waits until it is on the disk.
///
/// # Errors
/// If it cannot be written.
pub fn write_tensors(path: &Path, tensors: BTreeMap<String, Tensor>) -> Result<()> {
    write_synced(path, &encode(tensors, path)?)
}

/// The bytes of a safetensors file, as PyTorch's programs write it.
pub(super) fn encode(tensors: BTreeMap<String, Tensor>, path: &Path) -> Result<Vec<u8>> {
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors_bytes(tensors, &metadata).map_err(|e| Error::malformed(ErrorKind::Model, "safetensors file", path, e))
}
