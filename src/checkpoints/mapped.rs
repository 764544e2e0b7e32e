//! The bytes of a weight file on disk, or compiled in.
#![allow(unsafe_code)]

use super::ModelFiles;
use crate::{Error, Result, kernels};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Range;
#[cfg(unix)]
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Where a file's bytes are.
#[derive(Debug)]
pub(super) enum Bytes {
    /// A file, mapped for its header. Tensors are read instead: to fault in the pages of gigabytes takes longer.
    /// Only Unix reads at a position without moving it; elsewhere the pages are faulted in.
    #[cfg_attr(not(unix), allow(dead_code))]
    File {
        map: Mmap,
        file: File,
        path: PathBuf,
    },
    Embedded(&'static [u8]),
}

impl Bytes {
    /// Those of a file of a model.
    pub fn open(files: &ModelFiles, name: &str) -> Result<Self> {
        if let Some(bytes) = files.embedded(name) {
            return Ok(Self::Embedded(bytes));
        }
        let path = files.path(name);
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        // SAFETY: the map is only read. As with every map of a file, another process that shortens the file while
        // it is mapped ends this one; the map lives only while weights are being loaded.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", &path))?;
        Ok(Self::File { map, file, path })
    }

    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::File { map, .. } => map,
            Self::Embedded(bytes) => bytes,
        }
    }

    /// A part of the bytes, in `buffer` unless they are in memory already.
    fn part<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<u8>) -> Result<&'a [u8]> {
        match self {
            #[cfg(unix)]
            Self::File { file, path, .. } => {
                buffer.resize(range.len(), 0);
                file.read_exact_at(buffer, range.start as u64).map_err(Error::io("read", path))?;
                Ok(buffer)
            }
            _ => {
                #[cfg(not(unix))]
                let _ = buffer;
                Ok(&self.as_slice()[range])
            }
        }
    }

    /// The tensor that a part holds, in an element type, on a device. `None` if it holds values that are not finite. The
    /// range lies within the bytes and has the shape's length. That a value is too large for f16 is an error.
    pub fn tensor(
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
                let bytes = &self.as_slice()[range.clone()];
                let tensor = || Tensor::from_raw_buffer(bytes, stored, shape, cpu)?.to_dtype(dtype);
                all_finite(bytes, stored).then(tensor)
            }
        };
        let tensor = tensor.transpose()?;
        if stored != DType::F16 && tensor.as_ref().is_some_and(overflows) {
            let what = match self {
                Self::File { path, .. } => format!("a weight in {}", path.display()),
                Self::Embedded(_) => "a weight".into(),
            };
            let fix = "f16 ends there; take bf16, which has the range of f32, or f32";
            return Err(Error::invalid(what, format!("beyond {}", f16::MAX), fix));
        }
        Ok(tensor.map(|tensor| tensor.to_device(device)).transpose()?)
    }

    /// Writes a part of the bytes.
    fn read(&self, start: usize, out: &mut [u8]) -> Result<()> {
        match self {
            #[cfg(unix)]
            Self::File { file, path, .. } => file.read_exact_at(out, start as u64).map_err(Error::io("read", path)),
            _ => {
                out.copy_from_slice(&self.as_slice()[start..start + out.len()]);
                Ok(())
            }
        }
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
            let bytes = self.part(start..start + values.len() * size, buffer)?;
            fill(bytes, values);
            Ok(all_finite(bytes, stored))
        });
        let finite = finite.try_reduce(|| true, |a, b| Ok::<_, Error>(a && b))?;
        // SAFETY: no piece has failed, so `fill` has written as many values as each has bytes for.
        unsafe { values.set_len(count) };
        Ok(finite.then_some(values))
    }
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

/// candle's element type for a stored one, if it is a float that weights come in.
pub(crate) fn float_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
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
