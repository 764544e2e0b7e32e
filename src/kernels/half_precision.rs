//! Half precision: the nearest bf16 of a value, and what f16 and bf16 are in f32.

use super::{InstructionSet, dry_run};
use candle_core::{CpuStorage, Device, Result, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

/// Values per task of [`widened`].
const WIDENED_AT_ONCE: usize = 1 << 16;

/// The nearest bf16, of two the even one, without a branch; not-a-number stays one.
#[inline(always)]
pub(crate) fn round_to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    bf16::from_bits(if value.is_nan() { quiet } else { nearest } as u16)
}

/// The bits of a bf16 as an f32, of which they are the upper half.
#[inline(always)]
pub(crate) fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bits of a finite f16 as an f32, without a branch: its exponent and fraction are moved to their places, and a product with
/// 2^112 corrects the exponent's bias, for subnormal values too.
#[inline(always)]
pub(crate) fn widen_f16(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits(0x7780_0000);
    let bits = u32::from(bits);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * BIAS;
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Halves in f32. Every x86-64 with AVX2 has an instruction for it, to which infinities and NaN are as good as any value.
pub(super) fn widen_halves(halves: &[f16], out: &mut [f32]) {
    assert!(halves.len() == out.len());
    #[cfg(target_arch = "x86_64")]
    if InstructionSet::in_use() >= InstructionSet::Avx2 {
        // SAFETY: an instruction set is only in use on a machine that has it.
        return unsafe { f16c::widen(halves, out) };
    }
    widen_each(halves, out);
}

/// A tensor of halves on the CPU, in f32.
///
/// # Errors
/// If it is of another type, or elsewhere.
pub(crate) fn widened(tensor: &Tensor) -> Result<Tensor> {
    let halves = tensor.contiguous()?;
    let (storage, layout) = halves.storage_and_layout();
    let Storage::Cpu(CpuStorage::F16(halves)) = &*storage else {
        candle_core::bail!("widen: the tensor is not of f16 on the CPU, but of {:?}", tensor.dtype())
    };
    let halves = &halves[layout.start_offset()..][..layout.shape().elem_count()];
    let mut wide = vec![0f32; halves.len()];
    if dry_run::is_dry_run() {
        return Tensor::from_vec(wide, tensor.shape(), &Device::Cpu);
    }
    let pieces = wide.par_chunks_mut(WIDENED_AT_ONCE).zip(halves.par_chunks(WIDENED_AT_ONCE));
    pieces.for_each(|(wide, halves)| widen_halves(halves, wide));
    Tensor::from_vec(wide, tensor.shape(), &Device::Cpu)
}

fn widen_each(halves: &[f16], out: &mut [f32]) {
    for (out, half) in out.iter_mut().zip(halves) {
        *out = widen_f16(half.to_bits());
    }
}

#[cfg(target_arch = "x86_64")]
mod f16c {
    use super::{f16, widen_each};
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};

    /// Values of a register.
    const LANES: usize = 8;

    #[target_feature(enable = "avx,f16c")]
    pub fn widen(halves: &[f16], out: &mut [f32]) {
        let (halves, last) = halves.as_chunks::<LANES>();
        let (out, last_out) = out.as_chunks_mut::<LANES>();
        for (out, halves) in out.iter_mut().zip(halves) {
            // SAFETY: both are eight values, of 16 and 32 bits; their alignment is of no concern to these instructions.
            unsafe {
                let halves = _mm_loadu_si128(halves.as_ptr().cast());
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(halves));
            }
        }
        widen_each(last, last_out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_and_of_two_to_the_even() {
        for i in 0..200_000_u32 {
            let value = f32::from_bits(i.wrapping_mul(21_503));
            let (ours, theirs) = (round_to_bf16(value), bf16::from_f32(value));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{value:e}: {ours} and {theirs}");
        }
        assert!(round_to_bf16(f32::NAN).is_nan() && round_to_bf16(f32::from_bits(0xffff_ffff)).is_nan());
        assert_eq!(round_to_bf16(f32::from_bits(0x3f80_8000)), bf16::from_bits(0x3f80));
        assert_eq!(round_to_bf16(f32::from_bits(0x3f81_8000)), bf16::from_bits(0x3f82));
    }

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let value = f16::from_bits(bits);
            assert!(!value.is_finite() || widen_f16(bits).to_bits() == value.to_f32().to_bits(), "{bits:x}");
        }
        let halves: Vec<_> = (0..=u16::MAX).map(f16::from_bits).filter(|half| half.is_finite()).collect();
        for skipped in [0, 3] {
            let halves = &halves[skipped..];
            let mut wide = vec![f32::NAN; halves.len()];
            widen_halves(halves, &mut wide);
            assert!(halves.iter().zip(wide).all(|(half, wide)| half.to_f32().to_bits() == wide.to_bits()));
        }
    }
}
