//! The sum of two tensors, on all cores.

use super::meter::{Pass, measured};
use super::simd::multiversion;
use super::{Real, contiguous, for_real, on_cpu, tape, to_storage, written};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use std::mem::MaybeUninit;

/// Values that one task adds.
const TASK_LEN: usize = 1 << 15;

/// `a + b`.
///
/// # Shapes
/// `a` and `b` are alike, and so is the result.
///
/// # Errors
/// If the shapes differ, or the element type is neither f32 nor f64.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (&a.contiguous()?, &b.contiguous()?);
    let forward = || {
        let ((a, a_layout), (b, b_layout)) = (a.storage_and_layout(), b.storage_and_layout());
        Add.cpu_fwd(on_cpu(&a, "add")?, a_layout, on_cpu(&b, "add")?, b_layout)
    };
    let backward = || -> tape::Backward { Box::new(|_, _, grad| Ok(vec![Some(grad.clone()), Some(grad.clone())])) };
    tape::record(&[a, b], forward, backward, || a.apply_op2(b, Add))
}

/// No [`super::Kernel`], because its gradients are the result's and need not be computed.
struct Add;

impl CustomOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if a_layout.dims() != b_layout.dims() {
            candle_core::bail!("add: shapes {:?} and {:?} do not fit", a_layout.dims(), b_layout.dims());
        }
        for_real!(a, "add", T => {
            let (a, b) = (contiguous::<T>(a, a_layout, "add")?, contiguous::<T>(b, b_layout, "add")?);
            to_storage(measured(("add", Pass::Forward), || 0, || sum(a, b)), a_layout.dims())
        })
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(grad.clone()), Some(grad.clone())))
    }
}

fn sum<T: Real>(a: &[T], b: &[T]) -> Vec<T> {
    // SAFETY: `add_values` sets all that it is given.
    unsafe { written(a.len(), TASK_LEN, |at, sums| add_values(&a[at.clone()], &b[at], sums)) }
}

multiversion! {
    fn add_values<T: Real>(a: &[T], b: &[T], sums: &mut [MaybeUninit<T>]) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            sum.write(a + b);
        }
    }
}
