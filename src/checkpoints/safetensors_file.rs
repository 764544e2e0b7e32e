//! One safetensors file.

use super::mapped::Bytes;
use super::{ElementType, ModelFiles, safetensors_header};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Metadata;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What the header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// The tensor's name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// How its values are stored.
    pub dtype: ElementType,
}

/// Bytes of the number that says how long the header is.
const LENGTH: usize = 8;

/// The format allows three times as much; some that list the captions that a LoRA was trained on have a few million.
pub(super) const LONGEST_HEADER: usize = 32 << 20;

/// The largest models have a few thousand.
const MOST_TENSORS: usize = 100_000;

/// That a file has no more tensors than any model.
pub(super) fn check_count(tensors: usize) -> Result<(), String> {
    if tensors <= MOST_TENSORS {
        return Ok(());
    }
    Err(format!("it has more than {MOST_TENSORS} tensors, and no model that is read has as many"))
}

/// That the places of a tensor's values can be numbered. Where one dimension is 0 there are no values and the others may say anything,
/// from which strides are computed nevertheless.
pub(super) fn check_shape(name: &str, shape: &[usize]) -> Result<(), String> {
    match shape.iter().try_fold(1usize, |product, &dimension| product.checked_mul(dimension.max(1))) {
        Some(_) => Ok(()),
        None => Err(format!("its tensor {name} has shape {shape:?}, which no tensor has; get the file again")),
    }
}

/// A safetensors file whose header has been checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    metadata: Metadata,
    /// Where the header ends and data starts.
    data: usize,
}

impl SafetensorsFile {
    /// Opens a file of a model.
    ///
    /// # Errors
    /// If it cannot be opened, or its header and length do not agree.
    pub fn open(files: &ModelFiles, name: &str) -> Result<Self> {
        let path = files.path(name);
        let bytes = Bytes::open(files, name)?;
        let damaged = |what: &str| {
            let reason = format!("{what}; the file is {} bytes long; it may be truncated, get it again", bytes.len());
            Error::malformed(ErrorKind::Model, "safetensors file", &path, reason)
        };
        if bytes.len() < LENGTH {
            return Err(damaged("it has no header"));
        }
        let length = u64::from_le_bytes(bytes.part(0..LENGTH)?.as_ref().try_into().unwrap_or_default());
        let data =
            usize::try_from(length).ok().filter(|&length| length <= LONGEST_HEADER).map(|length| length + LENGTH);
        let Some(data) = data.filter(|&data| data <= bytes.len()) else {
            return Err(damaged(&format!("its header cannot have {length} bytes")));
        };
        let metadata = safetensors_header::parse(&bytes.part(LENGTH..data)?)
            .map_err(|e| damaged(&format!("its header is damaged: {e}")))?;
        let end = metadata.tensors().values().map(|info| info.data_offsets.1).max().unwrap_or(0);
        match data.checked_add(end) {
            Some(end) if end == bytes.len() => {}
            Some(end) if end < bytes.len() => {
                let reason = format!(
                    "it ends at byte {end} by its header, and {} bytes follow, which no program that saves weights writes; get it \
                     again",
                    bytes.len() - end
                );
                return Err(Error::malformed(ErrorKind::Model, "safetensors file", &path, reason));
            }
            _ => return Err(damaged(&format!("its header describes {end} bytes after byte {data}"))),
        }
        Ok(Self { path, bytes, metadata, data })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors of the header.
    pub fn tensors(&self) -> Vec<StoredTensor> {
        let stored = |(name, info): (String, &safetensors::tensor::TensorInfo)| StoredTensor {
            name,
            shape: info.shape.clone(),
            dtype: info.dtype.into(),
        };
        self.metadata.tensors().into_iter().map(stored).collect()
    }

    /// What the header says beside the tensors under a name.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(name).map(String::as_str)
    }

    /// Reads a tensor in an element type, onto a device. `None` if it holds values that are not finite.
    ///
    /// # Errors
    /// If there is no such tensor, or it is not of floats.
    pub fn read(&self, name: &str, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let info = self.metadata.info(name).ok_or_else(|| {
            Error::malformed(ErrorKind::Model, "safetensors file", &self.path, format!("it has no tensor {name}"))
        })?;
        let range = self.data + info.data_offsets.0..self.data + info.data_offsets.1;
        self.bytes.tensor(&range, info.dtype, &info.shape, dtype, device)
    }

    /// Where the values of a tensor are.
    pub(super) fn range(&self, name: &str) -> Option<Range<usize>> {
        let (start, end) = self.metadata.info(name)?.data_offsets;
        Some(self.data + start..self.data + end)
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
