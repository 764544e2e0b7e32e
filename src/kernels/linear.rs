//! `y = x W^T + b` and its gradients; pointwise convolutions are the same thing.

use super::addend::Addend;
use super::bf16::MatmulPrecision;
use super::output::{Output, matrix};
use super::packed_weight::PackedWeight;
use super::panel_row::PANEL;
use super::product::{add_outer_products, add_product};
use super::right_factor::{Factor, Packed};
use super::rows::Rows;
use super::simd::multiversion;
use super::tile::Run;
use super::turned::Turned;
use super::weight_layout::pack_shaped;
use super::{Kernel, Needed, Product, Real, apply, apply_2, zeros};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// Rows that one task multiplies.
pub(super) const TASK_ROWS: usize = 192;

/// Rows whose outer products are summed at a time: they stay in the first two caches.
pub(super) const OUTER_ROWS: usize = 96;

/// The sums of gradients are split into this many parts, whatever the number of threads.
const PARTIAL_SUMS: usize = 8;

/// The most memory that the parts take together.
const PARTIAL_BYTES: usize = 64 << 20;

/// A linear layer on tokens.
///
/// # Shapes
/// `x`: `[batch, tokens, in]` or `[batch, in]`; `weight`: `[out, in]`; `bias`: `[out]`; the result ends in `out`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    linear_with(x, weight, bias, MatmulPrecision::Full)
}

/// The same with the exactness of products given, of the result and of its gradient with respect to `x`; that with respect to
/// the weight is always full, since it sums over all rows. Where a matrix has no multiple of 32 inputs or fewer than 16
/// outputs, products are full in any case.
///
/// # Shapes
/// As [`linear`].
///
/// # Errors
/// As [`linear`].
pub fn linear_with(x: &Tensor, weight: &Tensor, bias: &Tensor, products: MatmulPrecision) -> Result<Tensor> {
    apply(Linear(products), [x, weight, bias])
}

/// The same with a weight that does not change.
///
/// # Shapes
/// As [`linear`].
///
/// # Errors
/// If the shapes do not fit, or the activations are neither f32 nor f64.
pub fn linear_packed(x: &Tensor, weight: &PackedWeight, bias: &Tensor) -> Result<Tensor> {
    apply_2(PackedLinear(weight.clone()), [x, bias])
}

/// The same plus a residual, which is added while the sums are in the cache.
///
/// # Shapes
/// As [`linear_packed`]; `residual` is as the result.
///
/// # Errors
/// As [`linear_packed`].
pub fn linear_packed_plus(x: &Tensor, weight: &PackedWeight, bias: &Tensor, residual: &Tensor) -> Result<Tensor> {
    apply(PackedLinear(weight.clone()), [x, bias, residual])
}

struct Linear(MatmulPrecision);

struct PackedLinear(PackedWeight);

pub(super) fn output_shape(x: &[usize], weight: &[usize], bias: &[usize]) -> Option<Vec<usize>> {
    let (&inputs, leading) = x.split_last()?;
    let &[outputs] = bias else { return None };
    (weight == [outputs, inputs] && inputs > 0 && outputs > 0 && !leading.is_empty())
        .then(|| [leading, &[outputs]].concat())
}

pub(super) fn operations(x: &[usize], result: &[usize]) -> u64 {
    2 * x.last().map_or(0, |&depth| depth as u64) * result.iter().product::<usize>() as u64
}

impl Kernel<3> for Linear {
    const NAME: &'static str = "linear";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        output_shape(x, weight, bias)
    }

    fn operations(&self, [x, ..]: [&[usize]; 3], result: &[usize]) -> u64 {
        operations(x, result)
    }

    fn forward<T: Product>(&self, [x, weight, bias]: [&[T]; 3], [_, shape, _]: [&[usize]; 3]) -> Vec<T> {
        let weight = Factor::of_weight(weight, shape, self.0.of_matrix(shape[1], shape[0]));
        multiply(x, 1, weight.packed(), Addend::new(bias, shape[0]), shape[1])
    }

    fn backward<T: Product>(
        &self,
        [x, weight, _]: [&[T]; 3],
        [_, shape, _]: [&[usize]; 3],
        _: &[T],
        grad: &[T],
        needed: Needed<3>,
    ) -> [Vec<T>; 3] {
        let (outputs, inputs) = (shape[0], shape[1]);
        let products = self.0.of_matrix(outputs, inputs);
        let grad_x = || {
            let transposed = Turned::new(&Packed::wide(&pack_shaped(weight, shape)), 1, inputs, outputs).panels();
            let factor = Factor::of_panels(transposed, outputs, inputs, products);
            multiply(grad, 1, factor.packed(), Addend::none(inputs), outputs)
        };
        [
            if needed[0] { grad_x() } else { Vec::new() },
            if needed[1] { weight_gradient(x, inputs, grad, outputs) } else { Vec::new() },
            if needed[2] { sum_rows(grad, outputs, outputs) } else { Vec::new() },
        ]
    }
}

impl Kernel<2> for PackedLinear {
    const NAME: &'static str = "linear";

    fn shape(&self, [x, bias]: [&[usize]; 2]) -> Option<Vec<usize>> {
        output_shape(x, self.0.shape(), bias)
    }

    fn operations(&self, [x, _]: [&[usize]; 2], result: &[usize]) -> u64 {
        operations(x, result)
    }

    fn forward<T: Product>(&self, [x, bias]: [&[T]; 2], _: [&[usize]; 2]) -> Vec<T> {
        multiply(x, 1, self.0.packed(), Addend::new(bias, bias.len()), self.0.shape()[1])
    }

    fn backward<T: Product>(
        &self,
        _: [&[T]; 2],
        _: [&[usize]; 2],
        _: &[T],
        grad: &[T],
        needed: Needed<2>,
    ) -> [Vec<T>; 2] {
        packed_gradients(&self.0, grad, needed)
    }
}

/// With a residual.
impl Kernel<3> for PackedLinear {
    const NAME: &'static str = "linear";

    fn shape(&self, [x, bias, residual]: [&[usize]; 3]) -> Option<Vec<usize>> {
        output_shape(x, self.0.shape(), bias).filter(|shape| shape == residual)
    }

    fn operations(&self, [x, ..]: [&[usize]; 3], result: &[usize]) -> u64 {
        operations(x, result)
    }

    fn forward<T: Product>(&self, [x, bias, residual]: [&[T]; 3], _: [&[usize]; 3]) -> Vec<T> {
        let addend = Addend::new(bias, bias.len()).with_residual(residual);
        multiply(x, 1, self.0.packed(), addend, self.0.shape()[1])
    }

    fn backward<T: Product>(
        &self,
        _: [&[T]; 3],
        _: [&[usize]; 3],
        _: &[T],
        grad: &[T],
        [x, bias, residual]: Needed<3>,
    ) -> [Vec<T>; 3] {
        let [x, bias] = packed_gradients(&self.0, grad, [x, bias]);
        [x, bias, if residual { grad.to_vec() } else { Vec::new() }]
    }
}

/// The gradients with respect to input and bias.
pub(super) fn packed_gradients<T: Product>(weight: &PackedWeight, grad: &[T], needed: Needed<2>) -> [Vec<T>; 2] {
    let (outputs, inputs) = (weight.shape()[0], weight.shape()[1]);
    let grad_x = || {
        let weight = weight.packed::<T>();
        let turned = Packed::Turned(Turned::new(&weight, 1, inputs, outputs));
        multiply(grad, 1, turned, Addend::none(inputs), outputs)
    };
    [
        if needed[0] { grad_x() } else { Vec::new() },
        if needed[1] { sum_rows(grad, outputs, outputs) } else { Vec::new() },
    ]
}

/// Rows of `depth` values times packed weights, plus a bias, which may differ from image to image, and perhaps a residual.
pub(super) fn multiply<T: Product>(
    x: &[T],
    images: usize,
    weight: Packed<'_, T>,
    addend: Addend<'_, T>,
    depth: usize,
) -> Vec<T> {
    let outputs = addend.outputs;
    let count = x.len() / depth.max(1);
    let per_image = (count / images.max(1)).max(1);
    // Rows of one task have one bias.
    let image_rows = if addend.differs_by_image() { per_image } else { count.max(1) };
    let blocks_per_image = image_rows.div_ceil(TASK_ROWS);
    let blocks = count / image_rows * blocks_per_image;
    let groups = column_groups(blocks, outputs);
    let starts: Vec<usize> = (0..TASK_ROWS).map(|row| row * depth).collect();
    let rows_of = |block: usize| {
        let (image, block) = (block / blocks_per_image, block % blocks_per_image);
        let first = image * image_rows + block * TASK_ROWS;
        first..(first + TASK_ROWS).min((image + 1) * image_rows)
    };
    let row_blocks: Vec<_> = (0..blocks).map(rows_of).collect();
    let compute = |whole: Output<'_, T>| {
        whole.split(&row_blocks, &groups).into_par_iter().enumerate().for_each(|(task, mut out)| {
            let (block, columns) = (task / groups.len(), &groups[task % groups.len()]);
            let rows = &row_blocks[block];
            let (values, starts) = (&x[rows.start * depth..rows.end * depth], &starts[..rows.len()]);
            let rows = Rows { values, starts, stretches: &[(0, depth)] };
            let start = addend.of(block / blocks_per_image, columns);
            add_product(rows, weight.from(columns.start * depth), start, &mut out);
        });
    };
    // SAFETY: the tasks' blocks cover the matrix, and a product sets its block.
    unsafe { matrix(count, outputs, addend.residual, compute) }
}

/// Splits columns at panels where there are too few tasks without it for all threads.
pub(super) fn column_groups(tasks: usize, columns: usize) -> Vec<Range<usize>> {
    let wanted = (4 * rayon::current_num_threads()).div_ceil(tasks.max(1));
    let panels = columns.div_ceil(PANEL);
    let groups = wanted.clamp(1, panels.max(1));
    let edge = |i: usize| (i * panels / groups * PANEL).min(columns);
    (0..groups).map(|i| edge(i)..edge(i + 1)).collect()
}

/// `grad^T x`, the gradient of a matrix that rows of `x` were multiplied with.
pub(super) fn weight_gradient<T: Product>(x: &[T], inputs: usize, grad: &[T], outputs: usize) -> Vec<T> {
    let count = x.len() / inputs.max(1);
    sum_over_tasks(count.div_ceil(OUTER_ROWS), outputs * inputs, |blocks, sum| {
        for block in blocks {
            let rows = block * OUTER_ROWS..((block + 1) * OUTER_ROWS).min(count);
            let mut values = &x[rows.start * inputs..];
            let copy;
            if values.len() < rows.len() * inputs + PANEL {
                // The last panel of columns reaches beyond the last row.
                copy = [values, &[T::zero(); PANEL]].concat();
                values = &copy;
            }
            let grad = &grad[rows.start * outputs..rows.end * outputs];
            let runs = [Run { left: 0, right: 0, count: rows.len() }];
            add_outer_products([grad, values], [outputs, inputs], &runs, Output::new(sum, inputs));
        }
    })
}

/// Sums what tasks add to a buffer of `len` values: in parts of fixed size, added in order, so that the result
/// does not depend on the number of threads.
pub(super) fn sum_over_tasks<T: Real>(tasks: usize, len: usize, add: impl Fn(Range<usize>, &mut [T]) + Sync) -> Vec<T> {
    let parts = (PARTIAL_BYTES / (len * size_of::<T>()).max(1)).clamp(1, PARTIAL_SUMS).min(tasks.max(1));
    let mut sums = zeros::<T>(parts * len);
    sums.par_chunks_exact_mut(len.max(1))
        .enumerate()
        .for_each(|(i, sum)| add(i * tasks / parts..(i + 1) * tasks / parts, sum));
    let (total, rest) = sums.split_at_mut(len);
    add_rows(rest, total);
    sums.truncate(len);
    sums
}

multiversion! {
    /// Adds rows to one row.
    fn add_rows<T: Real>(rows: &[T], sum: &mut [T]) {
        for row in rows.chunks_exact(sum.len().max(1)) {
            for (sum, &value) in sum.iter_mut().zip(row) {
                *sum += value;
            }
        }
    }
}

/// Sums rows of `columns` values to `len` values: all rows to one if `len` is `columns`, else those of each image.
pub(super) fn sum_rows<T: Real>(rows: &[T], len: usize, columns: usize) -> Vec<T> {
    let images = len / columns.max(1);
    let image_len = rows.len() / images.max(1);
    let mut sums = Vec::with_capacity(len);
    for image in rows.chunks_exact(image_len.max(1)) {
        sums.extend(sum_over_tasks(image_len / columns.max(1), columns, |rows, sum: &mut [T]| {
            // Short sums first, for the sake of the roundings.
            for rows in image[rows.start * columns..rows.end * columns].chunks(OUTER_ROWS * columns) {
                let mut short = zeros::<T>(columns);
                add_rows(rows, &mut short);
                add_rows(&short, sum);
            }
        }));
    }
    sums
}
