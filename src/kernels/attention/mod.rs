//! Multi-head scaled dot-product attention that holds only a block of the scores, and its gradient.
//!
//! The softmax goes over blocks of keys with a running maximum and sum (Milakov and Gimelshein 2018), so that a
//! block of scores stays in the cache; the gradient makes the probabilities again, block by block (Dao et al.
//! 2022, section 3).

mod definition;
mod gradient;
mod head;
mod softmax;

pub use definition::attention_definition;

use super::bf16::MatmulPrecision;
use super::output::{Output, matrix};
use super::panel_row::PANEL;
use super::{Kernel, Needed, Product, apply, zeros};
use candle_core::{Result, Tensor};
use head::{Head, QUERIES};
use rayon::prelude::*;
use std::ops::Range;
use std::slice::from_ref;

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

    /// Keys and values, laid out for the products, of as many heads as there are threads.
    fn scratch(&self, [q, k, _]: [&[usize]; 3]) -> Vec<usize> {
        let heads = (q[0] * self.heads).min(rayon::current_num_threads());
        vec![k[1].next_multiple_of(PANEL) * (q[2] / self.heads).next_multiple_of(PANEL); 2 * heads]
    }

    fn forward<T: Product>(&self, [q, k, v]: [&[T]; 3], [q_shape, k_shape, _]: [&[usize]; 3]) -> Vec<T> {
        let (rows, columns) = self.rows_and_columns(q_shape);
        let compute = |whole: Output<'_, T>| {
            let heads = whole.split(&rows, &columns).into_par_iter().zip(self.heads(q_shape, k_shape));
            heads.for_each(|(out, head)| {
                let keys = head.score_factor(k, head.scale(), self.products);
                let values = head.mixing_factor(v, 1.0, self.products);
                let blocks: Vec<_> = (0..head.n).step_by(QUERIES).map(|i| i..(i + QUERIES).min(head.n)).collect();
                let columns = 0..head.size;
                let outs = out.split(&blocks, from_ref(&columns)).into_par_iter().zip(&blocks);
                outs.for_each_init(Vec::new, |scores, (mut out, queries)| {
                    head.attend(q, queries, &keys, &values, scores, &mut out);
                });
            });
        };
        // SAFETY: the tasks' queries and heads cover the result, and each sets its block.
        unsafe { matrix(q_shape[0] * q_shape[1], q_shape[2], None, compute) }
    }

    fn backward<T: Product>(
        &self,
        [q, k, v]: [&[T]; 3],
        [q_shape, k_shape, _]: [&[usize]; 3],
        out: &[T],
        grad: &[T],
        _: Needed<3>,
    ) -> [Vec<T>; 3] {
        let mut gradients = [zeros::<T>(q.len()), zeros::<T>(k.len()), zeros::<T>(v.len())];
        let [grad_q, grad_k, grad_v] = &mut gradients;
        let split = |gradient, shape: &[usize]| {
            let (rows, columns) = self.rows_and_columns(shape);
            Output::<T>::new(gradient, shape[2]).split(&rows, &columns)
        };
        let outs = split(grad_q, q_shape).into_par_iter().zip(split(grad_k, k_shape)).zip(split(grad_v, k_shape));
        outs.zip(self.heads(q_shape, k_shape)).for_each(|(((of_q, of_k), of_v), head)| {
            head.gradient([q, k, v], out, grad, [of_q, of_k, of_v]);
        });
        gradients
    }
}

impl Attention {
    /// Those of all images, the first image's first.
    fn heads(&self, q_shape: &[usize], k_shape: &[usize]) -> Vec<Head> {
        let (batch, n, width, m) = (q_shape[0], q_shape[1], q_shape[2], k_shape[1]);
        let (heads, size) = (self.heads, width / self.heads);
        let head =
            |i: usize| Head { image: i / heads, first: i % heads * size, size, width, n, m, causal: self.causal };
        (0..batch * heads).map(head).collect()
    }

    /// The rows of each image, and the columns of each head.
    fn rows_and_columns(&self, shape: &[usize]) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
        let (rows, size) = (shape[1], shape[2] / self.heads);
        let equal = |count: usize, len: usize| (0..count).map(|i| i * len..(i + 1) * len).collect();
        (equal(shape[0], rows), equal(self.heads, size))
    }
}
