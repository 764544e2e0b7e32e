//! Weights that do not change, laid out once: panels of sixteen outputs, in any float type or in eight bits, or pairs of bf16.

use super::bf16::{MatmulPrecision, Pairs};
use super::eight_bits::{EightBitPanels, EightBitSums, EightBits};
use super::int8::{self, PackedQuads};
use super::panels::Panels;
use super::right_factor::Packed;
use super::weight_layout::{pack_shaped, pair_shaped};
use super::{Real, make_pool, zeros};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::sync::Arc;

/// A weight that does not change, laid out for the kernels once: `[out, in]` or `[out, in, height, width]`.
///
/// It keeps the tensor's element type, except for [`MatmulPrecision::Bf16`]. Half precision takes half the memory; the product widens
/// a block of it at a time, just before it is used, and computes in the type of the activations; or it rounds the activations
/// too, where that is faster ([`MatmulPrecision`]).
#[derive(Debug, Clone)]
pub struct PackedWeight {
    values: Arc<Values>,
    shape: Vec<usize>,
}

#[derive(Debug)]
enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Bf16Pairs(Vec<bf16>),
    EightBits(EightBitPanels),
    Quads(PackedQuads),
}

impl PackedWeight {
    /// Lays a weight out for full products. Values of half precision must be finite.
    ///
    /// # Errors
    /// If the weight has another rank than 2 or 4, is not on the CPU, or not of floats.
    pub fn new(weight: &Tensor) -> Result<Self> {
        Self::with_products(weight, MatmulPrecision::Full)
    }

    /// The same with the exactness of products given. Where the inputs are no multiple of 32 or the outputs fewer than 16, as
    /// where a network begins and ends, products are full in any case.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_products(weight: &Tensor, products: MatmulPrecision) -> Result<Self> {
        make_pool(None);
        let shape = weight.dims().to_vec();
        if !matches!(shape.len(), 2 | 4) {
            candle_core::bail!("pack: a weight has two dimensions or four, not those of {shape:?}");
        }
        let pairs = products.of_matrix(shape[1], shape[0]) == MatmulPrecision::Bf16;
        let dtype = if pairs { DType::BF16 } else { weight.dtype() };
        let weight = weight.to_dtype(dtype)?.contiguous()?;
        let (storage, layout) = weight.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { candle_core::bail!("pack: the weight is not on the CPU") };
        let range = layout.start_offset()..layout.start_offset() + weight.elem_count();
        let values = match storage {
            CpuStorage::BF16(values) if pairs => Values::Bf16Pairs(pair_shaped(&values[range], &shape)),
            CpuStorage::F32(values) => Values::F32(pack_shaped(&values[range], &shape)),
            CpuStorage::F64(values) => Values::F64(pack_shaped(&values[range], &shape)),
            CpuStorage::F16(values) => Values::F16(pack_shaped(&values[range], &shape)),
            CpuStorage::BF16(values) => Values::Bf16(pack_shaped(&values[range], &shape)),
            _ => candle_core::bail!("pack: a weight is of floats, not of {:?}", weight.dtype()),
        };
        Ok(Self { values: Arc::new(values), shape })
    }

    /// Lays out a weight `[out, in]`, or `[out, in, height, width]` that is given as `[out, height, width, in]`. Full products widen a
    /// block of it at a time. Where all numbers are among [sixteen](EightBits::least_of_sixteen), they take half a byte each.
    ///
    /// # Panics
    /// If they are said to be and are not.
    ///
    /// # Errors
    /// If the shape has another rank than 2 or 4, or a row of the matrix is no whole parts, or there are not as many.
    pub fn of_eight_bits(weight: &EightBits, shape: &[usize], sums: EightBitSums) -> Result<Self> {
        make_pool(None);
        let EightBits { numbers, scales, leasts, part, .. } = weight;
        let depth: usize = shape.iter().skip(1).product();
        let fits = depth.is_multiple_of(*part)
            && numbers.len() == shape.iter().product::<usize>()
            && numbers.len() == scales.len() * part
            && leasts.as_ref().is_none_or(|leasts| leasts.len() == scales.len());
        if !matches!(shape.len(), 2 | 4) || !fits {
            candle_core::bail!("pack: {} numbers in parts of {part} are no weight of {shape:?}", numbers.len());
        }
        let is_matrix = shape[2..].iter().all(|&side| side == 1);
        if sums == EightBitSums::Whole && is_matrix && *part == int8::PART && leasts.is_none() {
            let values = Values::Quads(PackedQuads::new(weight, shape[0], depth));
            return Ok(Self { values: Arc::new(values), shape: shape.to_vec() });
        }
        let values = Values::EightBits(EightBitPanels::new(weight, shape[0], depth));
        Ok(Self { values: Arc::new(values), shape: shape.to_vec() })
    }

    /// As it was before: `[out, in]` or `[out, in, height, width]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type in memory; of a weight in eight bits that of its values.
    pub fn dtype(&self) -> DType {
        match &*self.values {
            Values::F32(_) | Values::EightBits(_) | Values::Quads(_) => DType::F32,
            Values::F64(_) => DType::F64,
            Values::F16(_) => DType::F16,
            Values::Bf16(_) | Values::Bf16Pairs(_) => DType::BF16,
        }
    }

    /// How products with it are taken.
    pub fn products(&self) -> MatmulPrecision {
        if matches!(*self.values, Values::Bf16Pairs(_)) { MatmulPrecision::Bf16 } else { MatmulPrecision::Full }
    }

    /// The weight as it was before, in the element type that it has in memory.
    ///
    /// # Errors
    /// Never, for a weight that was made from a tensor.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match &*self.values {
            Values::F64(_) => self.rows_as_before::<f64>(),
            _ => self.rows_as_before::<f32>(),
        }
    }

    fn rows_as_before<T: Real>(&self) -> Result<Tensor> {
        let (packed, inputs) = (self.packed::<T>(), self.shape[1]);
        let taps: usize = self.shape[2..].iter().product();
        let mut rows = zeros::<T>(self.shape.iter().product());
        rows.par_chunks_mut((inputs * taps).max(1)).enumerate().for_each(|(out, row)| {
            for (i, value) in row.iter_mut().enumerate() {
                *value = packed.at(inputs * taps, i % taps * inputs + i / taps, out);
            }
        });
        Tensor::from_vec(rows, self.shape.as_slice(), &Device::Cpu)?.to_dtype(self.dtype())
    }

    /// For sums of type `T`.
    pub(super) fn packed<T: Real>(&self) -> Packed<'_, T> {
        Packed::Panels(match &*self.values {
            Values::F32(values) => T::of_f32(values).map_or(Panels::F32(values), Panels::Wide),
            Values::F64(values) => T::of_f64(values).map_or(Panels::F64(values), Panels::Wide),
            Values::F16(values) => Panels::F16(values),
            Values::Bf16(values) => Panels::Bf16(values),
            Values::EightBits(panels) => Panels::EightBits(panels.lines()),
            Values::Bf16Pairs(values) => return Packed::Pairs(Pairs::new(values)),
            Values::Quads(quads) => return Packed::Quads(quads.quads()),
        })
    }
}
