//! Where in memory a convolution's images, patches and padding are.

use super::super::panel_row::PANEL;
use super::super::winograd::Winograd;
use super::geometry::ConvGeometry;
use std::ops::Range;

/// A task's copy of the image is about this large: it should stay in the second cache beside the weights' panel.
const BAND_BYTES: usize = 256 << 10;

/// Output rows per task even where the copy becomes larger: the rows between bands are copied twice.
const LEAST_ROWS: usize = 4;

/// A convolution's geometry on one image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub geometry: ConvGeometry,
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    pub out_height: usize,
    pub out_width: usize,
}

impl Grid {
    pub fn new(geometry: ConvGeometry, height: usize, width: usize, channels: usize) -> Self {
        let [out_height, out_width] = geometry.output_sides([height, width]);
        Self { geometry, height, width, channels, out_height, out_width }
    }

    pub fn of(geometry: ConvGeometry, shape: &[usize]) -> Self {
        Self::new(geometry, shape[1], shape[2], shape[3])
    }

    pub fn patch_len(&self) -> usize {
        self.taps() * self.channels
    }

    /// Pixels of a kernel.
    pub fn taps(&self) -> usize {
        self.geometry.kernel[0] * self.geometry.kernel[1]
    }

    pub fn image_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    pub fn out_pixels(&self) -> usize {
        self.out_height * self.out_width
    }

    /// The length of a row of the padded image.
    pub fn padded_row(&self) -> usize {
        (self.width + self.geometry.pad_before[1] + self.geometry.pad_after[1]) * self.channels
    }

    /// The output rows of an image in bands for one task each.
    pub fn bands<T>(&self) -> Vec<Range<usize>> {
        let row_bytes = (self.padded_row() * self.geometry.stride * size_of::<T>()).max(1);
        let rows = (BAND_BYTES / row_bytes).clamp(LEAST_ROWS, self.out_height.max(LEAST_ROWS));
        let bands = self.out_height.div_ceil(rows).max(1);
        (0..bands).map(|i| i * self.out_height / bands..(i + 1) * self.out_height / bands).collect()
    }

    /// Copies the rows of the image that a band of output rows sees, with the padding, as values of another type or the same.
    pub fn copy_band<T, E: Copy + Default>(
        &self,
        image: &[T],
        band: &Range<usize>,
        copy: &mut Vec<E>,
        convert: impl Fn(&[T], &mut [E]),
    ) {
        let ConvGeometry { kernel: [kernel_height, _], stride, pad_before: [above, left], .. } = self.geometry;
        let (row_len, image_row) = (self.padded_row(), self.width * self.channels);
        let rows = (band.len() - 1) * stride + kernel_height;
        // Panels of columns may read beyond the last row.
        copy.resize(rows * row_len + PANEL, E::default());
        for (i, row) in copy.chunks_exact_mut(row_len).take(rows).enumerate() {
            let y = (band.start * stride + i).checked_sub(above).filter(|&y| y < self.height);
            let Some(y) = y else {
                row.fill(E::default());
                continue;
            };
            let (left, rest) = row.split_at_mut(left * self.channels);
            let (inside, right) = rest.split_at_mut(image_row);
            left.fill(E::default());
            convert(&image[y * image_row..][..image_row], inside);
            right.fill(E::default());
        }
    }

    /// Where the patches of a band's output pixels begin in its copy.
    pub fn patch_starts(&self, rows: usize) -> Vec<usize> {
        let stride = self.geometry.stride;
        let of_row =
            |y: usize| (0..self.out_width).map(move |x| y * stride * self.padded_row() + x * stride * self.channels);
        (0..rows).flat_map(of_row).collect()
    }

    /// The stretches of memory that make up a patch: one for each row of the kernel.
    pub fn patch_stretches(&self) -> Vec<(usize, usize)> {
        let [kernel_height, kernel_width] = self.geometry.kernel;
        (0..kernel_height).map(|y| (y * self.padded_row(), kernel_width * self.channels)).collect()
    }

    /// The faster way that 3x3 kernels of stride 1 have, where it is faster.
    pub fn winograd_that_pays(&self, outputs: usize) -> Option<Winograd> {
        self.winograd().filter(|winograd| winograd.pays(outputs))
    }

    /// The other way that 3x3 kernels of stride 1 have.
    pub fn winograd(&self) -> Option<Winograd> {
        let Self { geometry, height, width, channels, out_height, out_width } = *self;
        (geometry.kernel == [3, 3] && geometry.stride == 1).then_some(Winograd {
            height,
            width,
            channels,
            pad: geometry.pad_before,
            out_height,
            out_width,
        })
    }
}
