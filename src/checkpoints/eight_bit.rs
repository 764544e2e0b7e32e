//! Floats of eight bits (Micikevicius et al. 2022, <https://arxiv.org/abs/2209.05433>), widened exactly.

use crate::Result;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::tensor::Dtype;
use std::sync::LazyLock;

/// The values of all bit patterns of a format; those that are no numbers, NaN and infinities, are NaN.
pub(super) struct EightBit([f32; 256]);

/// PyTorch's `float8_e4m3fn`: bias 7, no infinities, up to 448.
static E4M3: LazyLock<EightBit> =
    LazyLock::new(|| EightBit::new(4, 3, |exponent, mantissa| exponent == 15 && mantissa == 7));

/// PyTorch's `float8_e5m2`: the upper half of an f16, up to 57344.
static E5M2: LazyLock<EightBit> = LazyLock::new(|| EightBit::new(5, 2, |exponent, _| exponent == 31));

impl EightBit {
    /// The table of a stored type that is one of these.
    pub fn of(dtype: Dtype) -> Option<&'static Self> {
        match dtype {
            Dtype::F8_E4M3 => Some(&E4M3),
            Dtype::F8_E5M2 => Some(&E5M2),
            _ => None,
        }
    }

    /// A sign, then so many bits of exponent and of mantissa, as in IEEE 754 but for which values are no numbers.
    fn new(exponent_bits: i32, mantissa_bits: i32, is_no_number: fn(i32, i32) -> bool) -> Self {
        let bias = (1 << (exponent_bits - 1)) - 1;
        let value = |bits: i32| {
            let (exponent, mantissa) =
                ((bits >> mantissa_bits) & ((1 << exponent_bits) - 1), bits & ((1 << mantissa_bits) - 1));
            let fraction = mantissa as f32 / (1 << mantissa_bits) as f32;
            let size = match exponent {
                _ if is_no_number(exponent, mantissa) => f32::NAN,
                // Subnormal.
                0 => fraction * 2f32.powi(1 - bias),
                _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
            };
            if bits & 0x80 == 0 { size } else { -size }
        };
        Self(std::array::from_fn(|bits| value(bits as i32)))
    }

    /// A tensor of the values, in an element type, on the CPU; `None` if any is no number.
    pub fn values(&self, bytes: &[u8], shape: &[usize], dtype: DType) -> Result<Option<Tensor>> {
        if bytes.par_iter().any(|&bits| self.0[usize::from(bits)].is_nan()) {
            return Ok(None);
        }
        let tensor = match dtype {
            DType::F16 => Tensor::from_vec(self.each(bytes, f16::from_f32), shape, &Device::Cpu),
            DType::BF16 => Tensor::from_vec(self.each(bytes, bf16::from_f32), shape, &Device::Cpu),
            _ => Tensor::from_vec(self.each(bytes, |value| value), shape, &Device::Cpu),
        };
        Ok(Some(tensor?.to_dtype(dtype)?))
    }

    fn each<E: Copy + Default + Send + Sync>(&self, bytes: &[u8], of: impl Fn(f32) -> E) -> Vec<E> {
        let table: [E; 256] = std::array::from_fn(|bits| of(self.0[bits]));
        bytes.par_iter().map(|&bits| table[usize::from(bits)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// candle has the one format, and the other is the upper half of an f16.
    #[test]
    fn values_are_those_of_other_readers() -> Result<()> {
        let bits: Vec<u8> = (0..=255).collect();
        let candle = Tensor::from_raw_buffer(&bits, DType::F8E4M3, &[256], &Device::Cpu)?;
        let candle = candle.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        for bits in 0..=255u8 {
            let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || !a.is_finite() && !b.is_finite();
            let (e4m3, e5m2) = (E4M3.0[usize::from(bits)], E5M2.0[usize::from(bits)]);
            assert!(same(e4m3, candle[usize::from(bits)]), "{bits:#x}: {e4m3}");
            assert!(same(e5m2, f16::from_bits(u16::from(bits) << 8).to_f32()), "{bits:#x}: {e5m2}");
        }
        assert_eq!((E4M3.0[0x7e], E4M3.0[1], E5M2.0[0x7b]), (448.0, 2f32.powi(-9), 57344.0));
        Ok(())
    }

    #[test]
    fn every_number_is_exact_in_both_half_precisions_and_others_are_none() -> Result<()> {
        for table in [&*E4M3, &*E5M2] {
            let numbers: Vec<u8> = (0..=255u8).filter(|&bits| !table.0[usize::from(bits)].is_nan()).collect();
            let read = |dtype| -> Result<Option<Vec<f32>>> {
                let read = table.values(&numbers, &[numbers.len()], dtype)?;
                Ok(read.map(|tensor| tensor.to_dtype(DType::F32)?.to_vec1()).transpose()?)
            };
            let exact: Vec<f32> = numbers.iter().map(|&bits| table.0[usize::from(bits)]).collect();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                assert_eq!(read(dtype)?.as_ref(), Some(&exact));
            }
            assert!(table.values(&[0, 0x7f], &[2], DType::F32)?.is_none());
        }
        Ok(())
    }
}
