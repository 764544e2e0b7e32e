//! CPU kernels behind candle custom operations; nothing else in the crate knows an instruction set.
//!
//! Every kernel has a *definition*, the same function written with candle's own differentiable operations.
//! The definition is what other devices run and what tests hold the kernel and its gradient against. Activations are channels-last,
//! `[batch, height, width, channels]`, or tokens, `[batch, tokens, channels]`. Each image of a batch is
//! computed by itself, in an order that does not depend on the number of threads, so neither the batch
//! size nor the thread count changes a bit of a picture.
#![allow(unsafe_code)]

mod activation;
mod add;
mod attention;
mod bf16;
mod concat;
mod conv;
mod gated_linear;
mod instruction_set;
mod linear;
mod meter;
mod norm;
mod packed_weight;
mod panel_row;
mod peak;
mod recycler;
mod resample;
mod simd;
mod tile;
mod transpose;
mod winograd;

pub use activation::{geglu, gelu, quick_gelu, silu};
pub use add::add;
pub use attention::{attention, attention_definition, attention_with};
pub use bf16::Products;
pub(crate) use bf16::rounded as round_to_bf16;
pub use concat::concat_channels;
pub use conv::{ConvGeometry, conv2d, conv2d_packed, conv2d_packed_plus};
pub use gated_linear::linear_geglu_packed;
pub use instruction_set::InstructionSet;
pub use linear::{linear, linear_packed, linear_packed_plus};
pub use meter::{Meter, Tally};
pub use norm::{Activation, group_norm, group_norm_definition, layer_norm, layer_norm_definition};
pub use packed_weight::PackedWeight;
pub(crate) use packed_weight::{widen_bf16, widen_f16, widened};
pub use peak::measured_peak;
pub use recycler::RecyclingAllocator;
pub use resample::resize_nearest;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Error, Layout, Result, Shape, Storage, Tensor, WithDType,
};

/// An element type that the kernels compute in: f32, and f64 for checks of gradients.
trait Real: WithDType + Default + tile::Product {
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
        packed_weight::widen_halves(halves, out);
    }

    #[inline(always)]
    fn rounded(self) -> half::bf16 {
        bf16::rounded(self)
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
        for (out, half) in out.iter_mut().zip(halves) {
            *out = half.to_f64();
        }
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

/// The elements of a contiguous argument.
fn contiguous<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout, op: &'static str) -> Result<&'a [T]> {
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| Error::Msg(format!("{op}: an argument is not contiguous")))?;
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// Runs `$body` with `$T` as the element type of `$storage`.
macro_rules! for_real {
    ($storage:expr, $op:expr, $T:ident => $body:expr) => {
        match $storage {
            candle_core::CpuStorage::F32(_) => {
                type $T = f32;
                $body
            }
            candle_core::CpuStorage::F64(_) => {
                type $T = f64;
                $body
            }
            other => {
                Err(candle_core::Error::UnsupportedDTypeForOp(candle_core::backend::BackendStorage::dtype(other), $op))
            }
        }
    };
}

/// Which arguments' gradients somebody asks for.
type Needed<const N: usize> = [bool; N];

/// A function of `N` tensors that a CPU computes: what is left of a custom operation without its plumbing.
trait Kernel<const N: usize>: Send + Sync + 'static {
    const NAME: &'static str;

    /// The shape of the result, or `None` if the arguments' shapes do not fit each other.
    fn shape(&self, arguments: [&[usize]; N]) -> Option<Vec<usize>>;

    /// What a [`Meter`] counts it as.
    fn kind(&self) -> &'static str {
        Self::NAME
    }

    /// Multiplications and additions of the direct method; 0 if it only moves data.
    fn operations(&self, _arguments: [&[usize]; N], _result: &[usize]) -> u64 {
        0
    }

    /// The result for contiguous arguments whose shapes fit.
    fn forward<T: Real>(&self, arguments: [&[T]; N], shapes: [&[usize]; N]) -> Vec<T>;

    /// The gradients of `sum(grad * result)` with respect to the arguments; those that are not needed are not
    /// looked at.
    fn backward<T: Real>(
        &self,
        arguments: [&[T]; N],
        shapes: [&[usize]; N],
        result: &[T],
        grad: &[T],
        needed: Needed<N>,
    ) -> [Vec<T>; N];
}

fn apply<K: Kernel<3>>(kernel: K, [a, b, c]: [&Tensor; 3]) -> Result<Tensor> {
    a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, Operation(kernel))
}

fn apply_2<K: Kernel<2>>(kernel: K, [a, b]: [&Tensor; 2]) -> Result<Tensor> {
    a.contiguous()?.apply_op2(&b.contiguous()?, Operation(kernel))
}

fn apply_1<K: Kernel<1>>(kernel: K, x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Operation(kernel))
}

/// A [`Kernel`] as candle knows operations.
struct Operation<K>(K);

impl<K> Operation<K> {
    fn forward<const N: usize>(&self, storages: [&CpuStorage; N], layouts: [&Layout; N]) -> Result<(CpuStorage, Shape)>
    where
        K: Kernel<N>,
    {
        let shapes = layouts.map(Layout::dims);
        let Some(shape) = self.0.shape(shapes) else {
            candle_core::bail!("{}: shapes {shapes:?} do not fit", K::NAME);
        };
        for_real!(storages[0], K::NAME, T => {
            let mut arguments: [&[T]; N] = [&[]; N];
            for i in 0..N {
                arguments[i] = contiguous::<T>(storages[i], layouts[i], K::NAME)?;
            }
            let operations = || self.0.operations(shapes, &shape);
            let values = meter::measured(self.0.kind(), operations, || self.0.forward(arguments, shapes));
            output(values, shape)
        })
    }

    fn backward<const N: usize>(
        &self,
        arguments: [&Tensor; N],
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; N]>
    where
        K: Kernel<N>,
    {
        let grad = grad.contiguous()?;
        let needed = arguments.map(Tensor::track_op);
        let guards = arguments.map(Tensor::storage_and_layout);
        let (result, grad) = (result.storage_and_layout(), grad.storage_and_layout());
        for_real!(on_cpu(&grad.0, K::NAME)?, K::NAME, T => {
            let mut slices: [&[T]; N] = [&[]; N];
            for (slot, (storage, layout)) in slices.iter_mut().zip(&guards) {
                *slot = contiguous(on_cpu(storage, K::NAME)?, layout, K::NAME)?;
            }
            let result = contiguous(on_cpu(&result.0, K::NAME)?, result.1, K::NAME)?;
            let grad = contiguous(on_cpu(&grad.0, K::NAME)?, grad.1, K::NAME)?;
            let shapes = std::array::from_fn(|i| guards[i].1.dims());
            let values = self.0.backward(slices, shapes, result, grad, needed);
            let mut gradients = [const { None }; N];
            for (i, values) in values.into_iter().enumerate().filter(|&(i, _)| needed[i]) {
                gradients[i] = Some(Tensor::from_vec(values, shapes[i], &Device::Cpu)?);
            }
            Ok(gradients)
        })
    }
}

fn on_cpu<'a>(storage: &'a Storage, op: &'static str) -> Result<&'a CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => candle_core::bail!("{op}: an argument is not on the CPU"),
    }
}

impl<K: Kernel<1>> CustomOp1 for Operation<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward([x], [layout])
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [gradient] = self.backward([x], result, grad)?;
        Ok(gradient)
    }
}

impl<K: Kernel<2>> CustomOp2 for Operation<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward([a, b], [a_layout, b_layout])
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, result: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok(self.backward([a, b], result, grad)?.into())
    }
}

impl<K: Kernel<3>> CustomOp3 for Operation<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
        c: &CpuStorage,
        c_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward([a, b, c], [a_layout, b_layout, c_layout])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.backward([a, b, c], result, grad)?.into())
    }
}

fn zeros<T: Real>(count: usize) -> Vec<T> {
    vec![T::zero(); count]
}

fn output<T: Real>(values: Vec<T>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((T::to_cpu_storage_owned(values), shape.into()))
}
