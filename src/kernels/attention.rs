//! Multi-head scaled dot-product attention that holds only a block of the scores, and its gradient.
//!
//! The softmax goes over blocks of keys with a running maximum and sum (Milakov and Gimelshein 2018), so that a
//! block of scores stays in the cache; the gradient makes the probabilities again, block by block (Dao et al.
//! 2022, section 3).

use super::bf16::MatmulPrecision;
use super::output::{Output, Start, matrix};
use super::packed_weight::Factor;
use super::simd::multiversion;
use super::tile::{PANEL, Rows, Run, add_outer_products, add_product};
use super::{Kernel, Needed, Real, apply, zeros};
use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops::{softmax, softmax_last_dim};
use rayon::prelude::*;
use std::ops::Range;

/// Queries of a block of scores.
const QUERIES: usize = 96;

/// Keys of a block of scores; a multiple of a panel.
const KEYS: usize = 256;

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
    attention_with(q, k, v, heads, causal, MatmulPrecision::Full)
}

/// The same with the exactness of its products given. Scores and sums are in the type of the arguments in any case, and so
/// is all of the gradient.
///
/// # Shapes
/// As [`attention`].
///
/// # Errors
/// As [`attention`].
pub fn attention_with(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    causal: bool,
    products: MatmulPrecision,
) -> Result<Tensor> {
    apply(Attention { heads, causal, products }, [q, k, v])
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
            // Scaled before the product, which may be too large for f16 without.
            let q = (q.narrow(1, first, rows.min(n - first))? * scale)?;
            let mut scores = q.matmul(&keys)?;
            if matches!(scores.dtype(), DType::F16 | DType::BF16) {
                scores = scores.to_dtype(DType::F32)?;
            }
            if causal {
                scores = scores.broadcast_add(&causal_mask(first, q.dim(1)?, m, &scores)?)?;
            }
            // The fused one has no gradient.
            let fused = !scores.track_op();
            let weights = if fused { softmax_last_dim(&scores)? } else { softmax(&scores, D::Minus1)? };
            slices.push(weights.to_dtype(v.dtype())?.matmul(&v)?);
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
    products: MatmulPrecision,
}

impl Kernel<3> for Attention {
    const NAME: &'static str = "attention";

    fn shape(&self, [q, k, v]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let (&[batch, _, width], &[k_batch, _, k_width]) = (q, k) else { return None };
        let fits = width > 0 && k == v && k_batch == batch && k_width == width && width.is_multiple_of(self.heads);
        fits.then(|| q.to_vec())
    }

    fn kind(&self) -> &'static str {
        if self.causal { "attention, causal" } else { Self::NAME }
    }

    fn operations(&self, [q, k, _]: [&[usize]; 3], _: &[usize]) -> u64 {
        4 * q.iter().product::<usize>() as u64 * k[1] as u64
    }

    fn forward<T: Real>(&self, [q, k, v]: [&[T]; 3], [q_shape, k_shape, _]: [&[usize]; 3]) -> Vec<T> {
        let compute = |whole: &Output<'_, T>| {
            self.for_each_head(q_shape, k_shape, |head| {
                let keys = head.score_factor(k, head.scale(), self.products);
                let values = head.mixing_factor(v, 1.0, self.products);
                (0..head.n.div_ceil(QUERIES)).into_par_iter().for_each_init(Vec::new, |scores, block| {
                    let queries = block * QUERIES..((block + 1) * QUERIES).min(head.n);
                    // SAFETY: every task has some queries of an image and a head's columns to itself.
                    let mut out = unsafe { whole.part(head.query_rows(&queries), head.columns()) };
                    head.attend(q, &queries, &keys, &values, scores, &mut out);
                });
            });
        };
        // SAFETY: the tasks' queries and heads cover the result, and each sets its block.
        unsafe { matrix(q.len(), q_shape[2], compute) }
    }

    fn backward<T: Real>(
        &self,
        [q, k, v]: [&[T]; 3],
        [q_shape, k_shape, _]: [&[usize]; 3],
        out: &[T],
        grad: &[T],
        _: Needed<3>,
    ) -> [Vec<T>; 3] {
        let mut gradients = [zeros::<T>(q.len()), zeros::<T>(k.len()), zeros::<T>(v.len())];
        let wholes = gradients.each_mut().map(|gradient| Output::new(gradient, q_shape[2]));
        self.for_each_head(q_shape, k_shape, |head| {
            let keys = head.key_rows(&(0..head.m));
            let parts = [head.query_rows(&(0..head.n)), keys.clone(), keys];
            // SAFETY: every task has an image's rows and a head's columns to itself.
            let [grad_q, grad_k, grad_v] =
                std::array::from_fn(|i| unsafe { wholes[i].part(parts[i].clone(), head.columns()) });
            head.gradient([q, k, v], out, grad, [grad_q, grad_k, grad_v]);
        });
        gradients
    }
}

impl Attention {
    fn for_each_head(&self, q_shape: &[usize], k_shape: &[usize], compute: impl Fn(Head) + Sync) {
        let (batch, n, width, m) = (q_shape[0], q_shape[1], q_shape[2], k_shape[1]);
        let (heads, size) = (self.heads, width / self.heads);
        (0..batch * heads).into_par_iter().for_each(|task| {
            compute(Head { image: task / heads, first: task % heads * size, size, width, n, m, causal: self.causal });
        });
    }
}

/// One head of one image.
#[derive(Debug, Clone, Copy)]
struct Head {
    image: usize,
    /// Its first column.
    first: usize,
    size: usize,
    /// The columns of all heads.
    width: usize,
    n: usize,
    m: usize,
    causal: bool,
}

impl Head {
    fn scale(&self) -> f64 {
        1.0 / (self.size as f64).sqrt()
    }

    fn columns(&self) -> Range<usize> {
        self.first..self.first + self.size
    }

    fn query_rows(&self, queries: &Range<usize>) -> Range<usize> {
        self.image * self.n + queries.start..self.image * self.n + queries.end
    }

    fn key_rows(&self, keys: &Range<usize>) -> Range<usize> {
        self.image * self.m + keys.start..self.image * self.m + keys.end
    }

    /// The keys that a query of the block may see, in blocks.
    fn key_blocks(&self, queries: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (m, end) = (self.m, if self.causal { queries.end.min(self.m) } else { self.m });
        (0..end).step_by(KEYS).map(move |first| first..(first + KEYS).min(m))
    }

    /// How many keys of the block a query sees.
    fn seen(&self, query: usize, keys: &Range<usize>) -> usize {
        if self.causal { (query + 1).saturating_sub(keys.start).min(keys.len()) } else { keys.len() }
    }

    /// What rows of this head's columns are multiplied with to give scores.
    fn score_factor<T: Real>(&self, x: &[T], scale: f64, products: MatmulPrecision) -> Factor<T> {
        let (x, scale) = (&x[self.image * self.m * self.width + self.first..], T::from_f64(scale));
        Factor::new(self.size, self.m, products, |column, key| x[key * self.width + column] * scale)
    }

    /// What rows of scores are multiplied with, for each block of keys.
    fn mixing_factor<T: Real>(&self, x: &[T], scale: f64, products: MatmulPrecision) -> Vec<Factor<T>> {
        let (x, scale) = (&x[self.image * self.m * self.width + self.first..], T::from_f64(scale));
        let factor = |first: usize| {
            let keys = KEYS.min(self.m - first);
            Factor::new(keys, self.size, products, |key, column| x[(first + key) * self.width + column] * scale)
        };
        (0..self.m).step_by(KEYS).map(factor).collect()
    }

    /// `softmax(x[queries] . keys) . values`.
    fn attend<T: Real>(
        &self,
        x: &[T],
        queries: &Range<usize>,
        keys: &Factor<T>,
        values: &[Factor<T>],
        scores: &mut Vec<T>,
        out: &mut Output<'_, T>,
    ) {
        // Whole panels, so that no product has to stop within one.
        let width = self.size.next_multiple_of(PANEL);
        let mut mixed = zeros::<T>(queries.len() * width);
        let mut softmax = vec![RunningSoftmax::new(); queries.len()];
        for block in self.key_blocks(queries) {
            let stride = self.scores(x, queries, keys, &block, scores);
            let rows = scores.chunks_exact_mut(stride).zip(mixed.chunks_exact_mut(width));
            for (((row, mixed), softmax), query) in rows.zip(&mut softmax).zip(queries.clone()) {
                let factor = softmax.add(self.seen(query, &block), &mut row[..block.len()]);
                if factor != T::one() {
                    mixed.iter_mut().for_each(|value| *value *= factor);
                }
            }
            add_mixed(scores, stride, values, &block, &Output::new(&mut mixed, width));
        }
        for ((mixed, softmax), row) in mixed.chunks_exact_mut(width).zip(&softmax).zip(0..) {
            let mixed = &mut mixed[..self.size];
            let inverse = T::one() / softmax.sum;
            mixed.iter_mut().for_each(|value| *value *= inverse);
            // SAFETY: a row of this task's own block.
            unsafe { out.part(row..row + 1, 0..self.size) }.fill(mixed);
        }
    }

    /// `x[queries] . factor` for a block of keys. The result is the distance between the rows of scores: whole panels, in
    /// which nothing is to be looked for after the last key.
    fn scores<T: Real>(
        &self,
        x: &[T],
        queries: &Range<usize>,
        factor: &Factor<T>,
        keys: &Range<usize>,
        scores: &mut Vec<T>,
    ) -> usize {
        let stride = keys.len().next_multiple_of(PANEL);
        scores.resize(queries.len() * stride, T::zero());
        let starts: Vec<usize> = self.query_rows(queries).map(|row| row * self.width + self.first).collect();
        let rows = Rows { values: x, starts: &starts, stretches: &[(0, self.size)] };
        add_product(rows, factor.at_column(self.size, keys.start), Start::Zero, &Output::new(scores, stride));
        stride
    }

    /// The head's columns of the queries' rows, with room after the last for a whole panel.
    fn queries<T: Real>(&self, x: &[T], scale: f64) -> Vec<T> {
        let scale = T::from_f64(scale);
        let rows = self.query_rows(&(0..self.n));
        let mut copy = Vec::with_capacity(self.n * self.size + PANEL);
        for row in x[rows.start * self.width..rows.end * self.width].chunks_exact(self.width) {
            copy.extend(row[self.columns()].iter().map(|&value| value * scale));
        }
        copy.resize(self.n * self.size + PANEL, T::zero());
        copy
    }

    /// With probabilities `p = softmax(scores)` and `s = p * (grad v^T - sum(grad * out))`, the gradients are
    /// `s k`, `s^T q`, both scaled as the scores are, and `p^T grad`.
    fn gradient<T: Real>(
        &self,
        [q, k, v]: [&[T]; 3],
        out: &[T],
        grad: &[T],
        [grad_q, grad_k, grad_v]: [Output<'_, T>; 3],
    ) {
        let [keys, values] =
            [(k, self.scale()), (v, 1.0)].map(|(x, scale)| self.score_factor(x, scale, MatmulPrecision::Full));
        let key_columns = self.mixing_factor(k, self.scale(), MatmulPrecision::Full);
        let (scaled_q, grads, outs) = (self.queries(q, self.scale()), self.queries(grad, 1.0), self.queries(out, 1.0));
        let (mut p, mut s) = (Vec::new(), Vec::new());
        for first in (0..self.n).step_by(QUERIES) {
            let queries = first..(first + QUERIES).min(self.n);
            let mut softmax = vec![RunningSoftmax::new(); queries.len()];
            for block in self.key_blocks(&queries) {
                let stride = self.scores(q, &queries, &keys, &block, &mut p);
                for ((row, softmax), query) in p.chunks_exact_mut(stride).zip(&mut softmax).zip(queries.clone()) {
                    softmax.add(self.seen(query, &block), &mut row[..block.len()]);
                }
            }
            for block in self.key_blocks(&queries) {
                let stride = self.scores(q, &queries, &keys, &block, &mut p);
                self.scores(grad, &queries, &values, &block, &mut s);
                let rows = p.chunks_exact_mut(stride).zip(s.chunks_exact_mut(stride));
                for (((p, s), softmax), query) in rows.zip(&softmax).zip(queries.clone()) {
                    let (p, s) = (&mut p[..block.len()], &mut s[..block.len()]);
                    let of = query * self.size..(query + 1) * self.size;
                    let mean = grads[of.clone()].iter().zip(&outs[of]).fold(T::zero(), |sum, (&g, &o)| sum + g * o);
                    softmax.probabilities(self.seen(query, &block), p);
                    p.iter().zip(s).for_each(|(&p, s)| *s = p * (*s - mean));
                }
                let runs = [Run { left: 0, right: queries.start * self.size, count: queries.len() }];
                let strides = [stride, self.size];
                // SAFETY: these are the only uses of this task's own outputs, one after the other.
                let [to_q, to_k, to_v] = unsafe {
                    [
                        grad_q.part(queries.clone(), 0..self.size),
                        grad_k.part(block.clone(), 0..self.size),
                        grad_v.part(block.clone(), 0..self.size),
                    ]
                };
                add_outer_products([&p, &grads], strides, &runs, to_v);
                add_outer_products([&s, &scaled_q], strides, &runs, to_k);
                add_mixed(&s, stride, &key_columns, &block, &to_q);
            }
        }
    }
}

/// `out += weights . factors` for a block of keys, the rows of weights at a distance of `stride`.
fn add_mixed<T: Real>(weights: &[T], stride: usize, factors: &[Factor<T>], keys: &Range<usize>, out: &Output<'_, T>) {
    let starts: Vec<usize> = (0..out.rows()).map(|row| row * stride).collect();
    let rows = Rows { values: weights, starts: &starts, stretches: &[(0, keys.len())] };
    add_product(rows, factors[keys.start / KEYS].at_column(keys.len(), 0), Start::Output, out);
}

/// A softmax whose values come in blocks.
#[derive(Debug, Clone, Copy)]
struct RunningSoftmax<T> {
    max: T,
    /// Of the exponentials of the differences from the largest value.
    sum: T,
}

impl<T: Real> RunningSoftmax<T> {
    fn new() -> Self {
        Self { max: T::NEG_INFINITY, sum: T::zero() }
    }

    /// Makes exponentials of the first `seen` scores and zeros of the rest; what was summed with the
    /// exponentials before has to be multiplied by the result.
    fn add(&mut self, seen: usize, row: &mut [T]) -> T {
        let (scores, unseen) = row.split_at_mut(seen);
        unseen.fill(T::zero());
        if seen == 0 {
            return T::one();
        }
        let largest = max_of(scores);
        let max = if largest > self.max { largest } else { self.max };
        let factor = if self.sum == T::zero() { T::zero() } else { (self.max - max).exp_approx::<false>() };
        self.sum = self.sum * factor + exponentials(scores, max);
        self.max = max;
        factor
    }

    /// Makes probabilities of the first `seen` scores and zeros of the rest.
    fn probabilities(&self, seen: usize, row: &mut [T]) {
        let (scores, unseen) = row.split_at_mut(seen);
        unseen.fill(T::zero());
        exponentials(scores, self.max);
        let inverse = T::one() / self.sum;
        scores.iter_mut().for_each(|p| *p *= inverse);
    }
}

/// Several running values at a time, so that a loop is not one chain of dependent operations.
const LANES: usize = 16;

multiversion! {
    fn max_of<T: Real>(row: &[T]) -> T {
        let (chunks, rest) = row.as_chunks::<LANES>();
        let mut largest = [T::NEG_INFINITY; LANES];
        for chunk in chunks {
            for (largest, &x) in largest.iter_mut().zip(chunk) {
                *largest = if x > *largest { x } else { *largest };
            }
        }
        largest.iter().chain(rest).fold(T::NEG_INFINITY, |a, &b| if b > a { b } else { a })
    }
}

multiversion! {
    /// `exp(x - max)` in place, and the sum.
    fn exponentials<T: Real, FUSED>(row: &mut [T], max: T) -> T {
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        let mut sums = [T::zero(); LANES];
        for chunk in chunks {
            for (sum, x) in sums.iter_mut().zip(chunk) {
                *x = (*x - max).exp_approx::<FUSED>();
                *sum += *x;
            }
        }
        for (sum, x) in sums.iter_mut().zip(rest) {
            *x = (*x - max).exp_approx::<FUSED>();
            *sum += *x;
        }
        sums.into_iter().fold(T::zero(), |a, b| a + b)
    }
}
