//! One head's attention of some queries to all keys.

use super::super::addend::Start;
use super::super::bf16::MatmulPrecision;
use super::super::output::Output;
use super::super::panel_row::PANEL;
use super::super::product::add_product;
use super::super::right_factor::Factor;
use super::super::rows::Rows;
use super::super::{Product, zeros};
use super::softmax::RunningSoftmax;
use std::ops::Range;

/// Queries of a block of scores.
pub(super) const QUERIES: usize = 96;

/// Keys of a block of scores; a multiple of a panel.
const KEYS: usize = 256;

/// One head of one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub image: usize,
    /// Its first column.
    pub first: usize,
    pub size: usize,
    /// The columns of all heads.
    pub width: usize,
    pub n: usize,
    pub m: usize,
    pub causal: bool,
}

impl Head {
    pub fn scale(&self) -> f64 {
        1.0 / (self.size as f64).sqrt()
    }

    pub fn columns(&self) -> Range<usize> {
        self.first..self.first + self.size
    }

    pub fn query_rows(&self, queries: &Range<usize>) -> Range<usize> {
        self.image * self.n + queries.start..self.image * self.n + queries.end
    }

    /// The keys that a query of the block may see, in blocks.
    pub fn key_blocks(&self, queries: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (m, end) = (self.m, if self.causal { queries.end.min(self.m) } else { self.m });
        (0..end).step_by(KEYS).map(move |first| first..(first + KEYS).min(m))
    }

    /// How many keys of the block a query sees.
    pub fn seen(&self, query: usize, keys: &Range<usize>) -> usize {
        if self.causal { (query + 1).saturating_sub(keys.start).min(keys.len()) } else { keys.len() }
    }

    /// What rows of this head's columns are multiplied with to give scores.
    pub fn score_factor<T: Product>(&self, x: &[T], scale: f64, products: MatmulPrecision) -> Factor<T> {
        let (x, scale) = (&x[self.image * self.m * self.width + self.first..], T::from_f64(scale));
        Factor::new(self.size, self.m, products, |column, key| x[key * self.width + column] * scale)
    }

    /// What rows of scores are multiplied with, for each block of keys.
    pub fn mixing_factor<T: Product>(&self, x: &[T], scale: f64, products: MatmulPrecision) -> Vec<Factor<T>> {
        let (x, scale) = (&x[self.image * self.m * self.width + self.first..], T::from_f64(scale));
        let factor = |first: usize| {
            let keys = KEYS.min(self.m - first);
            Factor::new(keys, self.size, products, |key, column| x[(first + key) * self.width + column] * scale)
        };
        (0..self.m).step_by(KEYS).map(factor).collect()
    }

    /// `softmax(x[queries] . keys) . values`.
    pub fn attend<T: Product>(
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
            add_mixed(scores, stride, values, &block, &mut Output::new(&mut mixed, width));
        }
        for ((mixed, softmax), row) in mixed.chunks_exact_mut(width).zip(&softmax).zip(0..) {
            let mixed = &mut mixed[..self.size];
            let inverse = T::one() / softmax.sum;
            mixed.iter_mut().for_each(|value| *value *= inverse);
            out.part(row..row + 1, 0..self.size).fill(mixed);
        }
    }

    /// `x[queries] . factor` for a block of keys. The result is the distance between the rows of scores: whole panels, in
    /// which nothing is to be looked for after the last key.
    pub fn scores<T: Product>(
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
        add_product(rows, factor.at_column(self.size, keys.start), Start::Zero, &mut Output::new(scores, stride));
        stride
    }
}

/// `out += weights . factors` for a block of keys, the rows of weights at a distance of `stride`.
pub(super) fn add_mixed<T: Product>(
    weights: &[T],
    stride: usize,
    factors: &[Factor<T>],
    keys: &Range<usize>,
    out: &mut Output<'_, T>,
) {
    let starts: Vec<usize> = (0..out.rows()).map(|row| row * stride).collect();
    let rows = Rows { values: weights, starts: &starts, stretches: &[(0, keys.len())] };
    add_product(rows, factors[keys.start / KEYS].at_column(keys.len(), 0), Start::Output, out);
}
