//! Multi-head scaled dot-product attention that holds only a slice of the scores.

use super::simd::multiversion;
use super::{Kernel, Real, apply, gradient_by_definition, zeros};
use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

/// Query rows whose scores one task of the kernel holds.
const QUERY_ROWS: usize = 128;

/// The most scores that the definition materialises at once.
const DEFINITION_SCORES: usize = 1 << 24;

/// `softmax(q k^T / sqrt(d)) v` for each head (Vaswani et al. 2017, equation 1).
///
/// # Shapes
/// `q`: `[batch, n, heads * d]`; `k`, `v`: `[batch, m, heads * d]`; the result is as `q`. If `causal`, query
/// `i` sees keys 0 to `i`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    apply(Attention { heads, causal }, [q, k, v])
}

/// What [`attention`] computes, in candle's own operations; the softmax is in f32 at least.
///
/// # Errors
/// If the shapes do not fit.
pub fn attention_definition(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (batch, n, width) = q.dims3()?;
    let m = k.dim(1)?;
    let split = |x: &Tensor, image: usize| -> Result<Tensor> {
        x.get(image)?.reshape(((), heads, width / heads))?.transpose(0, 1)?.contiguous()
    };
    let rows = (DEFINITION_SCORES / (heads * m).max(1)).clamp(1, n.max(1));
    let scale = 1.0 / ((width / heads) as f64).sqrt();
    let mut images = Vec::with_capacity(batch);
    for image in 0..batch {
        let (q, k, v) = (split(q, image)?, split(k, image)?, split(v, image)?);
        let keys = k.t()?;
        let mut slices = Vec::new();
        for first in (0..n).step_by(rows) {
            let q = q.narrow(1, first, rows.min(n - first))?.contiguous()?;
            let mut scores = (q.matmul(&keys)? * scale)?;
            if matches!(scores.dtype(), DType::F16 | DType::BF16) {
                scores = scores.to_dtype(DType::F32)?;
            }
            if causal {
                scores = scores.broadcast_add(&causal_mask(first, q.dim(1)?, m, &scores)?)?;
            }
            let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
            slices.push(weights.matmul(&v)?);
        }
        images.push(Tensor::cat(&slices, 1)?.transpose(0, 1)?.contiguous()?.reshape((n, width))?);
    }
    Tensor::stack(&images, 0)
}

fn causal_mask(first: usize, rows: usize, m: usize, like: &Tensor) -> Result<Tensor> {
    let values: Vec<f32> = (0..rows)
        .flat_map(|row| (0..m).map(move |key| if key > first + row { f32::NEG_INFINITY } else { 0.0 }))
        .collect();
    Tensor::from_vec(values, (rows, m), like.device())?.to_dtype(like.dtype())
}

struct Attention {
    heads: usize,
    causal: bool,
}

impl Kernel for Attention {
    const NAME: &'static str = "attention";

    fn shape(&self, [q, k, v]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let (&[batch, _, width], &[k_batch, _, k_width]) = (q, k) else { return None };
        let fits = k == v && k_batch == batch && k_width == width && width.is_multiple_of(self.heads);
        fits.then(|| q.to_vec())
    }

    fn forward<T: Real>(&self, [q, k, v]: [&[T]; 3], [q_shape, k_shape, _]: [&[usize]; 3]) -> Vec<T> {
        let (batch, n, width, m) = (q_shape[0], q_shape[1], q_shape[2], k_shape[1]);
        let mut out = zeros::<T>(q.len());
        for image in 0..batch {
            let of = |len: usize| image * len * width..(image + 1) * len * width;
            let (k, v) = (&k[of(m)], &v[of(m)]);
            out[of(n)]
                .par_chunks_mut(QUERY_ROWS * width)
                .zip(q[of(n)].par_chunks(QUERY_ROWS * width))
                .enumerate()
                .for_each(|(i, (out, q))| self.slice(q, k, v, i * QUERY_ROWS, width, out));
        }
        out
    }

    fn backward(&self, arguments: [&Tensor; 3], grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        gradient_by_definition(arguments, grad, |[q, k, v]| attention_definition(q, k, v, self.heads, self.causal))
    }
}

impl Attention {
    /// All heads of a slice of the query rows of one image, `first` being the first row's position.
    fn slice<T: Real>(&self, q: &[T], k: &[T], v: &[T], first: usize, width: usize, out: &mut [T]) {
        let (rows, m, d) = (q.len() / width, k.len() / width, width / self.heads);
        assert!(out.len() == rows * width && v.len() == m * width);
        let scale = T::from_f64(1.0 / (d as f64).sqrt());
        let mut scores = zeros::<T>(rows * m);
        let row_stride = width as isize;
        for head in 0..self.heads {
            let offset = head * d;
            // SAFETY: with the offset of the head, the strides address columns `offset..offset + d` of the
            // `rows` rows of `q` and of the `m` rows of `k`, which the lengths asserted above hold; `scores`
            // is `[rows, m]`, and only it is written.
            unsafe {
                gemm::gemm(
                    rows,
                    m,
                    d,
                    scores.as_mut_ptr(),
                    1,
                    m as isize,
                    false,
                    q.as_ptr().add(offset),
                    1,
                    row_stride,
                    k.as_ptr().add(offset),
                    row_stride,
                    1,
                    T::zero(),
                    scale,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
            for (row, scores) in scores.chunks_exact_mut(m).enumerate() {
                let seen = if self.causal { (first + row + 1).min(m) } else { m };
                softmax_row(&mut scores[..seen]);
                scores[seen..].fill(T::zero());
            }
            // SAFETY: as above; the columns `offset..offset + d` of `out` are written, and `out` is borrowed
            // mutably.
            unsafe {
                gemm::gemm(
                    rows,
                    d,
                    m,
                    out.as_mut_ptr().add(offset),
                    1,
                    row_stride,
                    false,
                    scores.as_ptr(),
                    1,
                    m as isize,
                    v.as_ptr().add(offset),
                    1,
                    row_stride,
                    T::zero(),
                    T::one(),
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
    }
}

multiversion! {
    /// Softmax in place, with the largest value subtracted first.
    fn softmax_row<T: Real>(row: &mut [T]) {
        // Several running values at a time, so that the loops are not one chain of dependent operations.
        const LANES: usize = 16;
        let mut largest = [T::NEG_INFINITY; LANES];
        for chunk in row.chunks(LANES) {
            for (largest, &x) in largest.iter_mut().zip(chunk) {
                *largest = if x > *largest { x } else { *largest };
            }
        }
        let max = largest.into_iter().fold(T::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let mut sums = [T::zero(); LANES];
        for chunk in row.chunks_mut(LANES) {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = (*x - max).exp_approx();
                *sum += *x;
            }
        }
        let inverse = T::one() / sums.into_iter().fold(T::zero(), |a, b| a + b);
        for x in row.iter_mut() {
            *x *= inverse;
        }
    }
}
