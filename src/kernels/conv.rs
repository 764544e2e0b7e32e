//! Two-dimensional convolution on channels-last activations, as patches times a matrix.

use super::{
    Kernel, Real, add_product_transposed, apply, contiguous, fill_rows, for_each_image, for_real, output, zeros,
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// The patches of this many bytes of one image exist at a time.
const PATCH_BYTES: usize = 32 << 20;

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
/// `x`: `[batch, height, width, in]`; `weight`: `[out, kernel * kernel * in]`, the input channel running
/// fastest; `bias`: `[out]`; the result is `[batch, height', width', out]`.
///
/// # Errors
/// If the shapes do not fit, or the element type is neither f32 nor f64.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: &Tensor, geometry: ConvGeometry) -> Result<Tensor> {
    apply(Conv2d(geometry), [x, weight, bias])
}

struct Conv2d(ConvGeometry);

impl Kernel for Conv2d {
    const NAME: &'static str = "conv2d";

    fn shape(&self, [x, weight, bias]: [&[usize]; 3]) -> Option<Vec<usize>> {
        let (&[batch, height, width, channels], &[outputs, k], &[b]) = (x, weight, bias) else { return None };
        let grid = Grid::new(self.0, height, width, channels);
        let smallest = self.0.kernel.saturating_sub(self.0.pad_before + self.0.pad_after);
        (height.min(width) >= smallest.max(1) && k == grid.patch_len() && b == outputs)
            .then(|| vec![batch, grid.out_height, grid.out_width, outputs])
    }

    fn forward<T: Real>(&self, [x, weight, bias]: [&[T]; 3], [shape, ..]: [&[usize]; 3]) -> Vec<T> {
        let grid = Grid::new(self.0, shape[1], shape[2], shape[3]);
        let (out_channels, k) = (bias.len(), grid.patch_len());
        let out_pixels = grid.out_height * grid.out_width;
        let mut out = zeros::<T>(shape[0] * out_pixels * out_channels);
        let row_len = grid.out_width * k;
        let band = (PATCH_BYTES / size_of::<T>() / row_len.max(1)).clamp(1, grid.out_height.max(1));
        for_each_image((x, grid.image_len()), (&mut out, out_pixels * out_channels), |image, out, parallelism| {
            out.par_chunks_mut(grid.out_width * out_channels).for_each(|row| fill_rows(row, bias));
            if grid.geometry.is_pointwise() {
                add_product_transposed(out, image, weight, (out_pixels, out_channels, k), parallelism);
                return;
            }
            let mut patches = zeros::<T>(band * row_len);
            for (i, out) in out.chunks_mut(band * grid.out_width * out_channels).enumerate() {
                let pixels = out.len() / out_channels;
                let patches = &mut patches[..pixels * k];
                patches
                    .par_chunks_mut(row_len)
                    .enumerate()
                    .for_each(|(y, row)| grid.fill_row(image, i * band + y, row));
                add_product_transposed(out, patches, weight, (pixels, out_channels, k), parallelism);
            }
        });
        out
    }

    fn backward(&self, [x, weight, _]: [&Tensor; 3], grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let (_, height, width, channels) = x.dims4()?;
        let grid = Grid::new(self.0, height, width, channels);
        let grad_rows = grad.contiguous()?.reshape(((), weight.dim(0)?))?;
        let grad_weight = grad_rows.t()?.matmul(&x.apply_op1_no_bwd(&Patches(grid))?)?;
        let grad_x = grad_rows.matmul(weight)?.apply_op1_no_bwd(&Fold(grid))?;
        Ok([Some(grad_x), Some(grad_weight), Some(grad_rows.sum(0)?)])
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

    fn patch_len(&self) -> usize {
        self.geometry.kernel * self.geometry.kernel * self.channels
    }

    fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// The input position under tap `tap` of output position `out`, if it is not padding.
    fn input(&self, out: usize, tap: usize, side: usize) -> Option<usize> {
        (out * self.geometry.stride + tap).checked_sub(self.geometry.pad_before).filter(|&i| i < side)
    }

    /// Calls `visit(offset in the row of patches, offset in the image, count)` for each run of values that an
    /// output row's patches take from the image, or from the padding, which has no offset.
    fn runs(&self, out_y: usize, mut visit: impl FnMut(usize, Option<usize>, usize)) {
        let (kernel, channels) = (self.geometry.kernel, self.channels);
        let tap_row = kernel * channels;
        for tap_y in 0..kernel {
            let y = self.input(out_y, tap_y, self.height);
            for out_x in 0..self.out_width {
                let patch = out_x * self.patch_len() + tap_y * tap_row;
                let Some(y) = y else {
                    visit(patch, None, tap_row);
                    continue;
                };
                // Neighbouring taps of a row are neighbours in the image: one run for those inside it.
                let x = out_x * self.geometry.stride;
                let before = self.geometry.pad_before.saturating_sub(x).min(kernel);
                let left = x + before - self.geometry.pad_before;
                let inside = (kernel - before).min(self.width.saturating_sub(left));
                let after = before + inside;
                visit(patch, None, before * channels);
                visit(patch + before * channels, Some((y * self.width + left) * channels), inside * channels);
                visit(patch + after * channels, None, (kernel - after) * channels);
            }
        }
    }

    fn fill_row<T: Real>(&self, image: &[T], out_y: usize, patches: &mut [T]) {
        self.runs(out_y, |patch, from, count| {
            let run = &mut patches[patch..patch + count];
            match from {
                Some(from) => run.copy_from_slice(&image[from..from + count]),
                None => run.fill(T::zero()),
            }
        });
    }
}

/// Images to patches: `[batch, height, width, c]` to `[batch * height' * width', kernel * kernel * c]`.
struct Patches(Grid);

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let grid = &self.0;
        let rows = layout.dims()[0] * grid.out_height;
        for_real!(x, self.name(), T => {
            let x = contiguous::<T>(x, layout, self.name())?;
            let mut patches = zeros::<T>(rows * grid.out_width * grid.patch_len());
            patches.par_chunks_mut(grid.out_width * grid.patch_len()).enumerate().for_each(|(row, patches)| {
                let image = &x[row / grid.out_height * grid.image_len()..][..grid.image_len()];
                grid.fill_row(image, row % grid.out_height, patches);
            });
            output(patches, (rows * grid.out_width, grid.patch_len()))
        })
    }
}

/// The adjoint of [`Patches`]: every patch value is added to the pixel it came from.
struct Fold(Grid);

impl CustomOp1 for Fold {
    fn name(&self) -> &'static str {
        "fold"
    }

    fn cpu_fwd(&self, patches: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let grid = &self.0;
        let row_len = grid.out_width * grid.patch_len();
        let images = layout.shape().elem_count() / (grid.out_height * row_len);
        for_real!(patches, self.name(), T => {
            let patches = contiguous::<T>(patches, layout, self.name())?;
            let mut x = zeros::<T>(images * grid.image_len());
            x.par_chunks_mut(grid.image_len()).enumerate().for_each(|(i, image)| {
                for out_y in 0..grid.out_height {
                    let row = &patches[(i * grid.out_height + out_y) * row_len..][..row_len];
                    grid.runs(out_y, |patch, to, count| {
                        let Some(to) = to else { return };
                        for (x, p) in image[to..to + count].iter_mut().zip(&row[patch..patch + count]) {
                            *x += *p;
                        }
                    });
                }
            });
            output(x, (images, grid.height, grid.width, grid.channels))
        })
    }
}
