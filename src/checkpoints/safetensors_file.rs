//! One safetensors file, mapped into memory or compiled in.
#![allow(unsafe_code)]

use super::ModelFiles;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a file's bytes are.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }

    /// Gives the pages of a part back to the system; they are read again if they are needed again.
    fn release(&self, range: &Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            // SAFETY: the map is a read-only, private view of a file, so dropped pages come back with the same
            // contents. Advice that is not taken costs memory and nothing else.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }
}

/// What the header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// The tensor's name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its element type, as safetensors names it: "F16", "F32", ...
    pub dtype: Dtype,
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
        let bytes = match files.embedded(name) {
            Some(bytes) => Bytes::Embedded(bytes),
            None => Bytes::Mapped(map(&path)?),
        };
        let all = bytes.as_slice();
        let damaged = |e: safetensors::SafeTensorError| {
            let reason = format!("{e}; the file is {} bytes long; it may be truncated, get it again", all.len());
            Error::malformed("safetensors file", &path, reason)
        };
        let (header, metadata) = SafeTensors::read_metadata(all).map_err(damaged)?;
        let data = header + 8;
        let end = metadata.tensors().values().map(|info| info.data_offsets.1).max().unwrap_or(0);
        if data + end != all.len() {
            let reason = format!(
                "its header describes {} bytes and it has {}; it is truncated or not whole, get it again",
                data + end,
                all.len()
            );
            return Err(Error::malformed("safetensors file", &path, reason));
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
            dtype: info.dtype,
        };
        self.metadata.tensors().into_iter().map(stored).collect()
    }

    /// What the header says beside the tensors under a name.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(name).map(String::as_str)
    }

    /// A tensor of one number, a float or a whole one.
    ///
    /// # Errors
    /// If there is no such tensor, it holds more than one number, or one that is not finite.
    pub fn scalar(&self, name: &str) -> Result<f64> {
        let wrong = |what: String| Error::malformed("safetensors file", &self.path, format!("{name} {what}"));
        let info = self.metadata.info(name).ok_or_else(|| wrong("is missing".into()))?;
        if info.shape.iter().product::<usize>() != 1 {
            return Err(wrong(format!("has shape {:?}, and should be one number", info.shape)));
        }
        let stored = match info.dtype {
            Dtype::I64 => DType::I64,
            Dtype::I32 => DType::I32,
            other => float_type(other).ok_or_else(|| wrong(format!("has type {other:?}, which is no number")))?,
        };
        let bytes = &self.bytes.as_slice()[self.data + info.data_offsets.0..self.data + info.data_offsets.1];
        let value = Tensor::from_raw_buffer(bytes, stored, &[1], &Device::Cpu)?.to_dtype(DType::F64)?;
        let value = value.to_vec1::<f64>()?[0];
        if value.is_finite() { Ok(value) } else { Err(wrong(format!("is {value}, which is not finite"))) }
    }

    /// Reads a tensor in an element type, onto a device, and lets go of the file's pages. `None` if it holds
    /// values that are not finite.
    ///
    /// # Errors
    /// If there is no such tensor, or it is not of floats.
    pub fn read(&self, name: &str, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let info = self
            .metadata
            .info(name)
            .ok_or_else(|| Error::malformed("safetensors file", &self.path, format!("it has no tensor {name}")))?;
        let stored = float_type(info.dtype).ok_or_else(|| {
            Error::malformed("safetensors file", &self.path, format!("{name} has type {:?}, not a float", info.dtype))
        })?;
        let range = self.data + info.data_offsets.0..self.data + info.data_offsets.1;
        let bytes = &self.bytes.as_slice()[range.clone()];
        let finite = all_finite(bytes, stored);
        let tensor = Tensor::from_raw_buffer(bytes, stored, &info.shape, &Device::Cpu)?;
        self.bytes.release(&range);
        Ok(if finite { Some(tensor.to_dtype(dtype)?.to_device(device)?) } else { None })
    }
}

fn map(path: &Path) -> Result<Mmap> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    // SAFETY: the map is only read. As with every map of a file, another process that shortens the file while
    // it is mapped ends this one; the map lives only while weights are being loaded.
    unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))
}

/// candle's element type for a stored one, if it is a float that weights come in.
pub(super) fn float_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Whether no value has all bits of its exponent set, which is what infinities and NaN have.
fn all_finite(bytes: &[u8], dtype: DType) -> bool {
    const PIECE: usize = 1 << 20;
    let pieces = bytes.par_chunks(PIECE);
    match dtype {
        DType::F16 | DType::BF16 => {
            let mask: u16 = if dtype == DType::F16 { 0x7c00 } else { 0x7f80 };
            pieces.all(|piece| piece.as_chunks::<2>().0.iter().all(|value| u16::from_le_bytes(*value) & mask != mask))
        }
        DType::F32 => pieces.all(|piece| {
            const MASK: u32 = 0x7f80_0000;
            piece.as_chunks::<4>().0.iter().all(|value| u32::from_le_bytes(*value) & MASK != MASK)
        }),
        _ => pieces.all(|piece| piece.as_chunks::<8>().0.iter().all(|value| f64::from_le_bytes(*value).is_finite())),
    }
}
