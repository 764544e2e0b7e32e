//! The bytes of a weight file on disk, or compiled in.
#![allow(unsafe_code)]

use super::ModelFiles;
use crate::{Error, Result, kernels};
use candle_core::{DType, Device, Tensor};
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
    /// range lies within the bytes and has the shape's length.
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
            (DType::F32 | DType::F16 | DType::BF16, DType::F32) => {
                let values = self.values(range, stored, |bytes, values| widen(bytes, stored, values))?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            (DType::F32 | DType::F16 | DType::BF16, DType::F16) => {
                let values = self.values(range, stored, |bytes, values| match stored {
                    DType::F32 => copy(bytes, values, |value| f16::from_f32(f32::from_le_bytes(value))),
                    DType::BF16 => copy(bytes, values, |value| f16::from_f32(bf16::from_le_bytes(value).to_f32())),
                    _ => copy(bytes, values, f16::from_le_bytes),
                })?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            (DType::F32 | DType::F16 | DType::BF16, DType::BF16) => {
                let rounded = kernels::round_to_bf16;
                let values = self.values(range, stored, |bytes, values| match stored {
                    DType::F32 => copy(bytes, values, |value| rounded(f32::from_le_bytes(value))),
                    DType::F16 => copy(bytes, values, |half| rounded(kernels::widen_f16(u16::from_le_bytes(half)))),
                    _ => copy(bytes, values, bf16::from_le_bytes),
                })?;
                values.map(|values| Tensor::from_vec(values, shape, cpu))
            }
            _ => {
                let bytes = &self.as_slice()[range.clone()];
                let tensor = || Tensor::from_raw_buffer(bytes, stored, shape, cpu)?.to_dtype(dtype);
                all_finite(bytes, stored).then(tensor)
            }
        };
        Ok(tensor.transpose()?.map(|tensor| tensor.to_device(device)).transpose()?)
    }

    /// The values of a part, read on all cores, if all of them are finite. `fill` makes one of each `stored` value.
    fn values<E: Send>(
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

/// Bytes per task of what runs over all values.
const PIECE: usize = 1 << 20;

fn widen(bytes: &[u8], stored: DType, values: &mut [MaybeUninit<f32>]) {
    match stored {
        DType::F16 => copy(bytes, values, |half| kernels::widen_f16(u16::from_le_bytes(half))),
        DType::BF16 => copy(bytes, values, |half| kernels::widen_bf16(u16::from_le_bytes(half))),
        _ => copy(bytes, values, f32::from_le_bytes),
    }
}

/// Writes all values; there are `N` bytes for each.
fn copy<const N: usize, E>(bytes: &[u8], values: &mut [MaybeUninit<E>], value: impl Fn([u8; N]) -> E) {
    let bytes = bytes.as_chunks::<N>().0;
    assert!(bytes.len() == values.len());
    for (to, bytes) in values.iter_mut().zip(bytes) {
        to.write(value(*bytes));
    }
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
pub(super) fn all_finite(bytes: &[u8], dtype: DType) -> bool {
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
