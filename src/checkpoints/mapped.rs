//! The bytes of a weight file, mapped into memory or compiled in.
#![allow(unsafe_code)]

use super::ModelFiles;
use crate::{Error, Result, kernels};
use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::ops::Range;
use std::path::Path;

/// Where a file's bytes are.
#[derive(Debug)]
pub(super) enum Bytes {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

impl Bytes {
    /// Those of a file of a model.
    pub fn open(files: &ModelFiles, name: &str) -> Result<Self> {
        match files.embedded(name) {
            Some(bytes) => Ok(Self::Embedded(bytes)),
            None => Ok(Self::Mapped(map(&files.path(name))?)),
        }
    }

    pub fn as_slice(&self) -> &[u8] {
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

    /// The tensor that a part holds, in an element type, on a device; lets go of the part's pages. `None` if it holds
    /// values that are not finite. The range lies within the bytes and has the shape's length.
    pub fn tensor(
        &self,
        range: &Range<usize>,
        stored: DType,
        shape: &[usize],
        dtype: DType,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let bytes = &self.as_slice()[range.clone()];
        let tensor = match (stored, dtype) {
            (DType::F32 | DType::F16 | DType::BF16, DType::F32) => {
                finite_f32(bytes, stored).map(|values| Tensor::from_vec(values, shape, &Device::Cpu)).transpose()?
            }
            _ if all_finite(bytes, stored) => {
                Some(Tensor::from_raw_buffer(bytes, stored, shape, &Device::Cpu)?.to_dtype(dtype)?)
            }
            _ => None,
        };
        self.release(range);
        Ok(tensor.map(|tensor| tensor.to_device(device)).transpose()?)
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

/// Bytes per task of what runs over all values.
const PIECE: usize = 1 << 20;

/// The values in f32, on all cores, if all of them are finite.
fn finite_f32(bytes: &[u8], stored: DType) -> Option<Vec<f32>> {
    let size = stored.size_in_bytes();
    let mut values = vec![0f32; bytes.len() / size];
    let pieces = values.par_chunks_mut(PIECE / size).zip(bytes.par_chunks(PIECE));
    let finite = pieces.map(|(values, bytes)| {
        let put = |(value, wide): (&mut f32, f32)| *value = wide;
        let halves = bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half));
        let wholes = bytes.as_chunks::<4>().0.iter().map(|whole| f32::from_le_bytes(*whole));
        match stored {
            DType::F16 => values.iter_mut().zip(halves.map(kernels::widen_f16)).for_each(put),
            DType::BF16 => values.iter_mut().zip(halves.map(kernels::widen_bf16)).for_each(put),
            _ => values.iter_mut().zip(wholes).for_each(put),
        }
        all_finite(bytes, stored)
    });
    finite.reduce(|| true, |a, b| a && b).then_some(values)
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
