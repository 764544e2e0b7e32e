//! A file of weights in any of the forms that are read.

use super::mapped::{Bytes, float_type};
use super::torch_file::Place;
use super::torch_stream::MAGIC;
use super::{BlockFormat, ElementType, GgufFile, ModelFiles, SafetensorsFile, StoredTensor, TorchFile};
use crate::images::PictureFormat;
use crate::kernels::{EightBits, is_dry_run};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// A file of named tensors, known by its first bytes and not by its name.
#[derive(Debug)]
pub enum TensorFile {
    /// safetensors.
    Safetensors(SafetensorsFile),
    /// What `torch.save` writes: a zip file with a pickle, or before PyTorch 1.6 pickles and values.
    Torch(TorchFile),
    /// GGUF.
    Gguf(GgufFile),
}

impl TensorFile {
    /// Opens a file of a model.
    ///
    /// # Errors
    /// If it cannot be opened, is damaged, or has another form; the message names the form where it is known.
    pub fn open(files: &ModelFiles, name: &str) -> Result<Self> {
        let start = first_bytes(files, name)?;
        // The length that stands before a safetensors file's header can look like the beginning of anything, but it is short.
        if start.get(4..9) == Some(b"\0\0\0\0{") {
            return Ok(Self::Safetensors(SafetensorsFile::open(files, name)?));
        }
        if start.starts_with(b"PK") || start.starts_with(MAGIC) {
            return Ok(Self::Torch(TorchFile::open(files, name)?));
        }
        if start.starts_with(b"GGUF") {
            return Ok(Self::Gguf(GgufFile::open(files, name)?));
        }
        match foreign_form(&start) {
            Some(reason) => Err(Error::malformed(ErrorKind::Model, "file of weights", &files.path(name), reason)),
            None => Ok(Self::Safetensors(SafetensorsFile::open(files, name)?)),
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        match self {
            Self::Safetensors(file) => file.path(),
            Self::Torch(file) => file.path(),
            Self::Gguf(file) => file.path(),
        }
    }

    /// All tensors.
    pub fn tensors(&self) -> Vec<StoredTensor> {
        match self {
            Self::Safetensors(file) => file.tensors(),
            Self::Torch(file) => file.tensors(),
            Self::Gguf(file) => file.tensors(),
        }
    }

    /// What the file says beside the tensors under a name; PyTorch's say nothing.
    pub fn metadata(&self, name: &str) -> Option<&str> {
        match self {
            Self::Safetensors(file) => file.metadata(name),
            Self::Torch(_) => None,
            Self::Gguf(file) => file.metadata(name),
        }
    }

    /// A tensor of one number, a float or a whole one, or of a truth, which is 0 or 1.
    ///
    /// # Errors
    /// If there is no such tensor, it holds more than one number, or one that is not finite.
    pub fn scalar(&self, stored: &StoredTensor) -> Result<f64> {
        let wrong = |what: String| {
            Error::malformed(ErrorKind::Model, "file of weights", self.path(), format!("{} {what}", stored.name))
        };
        if stored.shape.iter().product::<usize>() != 1 {
            return Err(wrong(format!("has shape {:?}, and should be one number", stored.shape)));
        }
        let value = match stored.dtype {
            ElementType::Plain(dtype @ (Dtype::I64 | Dtype::I32 | Dtype::U8 | Dtype::BOOL)) => {
                let (Place { range, .. }, bytes) = self.place(stored)?;
                let whole = match dtype {
                    Dtype::I64 => DType::I64,
                    Dtype::I32 => DType::I32,
                    _ => DType::U8,
                };
                Some(Tensor::from_raw_buffer(&bytes.part(range)?, whole, &[1], &Device::Cpu)?.to_dtype(DType::F64)?)
            }
            _ => self.read(stored, DType::F64, &Device::Cpu)?,
        };
        let value =
            value.map(|value| value.flatten_all()?.to_vec1::<f64>()).transpose()?.map_or(f64::NAN, |value| value[0]);
        if value.is_finite() { Ok(value) } else { Err(wrong(format!("is {value}, which is not finite"))) }
    }

    /// Where the values of a tensor are.
    fn place(&self, stored: &StoredTensor) -> Result<(Place, &Bytes)> {
        let (place, bytes) = match self {
            Self::Safetensors(file) => {
                (file.range(&stored.name).map(|range| Place { range, strides: None }), file.bytes())
            }
            Self::Torch(file) => (file.place(&stored.name), file.bytes()),
            Self::Gguf(file) => (file.range(&stored.name).map(|range| Place { range, strides: None }), file.bytes()),
        };
        let missing = || {
            Error::malformed(
                ErrorKind::Model,
                "file of weights",
                self.path(),
                format!("it has no tensor {}", stored.name),
            )
        };
        Ok((place.ok_or_else(missing)?, bytes))
    }

    /// Reads a tensor in an element type, onto a device. `None` if it holds values that are not finite.
    ///
    /// # Errors
    /// If it is not of floats.
    pub fn read(&self, stored: &StoredTensor, dtype: DType, device: &Device) -> Result<Option<Tensor>> {
        let rows = stored.shape.first().copied().unwrap_or(1);
        self.read_rows(stored, 0..rows, dtype, device)
    }

    /// Some rows of a tensor that is stored in blocks, in eight bits; a row is whole blocks. `None` if it holds values that are not
    /// finite.
    ///
    /// # Errors
    /// If it is not in the file.
    pub(super) fn eight_bits(&self, stored: &StoredTensor, rows: Range<usize>) -> Result<Option<EightBits>> {
        let (Place { range, .. }, bytes) = self.place(stored)?;
        let ElementType::Blocks(format) = stored.dtype else { return Ok(None) };
        let row = stored.shape.iter().skip(1).product::<usize>() / format.values() * format.bytes();
        let range = range.start + rows.start * row..range.start + rows.end * row;
        let blocks = if is_dry_run() { vec![0; range.len()].into() } else { bytes.part(range)? };
        let found = format.eight_bits(&blocks);
        let scales = found.scales.iter().chain(found.leasts.iter().flatten());
        // The farthest number from 0 times the scale, and the least value beside it.
        let is_finite = |scale: &f32| (scale * 128.0).is_finite();
        Ok(scales.into_iter().all(is_finite).then_some(found))
    }

    /// The same as [`Self::read`] for some of the places along the first dimension; a tensor without dimensions has one.
    pub(super) fn read_rows(
        &self,
        stored: &StoredTensor,
        rows: Range<usize>,
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let unread = || {
            let reason = format!("{} has type {}, not a float that is read", stored.name, stored.dtype);
            Error::malformed(ErrorKind::Model, "file of weights", self.path(), reason)
        };
        let (Place { range, strides }, bytes) = self.place(stored)?;
        let plain = match stored.dtype {
            ElementType::Plain(plain) => float_type(plain).map(|_| plain).ok_or_else(unread)?,
            ElementType::Blocks(_) if is_unread(stored) => return unread_rows(stored, rows, dtype).map(Some),
            ElementType::Blocks(format) => {
                return widened(bytes, &range, (format, &stored.shape), rows, dtype, device);
            }
        };
        if is_unread(stored) {
            return unread_rows(stored, rows, dtype).map(Some);
        }
        let (mut shape, all) = (stored.shape.clone(), stored.shape.first().copied().unwrap_or(1));
        if let Some(first) = shape.first_mut() {
            *first = rows.len();
        }
        if let Some(strides) = strides {
            let size = plain.bitsize() / 8;
            let start = range.start + rows.start * strides[0] * size;
            let gathered = bytes.gathered(start..range.end, size, &shape, &strides)?;
            return gathered.tensor(&(0..gathered.len()), plain, &shape, dtype, device);
        }
        let row = range.len() / all.max(1);
        let part = range.start + rows.start * row..range.start + rows.end * row;
        bytes.tensor(&part, plain, &shape, dtype, device)
    }
}

/// Whether a dry run leaves a tensor unread: a matrix. What is smaller may say something of the model.
fn is_unread(stored: &StoredTensor) -> bool {
    is_dry_run() && stored.shape.len() > 1
}

/// Zeros in the place of rows that a dry run does not read: of their size, and no memory is written.
fn unread_rows(stored: &StoredTensor, rows: Range<usize>, dtype: DType) -> Result<Tensor> {
    let mut shape = stored.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first = rows.len();
    }
    let count: usize = shape.iter().product();
    let halves = || vec![0u16; count];
    Ok(match dtype {
        DType::F16 => Tensor::from_vec(halves().reinterpret_into::<f16>(), shape, &Device::Cpu)?,
        DType::BF16 => Tensor::from_vec(halves().reinterpret_into::<bf16>(), shape, &Device::Cpu)?,
        dtype => Tensor::zeros(shape, dtype, &Device::Cpu)?,
    })
}

/// Some of the rows of a tensor in blocks, in an element type, onto a device; `None` if any value is not finite. The range holds
/// the blocks of all of them.
fn widened(
    bytes: &Bytes,
    range: &Range<usize>,
    (format, shape): (BlockFormat, &[usize]),
    rows: Range<usize>,
    dtype: DType,
    device: &Device,
) -> Result<Option<Tensor>> {
    let all: usize = shape.iter().product();
    let row = shape.iter().skip(1).product::<usize>();
    let wanted = rows.start * row..rows.end * row;
    // Where blocks go on over the ends of the rows, as in a tensor that was laid out otherwise, all are read.
    let whole = wanted.start.is_multiple_of(format.values()) && wanted.end.is_multiple_of(format.values());
    let read = if whole { wanted.clone() } else { 0..all };
    let place = |value: usize| range.start + value / format.values() * format.bytes();
    let mut values = vec![0.0f32; read.len()];
    format.widen(&bytes.part(place(read.start)..place(read.end))?, &mut values);
    if !whole {
        values.truncate(wanted.end);
        values.drain(..wanted.start);
    }
    let mut shape = shape.to_vec();
    if let Some(first) = shape.first_mut() {
        *first = rows.len();
    }
    bytes.float_values(values, &shape, dtype, device)
}

/// Enough to tell the forms apart.
fn first_bytes(files: &ModelFiles, name: &str) -> Result<Vec<u8>> {
    const ENOUGH: usize = 512;
    if let Some(bytes) = files.embedded(name) {
        return Ok(bytes[..bytes.len().min(ENOUGH)].to_vec());
    }
    let path = files.path(name);
    let mut start = Vec::with_capacity(ENOUGH);
    let file = std::fs::File::open(&path).map_err(Error::io("read", &path))?;
    file.take(ENOUGH as u64).read_to_end(&mut start).map_err(Error::io("read", &path))?;
    Ok(start)
}

/// Why a file that is neither a zip file nor safetensors cannot be read, where its first bytes tell.
fn foreign_form(start: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(start);
    let text = text.trim_start();
    if start.is_empty() {
        return Some("it is empty; get it again");
    }
    if start.starts_with(b"\x89HDF") {
        return Some("it is an HDF5 file of Keras; get the model for PyTorch as safetensors");
    }
    if text.starts_with("version https://git-lfs") {
        return Some("it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`");
    }
    if text.starts_with('<') {
        return Some("it is a web page, not a model; the download went wrong, get it again");
    }
    if PictureFormat::of_bytes(start).is_some() {
        return Some("it is a picture, not weights; give a file that ends in .safetensors");
    }
    if start.len() >= 8 && start[..8].iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\n' | b'\r')) {
        return Some(match text.starts_with(['{', '[']) {
            true => "it is a JSON file, not weights; give a file that ends in .safetensors",
            false => "it is a text, not weights; give a file that ends in .safetensors",
        });
    }
    // A pickle's first instruction.
    if start.first() == Some(&0x80) && start.get(1).is_some_and(|version| *version <= 5) {
        return Some(
            "it is a pickle that PyTorch did not write; load it where it was made and save it again as safetensors",
        );
    }
    if start.get(257..262) == Some(b"ustar") {
        return Some("it is a tar archive, PyTorch's oldest form; load it there and save it again as safetensors");
    }
    None
}
