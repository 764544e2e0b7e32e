//! The element types that the kernels compute in.

use super::{half_precision, simd};
use candle_core::WithDType;

/// An element type that the kernels compute in: f32, and f64 for checks of gradients.
pub(super) trait Real: WithDType + Default {
    /// Below every number.
    const NEG_INFINITY: Self;

    /// The exponential; in f32 branch-free, to within 2 units in the last place on `[-87, 88]`, and
    /// saturating outside.
    /// With `FUSED`, products and sums are in one rounding.
    fn exp_approx<const FUSED: bool>(self) -> Self;

    /// The complementary error function; in f32 to within 2e-7 relative.
    fn erfc_approx<const FUSED: bool>(self) -> Self;

    /// The nearest value to an f32: itself.
    fn from_f32(value: f32) -> Self;

    /// Values of this type, if they are of f32.
    fn of_f32(values: &[f32]) -> Option<&[Self]>;

    /// Values of this type, if they are of f64.
    fn of_f64(values: &[f64]) -> Option<&[Self]>;

    /// Writes as many halves, which must be finite, as values of this type.
    fn widen_halves(halves: &[half::f16], out: &mut [Self]);

    /// The nearest bf16.
    fn rounded(self) -> half::bf16;

    /// `self * a + b` in one rounding; only where the machine has an instruction for it.
    fn fused(self, a: Self, b: Self) -> Self;
}

impl Real for f32 {
    const NEG_INFINITY: Self = Self::NEG_INFINITY;

    #[inline(always)]
    fn exp_approx<const FUSED: bool>(self) -> Self {
        simd::exp_f32::<FUSED>(self)
    }

    #[inline(always)]
    fn erfc_approx<const FUSED: bool>(self) -> Self {
        simd::erfc_f32::<FUSED>(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    fn widen_halves(halves: &[half::f16], out: &mut [Self]) {
        half_precision::widen_halves(halves, out);
    }

    #[inline(always)]
    fn rounded(self) -> half::bf16 {
        half_precision::round_to_bf16(self)
    }

    fn of_f32(values: &[f32]) -> Option<&[Self]> {
        Some(values)
    }

    fn of_f64(_: &[f64]) -> Option<&[Self]> {
        None
    }

    #[inline(always)]
    fn fused(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
}

impl Real for f64 {
    const NEG_INFINITY: Self = Self::NEG_INFINITY;

    #[inline(always)]
    fn exp_approx<const FUSED: bool>(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn erfc_approx<const FUSED: bool>(self) -> Self {
        candle_core::cpu::erf::erfc_f64(self)
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value.into()
    }

    fn widen_halves(halves: &[half::f16], out: &mut [Self]) {
        out.iter_mut().zip(halves).for_each(|(out, half)| *out = half.to_f64());
    }

    fn rounded(self) -> half::bf16 {
        half::bf16::from_f64(self)
    }

    fn of_f32(_: &[f32]) -> Option<&[Self]> {
        None
    }

    fn of_f64(values: &[f64]) -> Option<&[Self]> {
        Some(values)
    }

    #[inline(always)]
    fn fused(self, a: Self, b: Self) -> Self {
        self.mul_add(a, b)
    }
}
