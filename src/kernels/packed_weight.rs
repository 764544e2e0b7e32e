//! Weights as the product reads them: panels of sixteen outputs, in any float type, or pairs of bf16.

use super::bf16::{MatmulPrecision, Pairs, STEP, index, pack as pack_pairs, packed_len};
use super::simd::multiversion;
use super::tile::{PANEL, pack, packed_at};
use super::transpose::{AT_ONCE, across};
use super::{Real, make_pool, zeros};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Values per task of [`widened`].
const WIDENED_AT_ONCE: usize = 1 << 16;

/// A weight that does not change, laid out for the kernels once: `[out, in]` or `[out, in, kernel, kernel]`.
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
        make_pool();
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

    /// As it was before: `[out, in]` or `[out, in, kernel, kernel]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The element type in memory.
    pub fn dtype(&self) -> DType {
        match &*self.values {
            Values::F32(_) => DType::F32,
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
            Values::Bf16Pairs(values) => return Packed::Pairs(Pairs::new(values)),
        })
    }
}

/// A right factor, as the product reads it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Packed<'a, T> {
    /// For sums of type `T`.
    Panels(Panels<'a, T>),
    /// For sums in f32 of products of bf16.
    Pairs(Pairs<'a>),
}

impl<'a, T: Real> Packed<'a, T> {
    /// Panels in the type of the sums.
    pub fn wide(values: &'a [T]) -> Self {
        Self::Panels(Panels::Wide(values))
    }

    /// From a panel on, where each has so many values.
    pub fn from(self, start: usize) -> Self {
        match self {
            Self::Panels(panels) => Self::Panels(panels.part(start..panels.len())),
            Self::Pairs(pairs) => Self::Pairs(pairs.from(start)),
        }
    }

    /// One value of a matrix of so many rows.
    pub fn at(self, depth: usize, k: usize, column: usize) -> T {
        match self {
            Self::Panels(panels) => panels.at(packed_at(depth, k, column)),
            Self::Pairs(pairs) => T::from_f32(pairs.at(depth, k, column).to_f32()),
        }
    }
}

/// Panels `[out / 16][tap][in][16]` of a weight `[out, in]` or `[out, in, kernel, kernel]`, zeros after the last output.
pub(super) fn pack_shaped<E: Copy + Default + Send + Sync>(weight: &[E], shape: &[usize]) -> Vec<E> {
    lay_out::<E, false>(weight, shape)
}

/// [`Pairs`] of it, the rows in the same order. The inputs are whole steps.
fn pair_shaped(weight: &[bf16], shape: &[usize]) -> Vec<bf16> {
    assert!(shape[1].is_multiple_of(STEP));
    lay_out::<_, true>(weight, shape)
}

fn lay_out<E: Copy + Default + Send + Sync, const PAIRS: bool>(weight: &[E], shape: &[usize]) -> Vec<E> {
    let (outputs, inputs) = (shape[0], shape[1]);
    let taps: usize = shape[2..].iter().product();
    let depth = taps * inputs;
    assert!(weight.len() == outputs * depth);
    let len = outputs.div_ceil(PANEL) * depth * PANEL;
    let mut panels = Vec::with_capacity(len);
    let no_output = vec![E::default(); depth];
    panels.spare_capacity_mut()[..len].par_chunks_mut((depth * PANEL).max(1)).enumerate().for_each(
        |(panel, values)| {
            let rows: [&[E]; PANEL] = std::array::from_fn(|lane| match panel * PANEL + lane {
                out if out < outputs => &weight[out * depth..][..depth],
                _ => &no_output[..],
            });
            // Of the next line, which follow each other in the file with the taps inside the inputs.
            let (mut input, mut tap) = (0, 0);
            let mut write = |line: [E; PANEL]| {
                let k = tap * inputs + input;
                tap += 1;
                if tap == taps {
                    (input, tap) = (input + 1, 0);
                }
                if PAIRS {
                    let places = values[index(depth, k, 0)..].iter_mut().step_by(2);
                    places.zip(line).for_each(|(place, value)| _ = place.write(value));
                } else {
                    let places = &mut values[k * PANEL..][..PANEL];
                    places.iter_mut().zip(line).for_each(|(place, value)| _ = place.write(value));
                }
            };
            let whole = depth - depth % AT_ONCE;
            for first in (0..whole).step_by(AT_ONCE) {
                across(&rows, first).into_iter().for_each(&mut write);
            }
            (whole..depth).for_each(|i| write(rows.map(|row| row[i])));
        },
    );
    // SAFETY: for each panel the lines of all rows of the matrix are written, and each place belongs to one of them.
    unsafe { panels.set_len(len) };
    panels
}

/// A right factor that is laid out for one use: of a weight in training, or of keys and values.
#[derive(Debug)]
pub(super) enum Factor<T> {
    /// For full products.
    Panels(Vec<T>),
    /// For those of bf16.
    Pairs(Vec<bf16>),
}

impl<T: Real> Factor<T> {
    /// Of a matrix whose values `at(k, column)` gives.
    pub fn new(depth: usize, columns: usize, products: MatmulPrecision, at: impl Fn(usize, usize) -> T + Sync) -> Self {
        match products {
            MatmulPrecision::Full => Self::Panels(pack(depth, columns, at)),
            MatmulPrecision::Bf16 => Self::Pairs(pack_pairs(depth, columns, |k, column| at(k, column).rounded())),
        }
    }

    /// Of a weight `[out, in]` or `[out, in, kernel, kernel]`.
    pub fn of_weight(weight: &[T], shape: &[usize], products: MatmulPrecision) -> Self {
        match products {
            MatmulPrecision::Full => Self::Panels(pack_shaped(weight, shape)),
            MatmulPrecision::Bf16 => {
                let rounded: Vec<bf16> = weight.iter().map(|value| value.rounded()).collect();
                Self::Pairs(pair_shaped(&rounded, shape))
            }
        }
    }

    /// All of it.
    pub fn packed(&self) -> Packed<'_, T> {
        self.at_column(0, 0)
    }

    /// From a column on, the first of a panel.
    pub fn at_column(&self, depth: usize, column: usize) -> Packed<'_, T> {
        match self {
            Self::Panels(values) => Packed::wide(&values[column * depth..]),
            Self::Pairs(values) => Packed::Pairs(Pairs::new(&values[packed_len(depth, column)..])),
        }
    }
}

/// Panels of a matrix, as the product reads them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Panels<'a, T> {
    /// In the type of the sums already.
    Wide(&'a [T]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// Runs `$body` with the slice of values and a function that widens one of them to `$T`.
macro_rules! with_values {
    ($panels:expr, $T:ident, |$values:ident, $widen:ident| $body:expr) => {
        match $panels {
            Panels::Wide($values) => {
                let $widen = |value: $T| value;
                $body
            }
            Panels::F32($values) => {
                let $widen = |value: f32| $T::from_f32(value);
                $body
            }
            Panels::F64($values) => {
                let $widen = |value: f64| $T::from_f64(value);
                $body
            }
            Panels::F16($values) => {
                let $widen = |value: f16| $T::from_f32(widen_f16(value.to_bits()));
                $body
            }
            Panels::Bf16($values) => {
                let $widen = |value: bf16| $T::from_f32(widen_bf16(value.to_bits()));
                $body
            }
        }
    };
}

impl<'a, T: Real> Panels<'a, T> {
    pub fn len(self) -> usize {
        with_values!(self, T, |values, _widen| values.len())
    }

    /// A part of the values.
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Self::Wide(values) => Self::Wide(&values[range]),
            Self::F32(values) => Self::F32(&values[range]),
            Self::F64(values) => Self::F64(&values[range]),
            Self::F16(values) => Self::F16(&values[range]),
            Self::Bf16(values) => Self::Bf16(&values[range]),
        }
    }

    /// One value.
    fn at(self, i: usize) -> T {
        with_values!(self, T, |values, widen| widen(values[i]))
    }

    /// Whether the product reads them as they lie.
    pub fn are_wide(self) -> bool {
        matches!(self, Self::Wide(_))
    }

    /// Some lines of some panels of `depth` lines each, in the type of the sums, in `buffer` unless they have it already; and how
    /// far the panels are apart.
    pub fn widened<'b>(
        self,
        depth: usize,
        panels: &Range<usize>,
        lines: &Range<usize>,
        buffer: &'b mut Vec<T>,
    ) -> (&'b [T], usize)
    where
        'a: 'b,
    {
        let of_panel = |panel: usize| (panel * depth + lines.start) * PANEL..(panel * depth + lines.end) * PANEL;
        if let Self::Wide(values) = self {
            return (&values[of_panel(panels.start).start..of_panel(panels.end - 1).end], depth * PANEL);
        }
        let len = lines.len() * PANEL;
        buffer.resize(panels.len() * len, T::zero());
        for (panel, buffer) in panels.clone().zip(buffer.chunks_exact_mut(len.max(1))) {
            match self.part(of_panel(panel)) {
                Self::F16(halves) => T::widen_halves(halves, buffer),
                other => widen_all(other, buffer),
            }
        }
        (buffer, len)
    }

    /// Sixteen values from a multiple of sixteen.
    #[inline(always)]
    pub fn line(self, line: usize) -> [T; PANEL] {
        let mut lanes = [T::zero(); PANEL];
        with_values!(self, T, |values, widen| {
            let values = &values.as_chunks::<PANEL>().0[line];
            for (lane, &value) in lanes.iter_mut().zip(values) {
                *lane = widen(value);
            }
        });
        lanes
    }
}

multiversion! {
    fn widen_all<T: Real>(panels: Panels<'_, T>, out: &mut [T]) {
        with_values!(panels, T, |values, widen| {
            for (out, &value) in out.iter_mut().zip(values) {
                *out = widen(value);
            }
        });
    }
}

/// Halves in f32. Every x86-64 with AVX2 has an instruction for it, to which infinities and NaN are as good as any value.
pub(super) fn widen_halves(halves: &[f16], out: &mut [f32]) {
    assert!(halves.len() == out.len());
    #[cfg(target_arch = "x86_64")]
    if super::InstructionSet::in_use() >= super::InstructionSet::Avx2 {
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
    let mut wide = zeros(halves.len());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{bf16 as rounded, tile::pack};

    /// As the layouts' own functions have it, which take a matrix value by value.
    #[test]
    fn weights_lie_as_matrices_of_taps_and_channels_do() {
        for (outputs, inputs, kernel) in [(20, 32, 3), (16, 64, 1), (33, 32, 1)] {
            let taps = kernel * kernel;
            let weight: Vec<bf16> = (0..outputs * inputs * taps).map(|i| bf16::from_bits(i as u16)).collect();
            let at = |k: usize, out: usize| weight[(out * inputs + k % inputs) * taps + k / inputs];
            let shape = [outputs, inputs, kernel, kernel];
            let bits = |values: Vec<bf16>| -> Vec<u16> { values.into_iter().map(bf16::to_bits).collect() };
            assert!(bits(pair_shaped(&weight, &shape)) == bits(rounded::pack(inputs * taps, outputs, at)));
            let wide: Vec<f32> = weight.iter().map(|value| value.to_bits().into()).collect();
            let at = |k: usize, out: usize| f32::from(at(k, out).to_bits());
            assert!(pack_shaped(&wide, &shape) == pack(inputs * taps, outputs, at));
        }
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
