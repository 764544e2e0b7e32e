//! CPU kernels behind candle custom operations; nothing else in the crate knows an instruction set.
//!
//! Every kernel has a *definition*, the same function written with candle's own differentiable operations.
//! The definition is what other devices run, what tests hold the kernel against, and, where no shorter
//! formula is given, what the kernel's gradient is computed from. Activations are channels-last,
//! `[batch, height, width, channels]`, or tokens, `[batch, tokens, channels]`. Each image of a batch is
//! computed by itself, in an order that does not depend on the number of threads, so neither the batch
//! size nor the thread count changes a bit of a picture.
#![allow(unsafe_code)]

mod attention;
mod conv;
mod linear;
mod norm;
mod simd;

pub use attention::{attention, attention_definition};
pub use conv::{ConvGeometry, conv2d};
pub use linear::linear;
pub use norm::{Activation, group_norm, group_norm_definition, layer_norm, layer_norm_definition};

use candle_core::{CpuStorage, CustomOp3, Error, Layout, Result, Shape, Tensor, Var, WithDType};
use gemm::Parallelism;
use rayon::prelude::*;

/// An element type that the kernels compute in: f32, and f64 for checks of gradients.
trait Real: WithDType {
    /// Below every number.
    const NEG_INFINITY: Self;

    /// The exponential; in f32 branch-free, to within 2 units in the last place on `[-87, 88]`, and
    /// saturating outside.
    fn exp_approx(self) -> Self;
}

impl Real for f32 {
    const NEG_INFINITY: Self = Self::NEG_INFINITY;

    #[inline(always)]
    fn exp_approx(self) -> Self {
        simd::exp_f32(self)
    }
}

impl Real for f64 {
    const NEG_INFINITY: Self = Self::NEG_INFINITY;

    #[inline(always)]
    fn exp_approx(self) -> Self {
        self.exp()
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
use for_real;

/// A function of three tensors that a CPU computes: what is left of a custom operation without its plumbing.
trait Kernel: Send + Sync + 'static {
    const NAME: &'static str;

    /// The shape of the result, or `None` if the arguments' shapes do not fit each other.
    fn shape(&self, arguments: [&[usize]; 3]) -> Option<Vec<usize>>;

    /// The result for contiguous arguments whose shapes fit.
    fn forward<T: Real>(&self, arguments: [&[T]; 3], shapes: [&[usize]; 3]) -> Vec<T>;

    /// The gradients of `sum(grad * result)`.
    fn backward(&self, arguments: [&Tensor; 3], grad: &Tensor) -> Result<[Option<Tensor>; 3]>;
}

fn apply<K: Kernel>(kernel: K, [a, b, c]: [&Tensor; 3]) -> Result<Tensor> {
    a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, Operation(kernel))
}

/// A [`Kernel`] as candle knows operations.
struct Operation<K>(K);

impl<K: Kernel> CustomOp3 for Operation<K> {
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
        let shapes = [a_layout.dims(), b_layout.dims(), c_layout.dims()];
        let Some(shape) = self.0.shape(shapes) else {
            candle_core::bail!("{}: shapes {shapes:?} do not fit", K::NAME);
        };
        for_real!(a, K::NAME, T => {
            let arguments = [
                contiguous::<T>(a, a_layout, K::NAME)?,
                contiguous::<T>(b, b_layout, K::NAME)?,
                contiguous::<T>(c, c_layout, K::NAME)?,
            ];
            output(self.0.forward(arguments, shapes), shape)
        })
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        Ok(self.0.backward([a, b, c], grad)?.into())
    }
}

fn zeros<T: Real>(count: usize) -> Vec<T> {
    vec![T::zero(); count]
}

fn output<T: Real>(values: Vec<T>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((T::to_cpu_storage_owned(values), shape.into()))
}

/// The gradients of `sum(grad * definition(args))` by candle's automatic differentiation.
fn gradient_by_definition<const N: usize>(
    args: [&Tensor; N],
    grad: &Tensor,
    definition: impl FnOnce([&Tensor; N]) -> Result<Tensor>,
) -> Result<[Option<Tensor>; N]> {
    let vars = args.map(|t| Var::from_tensor(&t.detach()));
    let mut refs = Vec::with_capacity(N);
    for var in vars {
        refs.push(var?);
    }
    let tensors: [&Tensor; N] = std::array::from_fn(|i| refs[i].as_tensor());
    let grads = (definition(tensors)? * grad)?.sum_all()?.backward()?;
    Ok(std::array::from_fn(|i| grads.get(tensors[i]).cloned()))
}

/// Computes every image of a batch by itself: one on each thread if there are enough of them, else one after the
/// other with all threads. The result is the same.
fn for_each_image<T: Real>(
    (x, image_len): (&[T], usize),
    (out, out_len): (&mut [T], usize),
    compute: impl Fn(&[T], &mut [T], Parallelism) + Sync,
) {
    let images = out.len() / out_len.max(1);
    if images > 1 && images >= rayon::current_num_threads() {
        let pairs = out.par_chunks_exact_mut(out_len).zip(x.par_chunks_exact(image_len));
        pairs.for_each(|(out, x)| compute(x, out, Parallelism::None));
    } else if images > 0 {
        let pairs = out.chunks_exact_mut(out_len).zip(x.chunks_exact(image_len));
        pairs.for_each(|(out, x)| compute(x, out, Parallelism::Rayon(0)));
    }
}

/// `lhs @ rhs^T` into the rows of `out`, which hold what is to be added (a bias) before.
///
/// `lhs` is `[rows, k]` and `rhs` `[cols, k]`, both row-major; `out` is `[rows, cols]`.
fn add_product_transposed<T: Real>(
    out: &mut [T],
    lhs: &[T],
    rhs: &[T],
    (rows, cols, k): (usize, usize, usize),
    parallelism: Parallelism,
) {
    assert!(out.len() == rows * cols && lhs.len() == rows * k && rhs.len() == cols * k);
    // SAFETY: the three slices are exactly as large as their shapes and row-major strides say, `out` is
    // borrowed mutably, and gemm reads and writes nothing else.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            k,
            out.as_mut_ptr(),
            1,
            cols as isize,
            true,
            lhs.as_ptr(),
            1,
            k as isize,
            rhs.as_ptr(),
            k as isize,
            1,
            T::one(),
            T::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Fills every row of `out` with `row`.
fn fill_rows<T: Copy>(out: &mut [T], row: &[T]) {
    out.chunks_exact_mut(row.len()).for_each(|chunk| chunk.copy_from_slice(row));
}
