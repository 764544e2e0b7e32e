//! The bytes of a weight file on disk, or in memory.
#![allow(unsafe_code)]

use super::ModelFiles;
use super::eight_bit::EightBit;
use crate::{Error, ErrorKind, Result, kernels};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::PathBuf;

/// Where a file's bytes are.
///
/// A file on disk is read at positions, and never mapped: a map of a file that another process makes shorter ends this one at the
/// next look at it, where a read is an error. It is open as long as this value lives, so that all that is read is of one file.
#[derive(Debug)]
pub(super) enum Bytes {
    /// A file and how long it was when it was opened.
    File { file: File, len: usize, path: PathBuf },
    /// Compiled in.
    Embedded(&'static [u8]),
    /// Put together from others.
    Gathered(Vec<u8>),
}

impl Bytes {
    /// Those of a file of a model.
    pub fn open(files: &ModelFiles, name: &str) -> Result<Self> {
        if let Some(bytes) = files.embedded(name) {
            return Ok(Self::Embedded(bytes));
        }
        let path = files.path(name);
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        let len = file.metadata().map_err(Error::io("read", &path))?.len();
        let len = usize::try_from(len)
            .map_err(|_| Error::malformed(ErrorKind::Model, "file of weights", &path, "it is too large"))?;
        Ok(Self::File { file, len, path })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::File { len, .. } => *len,
            Self::Embedded(bytes) => bytes.len(),
            Self::Gathered(bytes) => bytes.len(),
        }
    }

    /// A part of the bytes, which lies within them.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn part(&self, range: Range<usize>) -> Result<Cow<'static, [u8]>> {
        match self {
            Self::File { .. } => {
                let mut buffer = vec![0; range.len()];
                self.read(range.start, &mut buffer)?;
                Ok(buffer.into())
            }
            Self::Embedded(bytes) => Ok(bytes[range].into()),
            Self::Gathered(bytes) => Ok(bytes[range].to_vec().into()),
        }
    }

    /// The elements of `size` bytes of a tensor whose values do not follow one another, in the order of the indices. The range
    /// lies within the bytes, and all that shape and strides, which count elements, lead to lies within the range.
    pub fn gathered(&self, range: Range<usize>, size: usize, shape: &[usize], strides: &[usize]) -> Result<Self> {
        let bytes = self.part(range)?;
        let elements: usize = shape.iter().product();
        let inner = shape.last().copied().unwrap_or(1).max(1);
        let step = strides.last().copied().unwrap_or(1) * size;
        let mut gathered = vec![0; elements * size];
        // Rows along the last dimension, whose numbers tell the indices of the others.
        gathered.par_chunks_mut(inner * size).enumerate().for_each(|(row, out)| {
            let (mut rest, mut start) = (row, 0);
            for (&dimension, &stride) in shape.iter().zip(strides).rev().skip(1) {
                start += rest % dimension * stride * size;
                rest /= dimension;
            }
            for (i, element) in out.chunks_exact_mut(size).enumerate() {
                element.copy_from_slice(&bytes[start + i * step..start + i * step + size]);
            }
        });
        Ok(Self::Gathered(gathered))
    }

    /// A part of the bytes, in `buffer` unless they are in memory already.
    fn part_in<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match self {
            Self::File { .. } => {
                buffer.resize(range.len(), 0);
                self.read(range.start, buffer)?;
                Ok(buffer)
            }
            Self::Embedded(bytes) => Ok(&bytes[range]),
            Self::Gathered(bytes) => Ok(&bytes[range]),
        }
    }

    /// Writes a part of the bytes.
    fn read(&self, start: usize, out: &mut [u8]) -> Result<()> {
        match self {
            Self::File { file, len, path } => {
                read_exact_at(file, out, start as u64).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        let reason =
                            format!("it had {len} bytes when it was opened and has become shorter; get it again");
                        Error::malformed(ErrorKind::Model, "file of weights", path, reason)
                    }
                    _ => Error::io("read", path)(error),
                })
            }
            Self::Embedded(bytes) => {
                out.copy_from_slice(&bytes[start..start + out.len()]);
                Ok(())
            }
            Self::Gathered(bytes) => {
                out.copy_from_slice(&bytes[start..start + out.len()]);
                Ok(())
            }
        }
    }

    /// The tensor that a part holds, in an element type, on a device. `None` if it holds values that are not finite. The
    /// range lies within the bytes and has the shape's length. That a value is too large for f16 is an error.
    ///
    /// # Errors
    /// If the stored type is no float that is read.
    pub fn tensor(
        &self,
        range: &Range<usize>,
        stored: Dtype,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        if let Some(table) = EightBit::of(stored) {
            let values = table.values(&self.part(range.clone())?, shape, dtype)?;
            return Ok(values.map(|tensor| tensor.to_device(device)).transpose()?);
        }
        let stored = float_type(stored).ok_or_else(|| {
            let fix = "only floats are read; get the model in f32, f16, bf16 or fp8";
            Error::unusable(ErrorKind::Model, "the type of a weight", format!("{stored:?}"), fix)
        })?;
        self.float_tensor(range, stored, shape, dtype, device)
    }

    fn float_tensor(
        &self,
        range: &Range<usize>,
        stored: DType,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let cpu = &Device::Cpu;
        let tensor = match (stored, dtype) {
            (DType::F32, DType::F32) => {
                let values = self.values(range, stored, f32::from_le_bytes)?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            (DType::F16, DType::F16) => {
                let values = self.values(range, stored, f16::from_le_bytes)?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            (DType::BF16, DType::BF16) => {
                let values = self.values(range, stored, bf16::from_le_bytes)?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            (DType::F16 | DType::BF16, DType::F32) => {
                let values = self.converted(range, stored, |bytes, values| match stored {
                    DType::F16 => copy(bytes, values, |half| kernels::widen_f16(u16::from_le_bytes(half))),
                    _ => copy(bytes, values, |half| kernels::widen_bf16(u16::from_le_bytes(half))),
                })?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            (DType::F32 | DType::BF16, DType::F16) => {
                let values = self.converted(range, stored, |bytes, values| match stored {
                    DType::F32 => copy(bytes, values, |value| f16::from_f32(f32::from_le_bytes(value))),
                    _ => copy(bytes, values, |value| f16::from_f32(bf16::from_le_bytes(value).to_f32())),
                })?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            (DType::F32 | DType::F16, DType::BF16) => {
                let rounded = kernels::round_to_bf16;
                let values = self.converted(range, stored, |bytes, values| match stored {
                    DType::F32 => copy(bytes, values, |value| rounded(f32::from_le_bytes(value))),
                    _ => copy(bytes, values, |half| rounded(kernels::widen_f16(u16::from_le_bytes(half)))),
                })?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            _ => {
                let bytes = self.part(range.clone())?;
                let tensor = || Tensor::from_raw_buffer(&bytes, stored, shape, cpu)?.to_dtype(dtype);
                all_finite(&bytes, stored).then(tensor)
            }
        };
        self.within_range(tensor.transpose()?, stored, device)
    }

    /// The tensor of values that were computed of these bytes, in an element type, on a device. `None` if any is not finite. That a
    /// value is too large for f16 is an error.
    pub fn float_values(
        &self,
        values: Vec<f32>,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        if !values.par_chunks(PIECE).all(|piece| piece.iter().all(|value| value.is_finite())) {
            return Ok(None);
        }
        let tensor = match dtype {
            DType::F16 => {
                let halves = values.par_iter().map(|&value| f16::from_f32(value)).collect::<Vec<_>>();
                Tensor::from_vec(halves, shape, &Device::Cpu)?
            }
            _ => Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?,
        };
        self.within_range(Some(tensor), DType::F32, device)
    }

    /// A tensor that was made of stored values, on a device.
    ///
    /// # Errors
    /// If it is in f16 and a value of another type was too large for it.
    fn within_range(&self, tensor: Option<Tensor>, stored: DType, device: &Device) -> Result<Option<Tensor>> {
        if stored != DType::F16 && tensor.as_ref().is_some_and(overflows) {
            let what = match self {
                Self::File { path, .. } => format!("a weight in {}", path.display()),
                Self::Embedded(_) | Self::Gathered(_) => "a weight".into(),
            };
            let fix = "f16 ends there; take bf16, which has the range of f32, or f32";
            return Err(Error::invalid(what, format!("beyond {}", f16::MAX), fix));
        }
        Ok(tensor.map(|tensor| tensor.to_device(device)).transpose()?)
    }

    /// The values of a part as they are, read on all cores to where they will be, if all of them are finite. `value` makes
    /// one of its bytes.
    fn values<E: Send, const N: usize>(
        &self,
        range: &Range<usize>,
        stored: DType,
        value: impl Fn([u8; N]) -> E + Sync,
    ) -> Result<Option<Vec<E>>> {
        const { assert!(size_of::<E>() == N) };
        if cfg!(target_endian = "big") {
            return self.converted(range, stored, |bytes, values| copy(bytes, values, &value));
        }
        let count = range.len() / N;
        let mut values = Vec::with_capacity(count);
        let pieces = values.spare_capacity_mut()[..count].par_chunks_mut(PIECE / N).enumerate();
        let finite = pieces.map(|(i, values)| {
            let len = size_of_val(values);
            let values = values.as_mut_ptr().cast::<u8>();
            // SAFETY: that many bytes belong to the piece alone, and all are set before they become a slice. To set them costs
            // next to nothing: they are in the cache when the file's bytes come.
            let bytes = unsafe {
                values.write_bytes(0, len);
                std::slice::from_raw_parts_mut(values, len)
            };
            self.read(range.start + i * PIECE, bytes)?;
            Ok(all_finite(bytes, stored))
        });
        let finite = finite.try_reduce(|| true, |a, b| Ok::<_, Error>(a && b))?;
        // SAFETY: no piece has failed, so every value has been read; `E` is one of the floats, which may have any bits.
        unsafe { values.set_len(count) };
        Ok(finite.then_some(values))
    }

    /// The values of a part in another format, read on all cores, if all of them are finite. `fill` makes one of each `stored`
    /// value.
    fn converted<E: Send>(
        &self,
        range: &Range<usize>,
        stored: DType,
        fill: impl Fn(&[u8], &mut [MaybeUninit<E>]) + Sync,
    ) -> Result<Option<Vec<E>>> {
        let size = stored.size_in_bytes();
        let count = range.len() / size;
        let mut values = Vec::with_capacity(count);
        let pieces = values.spare_capacity_mut()[..count].par_chunks_mut(PIECE / size).enumerate();
        let finite = pieces.map_init(Vec::new, |buffer, (i, values)| {
            let start = range.start + i * PIECE;
            let bytes = self.part_in(start..start + values.len() * size, buffer)?;
            fill(bytes, values);
            Ok(all_finite(bytes, stored))
        });
        let finite = finite.try_reduce(|| true, |a, b| Ok::<_, Error>(a && b))?;
        // SAFETY: no piece has failed, so `fill` has written as many values as each has bytes for.
        unsafe { values.set_len(count) };
        Ok(finite.then_some(values))
    }
}

/// Reads at a position, which other threads do at the same time.
#[cfg(unix)]
fn read_exact_at(file: &File, out: &mut [u8], start: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, start)
}

/// Reads at a position, which other threads do at the same time.
#[cfg(windows)]
fn read_exact_at(file: &File, mut out: &mut [u8], mut start: u64) -> io::Result<()> {
    while !out.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, out, start) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                out = &mut out[count..];
                start += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether values that were finite no longer are in f16.
fn overflows(tensor: &Tensor) -> bool {
    match &*tensor.storage_and_layout().0 {
        Storage::Cpu(CpuStorage::F16(values)) => {
            values.par_chunks(PIECE).any(|piece| !piece.iter().all(|v| v.is_finite()))
        }
        _ => false,
    }
}

/// Bytes per task of what runs over all values.
const PIECE: usize = 256 << 10;

/// Writes all values; there are `N` bytes for each.
fn copy<const N: usize, E>(bytes: &[u8], values: &mut [MaybeUninit<E>], value: impl Fn([u8; N]) -> E) {
    let bytes = bytes.as_chunks::<N>().0;
    assert!(bytes.len() == values.len());
    for (to, bytes) in values.iter_mut().zip(bytes) {
        to.write(value(*bytes));
    }
}

/// The narrowest of candle's element types that has all values of a stored one, if that is a float that weights come in.
pub(super) fn float_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Whether no value has all bits of its exponent set, which is what infinities and NaN have. All values are looked at,
/// several at a time, since almost always all are finite.
pub(super) fn all_finite(bytes: &[u8], dtype: DType) -> bool {
    let pieces = bytes.par_chunks(PIECE);
    match dtype {
        DType::F16 | DType::BF16 => {
            let mask: i16 = if dtype == DType::F16 { 0x7c00 } else { 0x7f80 };
            pieces.all(|piece| {
                let exponents = piece.as_chunks::<2>().0.iter().map(|value| i16::from_le_bytes(*value) & mask);
                exponents.fold(0, i16::max) != mask
            })
        }
        DType::F32 => pieces.all(|piece| {
            const MASK: i32 = 0x7f80_0000;
            let exponents = piece.as_chunks::<4>().0.iter().map(|value| i32::from_le_bytes(*value) & MASK);
            exponents.fold(0, i32::max) != MASK
        }),
        _ => pieces.all(|piece| piece.as_chunks::<8>().0.iter().all(|value| f64::from_le_bytes(*value).is_finite())),
    }
}
