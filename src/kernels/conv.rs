//! Two-dimensional convolution on channels-last activations, and its gradients.
//!
//! A task takes a band of output rows. It copies the rows of the image that these see, with their padding, and
//! multiplies in place: in the padded copy the patch under the kernel is one stretch of memory per kernel row,
//! so patches are never laid out.

use super::bf16::MatmulPrecision;
use super::output::{Addend, Output, Start, matrix_plus};
use super::packed_weight::{Factor, Packed, PackedWeight};
use super::tile::{PANEL, Rows, Run, add_outer_products, add_product, add_rounded_product, pack};
use super::winograd::Winograd;
use super::{Kernel, Needed, Real, apply, apply_2, linear, zeros};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// A task's copy of the image is about this large: it should stay in the second cache beside the weights' panel.
const BAND_BYTES: usize = 256 << 10;

/// Output rows per task even where the copy becomes larger: the rows between bands are copied twice.
const LEAST_ROWS: usize = 4;

/// Kernel size, stride and zero padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Height and width of the kernel.
    pub kernel: usize,
    /// The step between output pixels, in both directions.
    pub stride: usize,
    /// Zeros above and to the left.
    pub pad_before: usize,
    /// Zeros below and to the right.
    pub pad_after: usize,
}

impl ConvGeometry {
    /// The output's length along a side of length `side`.
    pub fn output_side(&self, side: usize) -> usize {
        (side + self.pad_before + self.pad_after).saturating_sub(self.kernel) / self.stride + 1
    }

    fn is_pointwise(&self) -> bool {
        *self == Self { kernel: 1, stride: 1, pad_before: 0, pad_after: 0 }
    }
}

/// A convolution.
///
/// # Shapes
/// `x`: `[batch, height, width, in]`; `weight`: `[out, in, kernel, kernel]`; `bias`: `[out]`, or `[batch, out]` for
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
        let smallest = self.kernel.saturating_sub(self.pad_before + self.pad_after);
        let fits = height.min(width) >= smallest.max(1) && weight == [outputs, channels, self.kernel, self.kernel];
        (fits && channels > 0 && outputs > 0 && (bias == [outputs] || bias == [batch, outputs]))
            .then(|| vec![batch, grid.out_height, grid.out_width, outputs])
    }

    fn kind(&self) -> &'static str {
        match self {
            Self { kernel: 1, .. } => "conv 1x1",
            Self { stride: 2, .. } => "conv, strided",
            Self { kernel: 3, .. } => "conv 3x3",
            _ => "conv",
        }
    }

    fn operations(&self, x: &[usize], result: &[usize]) -> u64 {
        2 * (self.kernel * self.kernel * x[3]) as u64 * result.iter().product::<usize>() as u64
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

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], [x_shape, shape, _]: [&[usize]; 3]) -> Vec<T> {
        let weight = Factor::of_weight(weight, shape, self.1.of_matrix(shape[1], shape[0]));
        Grid::of(self.0, x_shape).convolve(x, x_shape[0], weight.packed(), Addend::new(bias, shape[0]))
    }

    fn backward<T: Real>(
        &self,
        [x, weight, bias]: [&[T]; 3],
        [x_shape, shape, _]: [&[usize]; 3],
        _: &[T],
        grad: &[T],
        needed: Needed<3>,
    ) -> [Vec<T>; 3] {
        let (grid, batch, outputs) = (Grid::of(self.0, x_shape), x_shape[0], shape[0]);
        let at = |out, k| weight[grid.weight_at(out, k)];
        let grad_x = || grid.input_gradient(batch, at, outputs, grad, self.1.of_matrix(outputs, shape[1]));
        let grad_weight = || {
            let mut gradient = zeros::<T>(weight.len());
            for (i, value) in grid.weight_gradient(batch, x, outputs, grad).into_iter().enumerate() {
                gradient[grid.weight_at(i / grid.patch_len(), i % grid.patch_len())] = value;
            }
            gradient
        };
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

    fn forward<T: Real>(&self, [x, bias]: [&[T]; 2], [x_shape, _]: [&[usize]; 2]) -> Vec<T> {
        let addend = Addend::new(bias, self.1.shape()[0]);
        Grid::of(self.0, x_shape).convolve(x, x_shape[0], self.1.packed(), addend)
    }

    fn backward<T: Real>(
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

    fn forward<T: Real>(&self, [x, bias, residual]: [&[T]; 3], [x_shape, ..]: [&[usize]; 3]) -> Vec<T> {
        let addend = Addend::new(bias, self.1.shape()[0]).with_residual(residual);
        Grid::of(self.0, x_shape).convolve(x, x_shape[0], self.1.packed(), addend)
    }

    fn backward<T: Real>(
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
    /// With respect to input and bias.
    fn gradients<T: Real>(&self, x_shape: &[usize], bias_len: usize, grad: &[T], needed: Needed<2>) -> [Vec<T>; 2] {
        let (grid, outputs, packed) = (Grid::of(self.0, x_shape), self.1.shape()[0], self.1.packed::<T>());
        let at = |out, k| packed.at(grid.patch_len(), k, out);
        [
            if needed[0] {
                grid.input_gradient(x_shape[0], at, outputs, grad, MatmulPrecision::Full)
            } else {
                Vec::new()
            },
            if needed[1] { linear::sum_rows(grad, bias_len, outputs) } else { Vec::new() },
        ]
    }
}

/// A convolution's geometry on one image.
#[derive(Debug, Clone, Copy)]
struct Grid {
    geometry: ConvGeometry,
    height: usize,
    width: usize,
    channels: usize,
    out_height: usize,
    out_width: usize,
}

impl Grid {
    fn new(geometry: ConvGeometry, height: usize, width: usize, channels: usize) -> Self {
        let (out_height, out_width) = (geometry.output_side(height), geometry.output_side(width));
        Self { geometry, height, width, channels, out_height, out_width }
    }

    fn of(geometry: ConvGeometry, shape: &[usize]) -> Self {
        Self::new(geometry, shape[1], shape[2], shape[3])
    }

    fn patch_len(&self) -> usize {
        self.geometry.kernel * self.geometry.kernel * self.channels
    }

    /// Where in a weight `[out, in, kernel, kernel]` the value for an output channel and a position in the patch is.
    fn weight_at(&self, out: usize, k: usize) -> usize {
        let (tap, channel) = (k / self.channels, k % self.channels);
        (out * self.channels + channel) * self.geometry.kernel * self.geometry.kernel + tap
    }

    fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    fn out_pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// The length of a row of the padded image.
    fn padded_row(&self) -> usize {
        (self.width + self.geometry.pad_before + self.geometry.pad_after) * self.channels
    }

    /// The output rows of an image in bands for one task each.
    fn bands<T>(&self) -> Vec<Range<usize>> {
        let row_bytes = (self.padded_row() * self.geometry.stride * size_of::<T>()).max(1);
        let rows = (BAND_BYTES / row_bytes).clamp(LEAST_ROWS, self.out_height.max(LEAST_ROWS));
        let bands = self.out_height.div_ceil(rows).max(1);
        (0..bands).map(|i| i * self.out_height / bands..(i + 1) * self.out_height / bands).collect()
    }

    /// Copies the rows of the image that a band of output rows sees, with the padding.
    fn copy_band<T: Real>(&self, image: &[T], band: &Range<usize>, copy: &mut Vec<T>) {
        self.copy_band_as(image, band, copy, |values, copy| copy.copy_from_slice(values));
    }

    /// The same as values of another type.
    fn copy_band_as<T, E: Copy + Default>(
        &self,
        image: &[T],
        band: &Range<usize>,
        copy: &mut Vec<E>,
        convert: impl Fn(&[T], &mut [E]),
    ) {
        let ConvGeometry { kernel, stride, pad_before, .. } = self.geometry;
        let (row_len, image_row) = (self.padded_row(), self.width * self.channels);
        let rows = (band.len() - 1) * stride + kernel;
        // Panels of columns may read beyond the last row.
        copy.resize(rows * row_len + PANEL, E::default());
        for (i, row) in copy.chunks_exact_mut(row_len).take(rows).enumerate() {
            let y = (band.start * stride + i).checked_sub(pad_before).filter(|&y| y < self.height);
            let Some(y) = y else {
                row.fill(E::default());
                continue;
            };
            let (left, rest) = row.split_at_mut(pad_before * self.channels);
            let (inside, right) = rest.split_at_mut(image_row);
            left.fill(E::default());
            convert(&image[y * image_row..][..image_row], inside);
            right.fill(E::default());
        }
    }

    /// Where the patches of a band's output pixels begin in its copy.
    fn patch_starts(&self, rows: usize) -> Vec<usize> {
        let stride = self.geometry.stride;
        let of_row =
            |y: usize| (0..self.out_width).map(move |x| y * stride * self.padded_row() + x * stride * self.channels);
        (0..rows).flat_map(of_row).collect()
    }

    /// The stretches of memory that make up a patch: one for each row of the kernel.
    fn patch_stretches(&self) -> Vec<(usize, usize)> {
        let kernel = self.geometry.kernel;
        (0..kernel).map(|y| (y * self.padded_row(), kernel * self.channels)).collect()
    }

    /// The faster way that 3x3 kernels of stride 1 have.
    fn winograd(&self) -> Option<Winograd> {
        let Self { geometry, height, width, channels, out_height, out_width } = *self;
        let pad_before = geometry.pad_before;
        (geometry.kernel == 3 && geometry.stride == 1).then_some(Winograd {
            height,
            width,
            channels,
            pad_before,
            out_height,
            out_width,
        })
    }

    /// The convolution with packed weights.
    fn convolve<T: Real>(&self, x: &[T], batch: usize, weight: Packed<'_, T>, addend: Addend<'_, T>) -> Vec<T> {
        let outputs = addend.outputs;
        if self.geometry.is_pointwise() {
            return linear::multiply(x, batch, weight, addend, self.channels);
        }
        // Its transforms lose bits that bf16 does not have.
        if let (Packed::Panels(panels), Some(winograd)) = (weight, self.winograd())
            && winograd.pays(outputs)
        {
            return winograd.convolve(x, batch, panels, addend);
        }
        let patch_len = self.patch_len();
        match weight {
            Packed::Panels(_) => {
                let multiply = |rows: Rows<'_, T>, columns: &Range<usize>, start: Start<'_, T>, out: &Output<'_, T>| {
                    add_product(rows, weight.from(columns.start * patch_len), start, out);
                };
                self.convolve_bands(x, batch, addend, |values, copy| copy.copy_from_slice(values), multiply)
            }
            // Each pixel is rounded once, though many patches see it.
            Packed::Pairs(pairs) => {
                let multiply =
                    |rows: Rows<'_, T::Rounded>, columns: &Range<usize>, start: Start<'_, T>, out: &Output<'_, T>| {
                        add_rounded_product(rows, pairs.from(columns.start * patch_len), start, out);
                    };
                self.convolve_bands(x, batch, addend, T::round, multiply)
            }
        }
    }

    /// The convolution by bands, which are copied as `E`; `multiply` takes rows of a copy and some columns of the weight.
    fn convolve_bands<T: Real, E: Copy + Default + Send + Sync>(
        &self,
        x: &[T],
        batch: usize,
        addend: Addend<'_, T>,
        convert: impl Fn(&[T], &mut [E]) + Sync,
        multiply: impl Fn(Rows<'_, E>, &Range<usize>, Start<'_, T>, &Output<'_, T>) + Sync,
    ) -> Vec<T> {
        let outputs = addend.outputs;
        let bands = self.bands::<E>();
        let starts = self.patch_starts(bands.iter().map(Range::len).max().unwrap_or(0));
        let stretches = self.patch_stretches();
        let groups = linear::column_groups(batch * bands.len(), outputs);
        let tasks = batch * bands.len() * groups.len();
        let compute = |whole: &Output<'_, T>| {
            (0..tasks).into_par_iter().for_each_init(Vec::new, |copy, task| {
                let (image, columns) = (task / groups.len() / bands.len(), &groups[task % groups.len()]);
                let band = &bands[task / groups.len() % bands.len()];
                self.copy_band_as(&x[image * self.image_len()..][..self.image_len()], band, copy, &convert);
                let first = (image * self.out_height + band.start) * self.out_width;
                let rows = first..first + band.len() * self.out_width;
                let starts = &starts[..rows.len()];
                let start = addend.of(image, columns);
                // SAFETY: every task has an image's band and a group of columns to itself.
                let out = unsafe { whole.part(rows, columns.clone()) };
                multiply(Rows { values: copy, starts, stretches: &stretches }, columns, start, &out);
            });
        };
        // SAFETY: the tasks' bands cover the images, and a product sets its block.
        unsafe { matrix_plus(batch * self.out_pixels() * outputs, outputs, addend.residual, compute) }
    }

    /// The gradient with respect to the image: with stride 1 a convolution with the kernel turned by half a
    /// turn, else the gradient of every patch added to the pixels that it came from.
    fn input_gradient<T: Real>(
        &self,
        batch: usize,
        weight: impl Fn(usize, usize) -> T + Sync,
        outputs: usize,
        grad: &[T],
        products: MatmulPrecision,
    ) -> Vec<T> {
        let ConvGeometry { kernel, stride, pad_before, pad_after } = self.geometry;
        let channels = self.channels;
        if stride > 1 || pad_before >= kernel || pad_after >= kernel {
            return self.folded_gradient(batch, weight, outputs, grad);
        }
        let turned =
            ConvGeometry { kernel, stride, pad_before: kernel - 1 - pad_before, pad_after: kernel - 1 - pad_after };
        let taps = kernel * kernel;
        let turned_weight = Factor::new(taps * outputs, channels, products, |k, channel| {
            let (tap, out) = (k / outputs, k % outputs);
            weight(out, (taps - 1 - tap) * channels + channel)
        });
        Self::new(turned, self.out_height, self.out_width, outputs).convolve(
            grad,
            batch,
            turned_weight.packed(),
            Addend::none(channels),
        )
    }

    fn folded_gradient<T: Real>(
        &self,
        batch: usize,
        weight: impl Fn(usize, usize) -> T + Sync,
        outputs: usize,
        grad: &[T],
    ) -> Vec<T> {
        let depth = self.patch_len();
        let panels = pack(outputs, depth, weight);
        let panels = Packed::wide(&panels);
        let mut grad_x = zeros::<T>(batch * self.image_len());
        let image_grads = grad.par_chunks_exact(self.out_pixels() * outputs);
        let starts: Vec<usize> = (0..self.out_width).map(|x| x * outputs).collect();
        grad_x.par_chunks_exact_mut(self.image_len().max(1)).zip(image_grads).for_each(|(grad_x, grad)| {
            let mut patches = zeros::<T>(self.out_width * depth);
            for (y, grad) in grad.chunks_exact(self.out_width * outputs).enumerate() {
                let rows = Rows { values: grad, starts: &starts, stretches: &[(0, outputs)] };
                add_product(rows, panels, Start::Zero, &Output::new(&mut patches, depth));
                self.fold_row(&patches, y, grad_x);
            }
        });
        grad_x
    }

    /// Adds the patches of an output row to the pixels that they came from.
    fn fold_row<T: Real>(&self, patches: &[T], out_y: usize, image: &mut [T]) {
        let ConvGeometry { kernel, stride, pad_before, .. } = self.geometry;
        let inside = |out: usize, tap: usize, side: usize| {
            (out * stride + tap).checked_sub(pad_before).filter(|&position| position < side)
        };
        for (out_x, patch) in patches.chunks_exact(self.patch_len()).enumerate() {
            for (tap, values) in patch.chunks_exact(self.channels).enumerate() {
                let y = inside(out_y, tap / kernel, self.height);
                let x = inside(out_x, tap % kernel, self.width);
                let (Some(y), Some(x)) = (y, x) else { continue };
                let pixel = &mut image[(y * self.width + x) * self.channels..][..self.channels];
                pixel.iter_mut().zip(values).for_each(|(pixel, &value)| *pixel += value);
            }
        }
    }

    /// The gradient with respect to the weight, `[out][patch]`: for each kernel row the sum over pixels of the outer product of
    /// the output's gradient and the image beside it.
    fn weight_gradient<T: Real>(&self, batch: usize, x: &[T], outputs: usize, grad: &[T]) -> Vec<T> {
        if self.geometry.is_pointwise() {
            return linear::weight_gradient(x, self.channels, grad, outputs);
        }
        if let Some(winograd) = self.winograd().filter(|winograd| winograd.pays_backward(outputs)) {
            return winograd.weight_gradient(x, batch, outputs, grad);
        }
        let bands = self.bands::<T>();
        let depth = self.patch_len();
        let row_depth = self.geometry.kernel * self.channels;
        linear::sum_over_tasks(batch * bands.len(), outputs * depth, |tasks, sum| {
            let mut copy = Vec::new();
            for task in tasks {
                let (image, band) = (task / bands.len(), &bands[task % bands.len()]);
                self.copy_band(&x[image * self.image_len()..][..self.image_len()], band, &mut copy);
                let first = (image * self.out_height + band.start) * self.out_width * outputs;
                let grad = &grad[first..][..band.len() * self.out_width * outputs];
                let runs: Vec<Run> = (0..band.len())
                    .map(|y| Run {
                        left: y * self.out_width * outputs,
                        right: y * self.geometry.stride * self.padded_row(),
                        count: self.out_width,
                    })
                    .collect();
                let sum = Output::new(sum, depth);
                let strides = [outputs, self.geometry.stride * self.channels];
                // A few rows at a time stay in the first cache while all tiles of the sum pass over them.
                for runs in runs.chunks((linear::OUTER_ROWS / self.out_width).max(1)) {
                    for tap_row in 0..self.geometry.kernel {
                        // SAFETY: the sum is this task's own, and this is the only use of it for now.
                        let sum = unsafe { sum.part(0..outputs, tap_row * row_depth..(tap_row + 1) * row_depth) };
                        add_outer_products([grad, &copy[tap_row * self.padded_row()..]], strides, runs, sum);
                    }
                }
            }
        })
    }
}
