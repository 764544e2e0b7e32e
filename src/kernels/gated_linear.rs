//! A linear layer and GEGLU after it, without what is between them unless gradients need it.
//!
//! The layer's result is twice as wide as what GEGLU makes of it, and the widest tensor of a transformer: for each block of rows
//! a task computes some columns of both halves, gates them, and writes what comes of it.

use super::activation::{Geglu, gated, geglu};
use super::addend::Addend;
use super::linear::{self, TASK_ROWS};
use super::output::{Output, matrix};
use super::packed_weight::PackedWeight;
use super::panel_row::PANEL;
use super::product::{add_product, add_quantised_product, add_rounded_product};
use super::right_factor::Packed;
use super::rows::Rows;
use super::{Kernel, Needed, Product, apply_2};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Columns of each half that a task computes at a time: both stay in the second cache. MatmulPrecision of bf16 lay the rows out anew each
/// time, which is why there are not fewer.
const COLUMNS: usize = 20 * PANEL;

/// GEGLU (Shazeer 2020) of a linear layer: outputs `[0, n)` times `z * Phi(z)` of outputs `[n, 2 n)`, bit for bit as
/// [`geglu`] of [`linear_packed`](super::linear_packed) gives it. Where `x` depends on variables it is these two: the layer's result
/// is kept for them, as to compute it again is a fifteenth of a training step; parts of a network that are
/// [`recomputed`](super::recomputed) do without.
///
/// # Shapes
/// `x`: `[batch, tokens, in]` or `[batch, in]`; `weight`: `[2 n, in]`; `bias`: `[2 n]`; the result ends in `n`.
///
/// # Errors
/// If the shapes do not fit, or the activations are neither f32 nor f64.
pub fn linear_geglu_packed(x: &Tensor, weight: &PackedWeight, bias: &Tensor) -> Result<Tensor> {
    let is_within_panel = !weight.shape()[0].is_multiple_of(2 * PANEL);
    if is_within_panel || x.track_op() {
        return geglu(&linear::linear_packed(x, weight, bias)?);
    }
    apply_2(GatedLinear(weight.clone()), [x, bias])
}

struct GatedLinear(PackedWeight);

impl Kernel<2> for GatedLinear {
    const NAME: &'static str = "linear, gated";

    fn shape(&self, [x, bias]: [&[usize]; 2]) -> Option<Vec<usize>> {
        let mut shape = linear::output_shape(x, self.0.shape(), bias)?;
        *shape.last_mut()? /= 2;
        Some(shape)
    }

    fn operations(&self, [x, _]: [&[usize]; 2], result: &[usize]) -> u64 {
        2 * linear::operations(x, result)
    }

    fn forward<T: Product>(&self, [x, bias]: [&[T]; 2], _: [&[usize]; 2]) -> Vec<T> {
        let (depth, outputs) = (self.0.shape()[1], self.0.shape()[0] / 2);
        let count = x.len() / depth.max(1);
        let blocks = count.div_ceil(TASK_ROWS);
        let groups = linear::column_groups(blocks, outputs);
        let row_blocks: Vec<_> =
            (0..blocks).map(|block| block * TASK_ROWS..((block + 1) * TASK_ROWS).min(count)).collect();
        let compute = |whole: Output<'_, T>| {
            let outs = whole.split(&row_blocks, &groups).into_par_iter().enumerate();
            outs.for_each_init(Buffers::default, |buffers, (task, mut out)| {
                let (rows, columns) = (&row_blocks[task / groups.len()], &groups[task % groups.len()]);
                self.write_block(&x[rows.start * depth..rows.end * depth], bias, columns, buffers, &mut out);
            });
        };
        // SAFETY: the tasks' blocks cover the matrix, and each sets its own.
        unsafe { matrix(count, outputs, None, compute) }
    }

    /// Of the bias, where it alone learns. What the layer gave is computed again.
    fn backward<T: Product>(
        &self,
        [x, bias]: [&[T]; 2],
        [x_shape, _]: [&[usize]; 2],
        _: &[T],
        grad: &[T],
        needed: Needed<2>,
    ) -> [Vec<T>; 2] {
        let (depth, outputs) = (self.0.shape()[1], self.0.shape()[0]);
        let halves = linear::multiply(x, 1, self.0.packed(), Addend::new(bias, outputs), depth);
        let shape = [&x_shape[..x_shape.len() - 1], &[outputs]].concat();
        let [grad] = Geglu.backward([&halves], [&shape], &[], grad, [true]);
        linear::packed_gradients(&self.0, &grad, needed)
    }
}

/// What a task keeps from one block to the next.
struct Buffers<T: Product> {
    /// The rows as products of bf16 take them.
    rounded: Vec<T::Rounded>,
    /// Or as products of eight bits do.
    quantised: T::Quantised,
    /// Values and gates.
    sums: Vec<T>,
}

impl<T: Product> Default for Buffers<T> {
    fn default() -> Self {
        Self { rounded: Vec::new(), quantised: Default::default(), sums: Vec::new() }
    }
}

impl GatedLinear {
    /// Some rows and columns of the result.
    fn write_block<T: Product>(
        &self,
        x: &[T],
        bias: &[T],
        columns: &Range<usize>,
        buffers: &mut Buffers<T>,
        out: &mut Output<'_, T>,
    ) {
        let (weight, depth, outputs) = (self.0.packed::<T>(), self.0.shape()[1], self.0.shape()[0] / 2);
        let starts: Vec<usize> = (0..out.rows()).map(|row| row * depth).collect();
        let (starts, stretches) = (&starts[..], &[(0, depth)][..]);
        let Buffers { rounded, quantised, sums } = buffers;
        let rows = Rows { values: x, starts, stretches };
        if let Packed::Pairs(_) = weight {
            rounded.resize(x.len(), T::Rounded::default());
            T::round(x, rounded);
        }
        if let Packed::Quads(_) = weight {
            T::quantise(rows, quantised);
        }
        for first in columns.clone().step_by(COLUMNS) {
            let width = COLUMNS.min(columns.end - first);
            let half = out.rows() * width;
            sums.resize(2 * half, T::zero());
            for (first, sums) in [first, outputs + first].into_iter().zip(sums.chunks_exact_mut(half.max(1))) {
                let start = Addend::new(bias, 2 * outputs).of(0, &(first..first + width));
                let mut out = Output::new(sums, width);
                match weight.from(first * depth) {
                    Packed::Pairs(pairs) => {
                        add_rounded_product(Rows { values: rounded, starts, stretches }, pairs, start, &mut out);
                    }
                    Packed::Quads(quads) => add_quantised_product(rows, quantised, quads, start, &mut out),
                    panels => add_product(rows, panels, start, &mut out),
                }
            }
            let (values, gates) = sums.split_at(half);
            let first = first - columns.start;
            let mut out = out.part(0..starts.len(), first..first + width);
            for (row, (values, gate)) in values.chunks_exact(width).zip(gates.chunks_exact(width)).enumerate() {
                // SAFETY: `gated` sets all that it is given.
                gated(values, gate, unsafe { out.unset_row(row) });
            }
        }
    }
}
