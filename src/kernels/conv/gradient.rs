//! The gradients of a convolution.
//!
//! With respect to the image it is, with stride 1, a convolution with the kernel turned by half a turn; else the gradient of
//! every patch is added to the pixels that it came from.

use super::super::addend::Start;
use super::super::output::Output;
use super::super::product::{add_outer_products, add_product};
use super::super::right_factor::Packed;
use super::super::rows::Rows;
use super::super::tile::Run;
use super::super::{Product, Real, linear, zeros};
use super::geometry::ConvGeometry;
use super::grid::Grid;
use rayon::prelude::*;

impl Grid {
    /// The convolution of the result's gradient that gives the image's, if there is one.
    pub fn turned(&self, outputs: usize) -> Option<Self> {
        let ConvGeometry { kernel, stride, pad_before, pad_after } = self.geometry;
        let within = |pad: [usize; 2]| pad[0] < kernel[0] && pad[1] < kernel[1];
        (stride == 1 && within(pad_before) && within(pad_after)).then_some(())?;
        let rest = |pad: [usize; 2]| [kernel[0] - 1 - pad[0], kernel[1] - 1 - pad[1]];
        let turned = ConvGeometry { kernel, stride, pad_before: rest(pad_before), pad_after: rest(pad_after) };
        Some(Self::new(turned, self.out_height, self.out_width, outputs))
    }

    /// The gradient with respect to the image as patches that are added to the pixels that they came from. `weight` has the
    /// panels of `[out, patch]`.
    pub fn folded_gradient<T: Product>(&self, batch: usize, weight: &[T], outputs: usize, grad: &[T]) -> Vec<T> {
        let (depth, panels) = (self.patch_len(), Packed::wide(weight));
        let mut grad_x = zeros::<T>(batch * self.image_len());
        let image_grads = grad.par_chunks_exact(self.out_pixels() * outputs);
        let starts: Vec<usize> = (0..self.out_width).map(|x| x * outputs).collect();
        grad_x.par_chunks_exact_mut(self.image_len().max(1)).zip(image_grads).for_each(|(grad_x, grad)| {
            let mut patches = zeros::<T>(self.out_width * depth);
            for (y, grad) in grad.chunks_exact(self.out_width * outputs).enumerate() {
                let rows = Rows { values: grad, starts: &starts, stretches: &[(0, outputs)] };
                add_product(rows, panels, Start::Zero, &mut Output::new(&mut patches, depth));
                self.fold_row(&patches, y, grad_x);
            }
        });
        grad_x
    }

    /// Adds the patches of an output row to the pixels that they came from.
    fn fold_row<T: Real>(&self, patches: &[T], out_y: usize, image: &mut [T]) {
        let ConvGeometry { kernel: [_, kernel_width], stride, pad_before: [above, left], .. } = self.geometry;
        let inside = |out: usize, tap: usize, before: usize, side: usize| {
            (out * stride + tap).checked_sub(before).filter(|&position| position < side)
        };
        for (out_x, patch) in patches.chunks_exact(self.patch_len()).enumerate() {
            for (tap, values) in patch.chunks_exact(self.channels).enumerate() {
                let y = inside(out_y, tap / kernel_width, above, self.height);
                let x = inside(out_x, tap % kernel_width, left, self.width);
                let (Some(y), Some(x)) = (y, x) else { continue };
                let pixel = &mut image[(y * self.width + x) * self.channels..][..self.channels];
                pixel.iter_mut().zip(values).for_each(|(pixel, &value)| *pixel += value);
            }
        }
    }

    /// The gradient with respect to the weight, `[out][patch]`: for each kernel row the sum over pixels of the outer product of
    /// the output's gradient and the image beside it.
    pub fn weight_gradient<T: Product>(&self, batch: usize, x: &[T], outputs: usize, grad: &[T]) -> Vec<T> {
        if self.geometry.is_pointwise() {
            return linear::weight_gradient(x, self.channels, grad, outputs);
        }
        if let Some(winograd) = self.winograd().filter(|winograd| winograd.pays_backward(outputs)) {
            return winograd.weight_gradient(x, batch, outputs, grad);
        }
        let bands = self.bands::<T>();
        let depth = self.patch_len();
        let [kernel_height, kernel_width] = self.geometry.kernel;
        let row_depth = kernel_width * self.channels;
        linear::sum_over_tasks(batch * bands.len(), outputs * depth, |tasks, sum| {
            let mut copy = Vec::new();
            for task in tasks {
                let (image, band) = (task / bands.len(), &bands[task % bands.len()]);
                let pixels = &x[image * self.image_len()..][..self.image_len()];
                self.copy_band(pixels, band, &mut copy, |values, copy| copy.copy_from_slice(values));
                let first = (image * self.out_height + band.start) * self.out_width * outputs;
                let grad = &grad[first..][..band.len() * self.out_width * outputs];
                let runs: Vec<Run> = (0..band.len())
                    .map(|y| Run {
                        left: y * self.out_width * outputs,
                        right: y * self.geometry.stride * self.padded_row(),
                        count: self.out_width,
                    })
                    .collect();
                let mut sum = Output::new(sum, depth);
                let strides = [outputs, self.geometry.stride * self.channels];
                // A few rows at a time stay in the first cache while all tiles of the sum pass over them.
                for runs in runs.chunks((linear::OUTER_ROWS / self.out_width).max(1)) {
                    for tap_row in 0..kernel_height {
                        let sum = sum.part(0..outputs, tap_row * row_depth..(tap_row + 1) * row_depth);
                        add_outer_products([grad, &copy[tap_row * self.padded_row()..]], strides, runs, sum);
                    }
                }
            }
        })
    }
}
