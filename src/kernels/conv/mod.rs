//! Two-dimensional convolution on channels-last activations, and its gradients.
//!
//! A task takes a band of output rows. It copies the rows of the image that these see, with their padding, and
//! multiplies in place: in the padded copy the patch under the kernel is one stretch of memory per kernel row,
//! so patches are never laid out.

mod forward;
mod geometry;
mod gradient;
mod grid;

pub use geometry::ConvGeometry;
pub(crate) use geometry::{LEAST_SIDE, ROWS_TOGETHER};

use super::addend::Addend;
use super::bf16::MatmulPrecision;
use super::packed_weight::PackedWeight;
use super::right_factor::{Factor, Packed};
use super::turned::Turned;
use super::weight_layout::pack_shaped;
use super::{Kernel, Needed, Product, Real, apply, apply_2, dry_run, linear, zeros};
use candle_core::{Result, Tensor};
use grid::Grid;
use rayon::prelude::*;
use std::borrow::Cow;

/// A convolution.
///
/// # Shapes
/// `x`: `[batch, height, width, in]`; `weight`: `[out, in, kernel height, kernel width]`; `bias`: `[out]`, or `[batch, out]` for
/// one per image; the result is `[batch, height', width', out]`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: ConvGeometry) -> Result<Tensor> {
    conv2d_with(x, weight, bias, geometry, MatmulPrecision::Full)
}

/// The same with the exactness of products given, as in [`linear_with`](super::linear_with).
///
/// # Shapes
/// As [`conv2d`].
///
/// # Errors
/// As [`conv2d`].
pub fn conv2d_with(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    geometry: ConvGeometry,
    products: MatmulPrecision,
) -> Result<Tensor> {
    apply(Conv2d(geometry, products), [x, weight, bias])
}

/// The same with a weight that does not change.
///
/// # Shapes
/// As [`conv2d`].
///
/// # Errors
/// If the shapes do not fit, or the activations are neither f32 nor f64.
pub fn conv2d_packed(x: &Tensor, weight: &PackedWeight, bias: &Tensor, geometry: ConvGeometry) -> Result<Tensor> {
    apply_2(PackedConv2d(geometry, weight.clone()), [x, bias])
}

/// The same plus a residual, which is added while the sums are in the cache.
///
/// # Shapes
/// As [`conv2d`]; `residual` is as the result.
///
/// # Errors
/// As [`conv2d_packed`].
pub fn conv2d_packed_plus(
    x: &Tensor,
    weight: &PackedWeight,
    bias: &Tensor,
    residual: &Tensor,
    geometry: ConvGeometry,
) -> Result<Tensor> {
    apply(PackedConv2d(geometry, weight.clone()), [x, bias, residual])
}

struct Conv2d(ConvGeometry, MatmulPrecision);

struct PackedConv2d(ConvGeometry, PackedWeight);

impl ConvGeometry {
    fn output_shape(&self, x: &[usize], weight: &[usize], bias: &[usize]) -> Option<Vec<usize>> {
        let (&[batch, height, width, channels], &outputs) = (x, bias.last()?) else { return None };
        let grid = Grid::new(*self, height, width, channels);
        let [kernel_height, kernel_width] = self.kernel;
        let fits = self.fits([height, width]) && weight == [outputs, channels, kernel_height, kernel_width];
        (fits && channels > 0 && outputs > 0 && (bias == [outputs] || bias == [batch, outputs]))
            .then(|| vec![batch, grid.out_height, grid.out_width, outputs])
    }

    fn kind(&self) -> &'static str {
        match self {
            Self { kernel: [1, 1], .. } => "conv 1x1",
            Self { stride: 2, .. } => "conv, strided",
            Self { kernel: [3, 3], .. } => "conv 3x3",
            _ => "conv",
        }
    }

    fn operations(&self, x: &[usize], result: &[usize]) -> u64 {
        2 * (self.kernel[0] * self.kernel[1] * x[3]) as u64 * result.iter().product::<usize>() as u64
    }
}

impl Kernel<3> for Conv2d {
    const NAME: &'static str = "conv2d";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        self.0.output_shape(x, weight, bias)
    }

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn operations(&self, [x, ..]: [&[usize]; 3], result: &[usize]) -> u64 {
        self.0.operations(x, result)
    }

    fn forward<T: Product>(&self, [x, weight, bias]: [&[T]; 3], [x_shape, shape, _]: [&[usize]; 3]) -> Vec<T> {
        let weight = Factor::of_weight(weight, shape, self.1.of_matrix(shape[1], shape[0]));
        Grid::of(self.0, x_shape).convolve(x, x_shape[0], weight.packed(), Addend::new(bias, shape[0]))
    }

    fn backward<T: Product>(
        &self,
        [x, weight, bias]: [&[T]; 3],
        [x_shape, shape, _]: [&[usize]; 3],
        _: &[T],
        grad: &[T],
        needed: Needed<3>,
    ) -> [Vec<T>; 3] {
        let (grid, batch, outputs) = (Grid::of(self.0, x_shape), x_shape[0], shape[0]);
        let grad_x = || {
            let panels = pack_shaped(weight, shape);
            let weight = Packed::wide(&panels);
            match grid.turned(outputs) {
                Some(turned) => {
                    let (products, depth) = (self.1.of_matrix(outputs, shape[1]), grid.taps() * outputs);
                    let turned_weight = Turned::new(&weight, grid.taps(), grid.channels, outputs).panels();
                    let factor = Factor::of_panels(turned_weight, depth, grid.channels, products);
                    turned.convolve(grad, batch, factor.packed(), Addend::none(grid.channels))
                }
                None => grid.folded_gradient(
                    batch,
                    &Turned::new(&weight, 1, grid.patch_len(), outputs).panels(),
                    outputs,
                    grad,
                ),
            }
        };
        let grad_weight = || taps_last(grid.weight_gradient(batch, x, outputs, grad), grid.taps(), grid.channels);
        [
            if needed[0] { grad_x() } else { Vec::new() },
            if needed[1] { grad_weight() } else { Vec::new() },
            if needed[2] { linear::sum_rows(grad, bias.len(), outputs) } else { Vec::new() },
        ]
    }
}

impl Kernel<2> for PackedConv2d {
    const NAME: &'static str = "conv2d";

    fn shape(&self, [x, bias]: [&[usize]; 2]) -> Option<Vec<usize>> {
        self.0.output_shape(x, self.1.shape(), bias)
    }

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn operations(&self, [x, _]: [&[usize]; 2], result: &[usize]) -> u64 {
        self.0.operations(x, result)
    }

    fn scratch(&self, [x, _]: [&[usize]; 2]) -> Vec<usize> {
        self.scratch_of(x)
    }

    fn forward<T: Product>(&self, [x, bias]: [&[T]; 2], [x_shape, _]: [&[usize]; 2]) -> Vec<T> {
        let addend = Addend::new(bias, self.1.shape()[0]);
        Grid::of(self.0, x_shape).convolve(x, x_shape[0], self.1.packed(), addend)
    }

    fn backward<T: Product>(
        &self,
        [_, bias]: [&[T]; 2],
        [x_shape, _]: [&[usize]; 2],
        _: &[T],
        grad: &[T],
        needed: Needed<2>,
    ) -> [Vec<T>; 2] {
        self.gradients(x_shape, bias.len(), grad, needed)
    }
}

/// `[out][tap][in]` as weights lie, `[out][in][tap]`.
fn taps_last<T: Real>(values: Vec<T>, taps: usize, channels: usize) -> Vec<T> {
    if taps == 1 {
        return values;
    }
    let mut turned = zeros::<T>(values.len());
    let outputs = turned.par_chunks_exact_mut(taps * channels).zip(values.par_chunks_exact(taps * channels));
    outputs.for_each(|(turned, values)| {
        for (tap, values) in values.chunks_exact(channels).enumerate() {
            turned[tap..].iter_mut().step_by(taps).zip(values).for_each(|(to, &value)| *to = value);
        }
    });
    turned
}

/// A weight `[out][in][tap]` as rows `[out][tap][in]`, which is how they are multiplied.
pub(crate) fn taps_first(weight: &[f32], taps: usize, channels: usize) -> Cow<'_, [f32]> {
    if taps == 1 {
        return weight.into();
    }
    let mut turned = zeros::<f32>(weight.len());
    if dry_run::is_dry_run() {
        return turned.into();
    }
    let row = (taps * channels).max(1);
    let outputs = turned.par_chunks_exact_mut(row).zip(weight.par_chunks_exact(row));
    outputs.for_each(|(turned, weight)| {
        for (tap, turned) in turned.chunks_exact_mut(channels.max(1)).enumerate() {
            turned.iter_mut().zip(weight[tap..].iter().step_by(taps)).for_each(|(to, &value)| *to = value);
        }
    });
    turned.into()
}

/// With a residual.
impl Kernel<3> for PackedConv2d {
    const NAME: &'static str = "conv2d";

    fn shape(&self, [x, bias, residual]: [&[usize]; 3]) -> Option<Vec<usize>> {
        self.0.output_shape(x, self.1.shape(), bias).filter(|shape| shape == residual)
    }

    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn operations(&self, [x, ..]: [&[usize]; 3], result: &[usize]) -> u64 {
        self.0.operations(x, result)
    }

    fn scratch(&self, [x, ..]: [&[usize]; 3]) -> Vec<usize> {
        self.scratch_of(x)
    }

    fn forward<T: Product>(&self, [x, bias, residual]: [&[T]; 3], [x_shape, ..]: [&[usize]; 3]) -> Vec<T> {
        let addend = Addend::new(bias, self.1.shape()[0]).with_residual(residual);
        Grid::of(self.0, x_shape).convolve(x, x_shape[0], self.1.packed(), addend)
    }

    fn backward<T: Product>(
        &self,
        [_, bias, _]: [&[T]; 3],
        [x_shape, ..]: [&[usize]; 3],
        _: &[T],
        grad: &[T],
        [of_x, of_bias, of_residual]: Needed<3>,
    ) -> [Vec<T>; 3] {
        let [grad_x, grad_bias] = self.gradients(x_shape, bias.len(), grad, [of_x, of_bias]);
        [grad_x, grad_bias, if of_residual { grad.to_vec() } else { Vec::new() }]
    }
}

impl PackedConv2d {
    /// What threads have for themselves where Winograd's method is taken.
    fn scratch_of(&self, x: &[usize]) -> Vec<usize> {
        let (grid, outputs) = (Grid::of(self.0, x), self.1.shape()[0]);
        match self.1.packed::<f32>() {
            Packed::Panels(_) | Packed::Turned(_) => grid.winograd_that_pays(outputs),
            Packed::Pairs(_) | Packed::Quads(_) => None,
        }
        .map_or_else(Vec::new, |winograd| winograd.scratch(x[0], outputs))
    }

    /// With respect to input and bias.
    fn gradients<T: Product>(&self, x_shape: &[usize], bias_len: usize, grad: &[T], needed: Needed<2>) -> [Vec<T>; 2] {
        let (grid, batch, outputs) = (Grid::of(self.0, x_shape), x_shape[0], self.1.shape()[0]);
        let grad_x = || {
            let weight = self.1.packed::<T>();
            match grid.turned(outputs) {
                Some(turned) => {
                    let weight = Packed::Turned(Turned::new(&weight, grid.taps(), grid.channels, outputs));
                    turned.convolve(grad, batch, weight, Addend::none(grid.channels))
                }
                None => grid.folded_gradient(
                    batch,
                    &Turned::new(&weight, 1, grid.patch_len(), outputs).panels(),
                    outputs,
                    grad,
                ),
            }
        };
        [
            if needed[0] { grad_x() } else { Vec::new() },
            if needed[1] { linear::sum_rows(grad, bias_len, outputs) } else { Vec::new() },
        ]
    }
}
