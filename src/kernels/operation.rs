//! What is the same for all kernels: their way into candle's operations, onto the tape and to the meter.

use super::meter::{self, Pass};
use super::{Product, Real, dry_run, tape, zeros};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Error, Layout, Result, Shape, Storage, Tensor,
    WithDType,
};
use std::hint::black_box;
use std::sync::Arc;

/// The elements of a contiguous argument.
pub(super) fn contiguous<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
    op: &'static str,
) -> Result<&'a [T]> {
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

pub(super) use for_real;

/// Whether the kernels compute with such a tensor.
pub(crate) fn compute_with(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// Which arguments' gradients somebody asks for.
pub(super) type Needed<const N: usize> = [bool; N];

/// A function of `N` tensors that a CPU computes: what is left of a custom operation without its plumbing.
pub(super) trait Kernel<const N: usize>: Send + Sync + 'static {
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

    /// The same of the gradients, from those of the result: as many for each matrix that is asked for.
    fn gradient_operations(&self, operations: u64, needed: Needed<N>) -> u64 {
        operations * needed.into_iter().take(2).map(u64::from).sum::<u64>()
    }

    /// The blocks that the threads have for themselves at a time while the result is computed, each of so many values, where they
    /// are large.
    fn scratch(&self, _arguments: [&[usize]; N]) -> Vec<usize> {
        Vec::new()
    }

    /// The result for contiguous arguments whose shapes fit.
    fn forward<T: Product>(&self, arguments: [&[T]; N], shapes: [&[usize]; N]) -> Vec<T>;

    /// The gradients of `sum(grad * result)` with respect to the arguments; those that are not needed are not
    /// looked at.
    fn backward<T: Product>(
        &self,
        arguments: [&[T]; N],
        shapes: [&[usize]; N],
        result: &[T],
        grad: &[T],
        needed: Needed<N>,
    ) -> [Vec<T>; N];
}

pub(super) fn apply<K: Kernel<3>>(kernel: K, arguments: [&Tensor; 3]) -> Result<Tensor> {
    let [a, b, c] = &each_contiguous(arguments)?;
    Operation(Arc::new(kernel)).apply([a, b, c], |kernel| a.apply_op3(b, c, kernel))
}

pub(super) fn apply_2<K: Kernel<2>>(kernel: K, arguments: [&Tensor; 2]) -> Result<Tensor> {
    let [a, b] = &each_contiguous(arguments)?;
    Operation(Arc::new(kernel)).apply([a, b], |kernel| a.apply_op2(b, kernel))
}

pub(super) fn apply_1<K: Kernel<1>>(kernel: K, x: &Tensor) -> Result<Tensor> {
    let [x] = &each_contiguous([x])?;
    Operation(Arc::new(kernel)).apply([x], |kernel| x.apply_op1(kernel))
}

fn each_contiguous<const N: usize>(arguments: [&Tensor; N]) -> Result<[Tensor; N]> {
    let mut copies = arguments.map(Tensor::clone);
    for copy in &mut copies {
        *copy = copy.contiguous()?;
    }
    Ok(copies)
}

/// A [`Kernel`] as candle knows operations.
struct Operation<K>(Arc<K>);

impl<K: 'static> Operation<K> {
    /// On the tape, if there is one, else as an operation of candle's.
    fn apply<const N: usize>(
        self,
        arguments: [&Tensor; N],
        plainly: impl FnOnce(Self) -> Result<Tensor>,
    ) -> Result<Tensor>
    where
        K: Kernel<N>,
    {
        let forward = || {
            let guards = arguments.map(Tensor::storage_and_layout);
            let mut storages = Vec::with_capacity(N);
            for (storage, _) in &guards {
                storages.push(on_cpu(storage, K::NAME)?);
            }
            let storages = std::array::from_fn(|i| storages[i]);
            self.forward(storages, std::array::from_fn(|i| guards[i].1))
        };
        let operation = Self(self.0.clone());
        let backward = || -> tape::Backward {
            Box::new(move |arguments, result, grad| {
                let arguments = std::array::from_fn(|i| &arguments[i]);
                Ok(operation.backward::<N>(arguments, result, grad)?.into())
            })
        };
        tape::record(&arguments, forward, backward, || plainly(Self(self.0.clone())))
    }

    fn forward<const N: usize>(&self, storages: [&CpuStorage; N], layouts: [&Layout; N]) -> Result<(CpuStorage, Shape)>
    where
        K: Kernel<N>,
    {
        let shapes = layouts.map(Layout::dims);
        let Some(shape) = self.0.shape(shapes) else {
            candle_core::bail!("{}: shapes {shapes:?} do not fit", K::NAME);
        };
        for_real!(storages[0], K::NAME, T => {
            if dry_run::is_dry_run() {
                let result = zeros::<T>(shape.iter().product());
                let scratch = self.0.scratch(shapes).into_iter().map(Vec::<T>::with_capacity);
                drop(black_box(scratch.collect::<Vec<_>>()));
                return to_storage(result, shape);
            }
            let mut arguments: [&[T]; N] = [&[]; N];
            for i in 0..N {
                arguments[i] = contiguous::<T>(storages[i], layouts[i], K::NAME)?;
            }
            let operations = || self.0.operations(shapes, &shape);
            let work = (self.0.kind(), Pass::Forward);
            let values = meter::measured(work, operations, || self.0.forward(arguments, shapes));
            to_storage(values, shape)
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
        let result_shape = result.dims();
        let (result, grad) = (result.storage_and_layout(), grad.storage_and_layout());
        for_real!(on_cpu(&grad.0, K::NAME)?, K::NAME, T => {
            let mut slices: [&[T]; N] = [&[]; N];
            for (slot, (storage, layout)) in slices.iter_mut().zip(&guards) {
                *slot = contiguous(on_cpu(storage, K::NAME)?, layout, K::NAME)?;
            }
            let result = contiguous(on_cpu(&result.0, K::NAME)?, result.1, K::NAME)?;
            let grad = contiguous(on_cpu(&grad.0, K::NAME)?, grad.1, K::NAME)?;
            let shapes = std::array::from_fn(|i| guards[i].1.dims());
            let operations = || self.0.gradient_operations(self.0.operations(shapes, result_shape), needed);
            let gradients = || self.0.backward(slices, shapes, result, grad, needed);
            let values = meter::measured((self.0.kind(), Pass::Backward), operations, gradients);
            let mut gradients = [const { None }; N];
            for (i, values) in values.into_iter().enumerate().filter(|&(i, _)| needed[i]) {
                gradients[i] = Some(Tensor::from_vec(values, shapes[i], &Device::Cpu)?);
            }
            Ok(gradients)
        })
    }
}

pub(super) fn on_cpu<'a>(storage: &'a Storage, op: &'static str) -> Result<&'a CpuStorage> {
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

pub(super) fn to_storage<T: Real>(values: Vec<T>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((T::to_cpu_storage_owned(values), shape.into()))
}
