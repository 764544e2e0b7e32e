//! The gradient of one head's attention.

use super::super::bf16::MatmulPrecision;
use super::super::output::Output;
use super::super::panel_row::PANEL;
use super::super::product::add_outer_products;
use super::super::tile::Run;
use super::super::{Product, Real};
use super::head::{Head, QUERIES, add_mixed};
use super::softmax::RunningSoftmax;

impl Head {
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
    pub fn gradient<T: Product>(
        &self,
        [q, k, v]: [&[T]; 3],
        out: &[T],
        grad: &[T],
        [mut grad_q, mut grad_k, mut grad_v]: [Output<'_, T>; 3],
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
                add_outer_products([&p, &grads], strides, &runs, grad_v.part(block.clone(), 0..self.size));
                add_outer_products([&s, &scaled_q], strides, &runs, grad_k.part(block.clone(), 0..self.size));
                let mut to_q = grad_q.part(queries.clone(), 0..self.size);
                add_mixed(&s, stride, &key_columns, &block, &mut to_q);
            }
        }
    }
}
