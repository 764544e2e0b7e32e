//! Kernel size, stride and padding.

use std::ops::Range;

/// A convolution whose output begins at a multiple of this many of its output rows gives them the bits that they have in the
/// whole image: so many rows are computed together.
pub(crate) const ROWS_TOGETHER: usize = super::super::winograd::TILE;

/// A part of an image that has as many rows and columns, or more, is convolved in the same way as the whole image, which depends
/// on the channels alone then.
pub(crate) const LEAST_SIDE: usize = 16;

/// Kernel size, stride and zero padding. Of two numbers the first is along the height and the second along the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// The step between output pixels, in both directions.
    pub stride: usize,
    /// Zeros above and to the left.
    pub pad_before: [usize; 2],
    /// Zeros below and to the right.
    pub pad_after: [usize; 2],
}

impl ConvGeometry {
    /// A square kernel, with as many zeros on every side.
    pub const fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        Self { kernel: [kernel; 2], stride, pad_before: [pad; 2], pad_after: [pad; 2] }
    }

    /// Stride 1 and the padding that keeps the size, for a kernel of odd sides.
    pub const fn same(kernel: [usize; 2]) -> Self {
        let pad = [kernel[0] / 2, kernel[1] / 2];
        Self { kernel, stride: 1, pad_before: pad, pad_after: pad }
    }

    /// The output's height and width for an input of these.
    pub fn output_sides(&self, sides: [usize; 2]) -> [usize; 2] {
        std::array::from_fn(|axis| {
            let padded = sides[axis] + self.pad_before[axis] + self.pad_after[axis];
            padded.saturating_sub(self.kernel[axis]) / self.stride + 1
        })
    }

    /// Whether an input of these sides is large enough for one output pixel.
    pub(in super::super) fn fits(&self, sides: [usize; 2]) -> bool {
        (0..2).all(|axis| {
            sides[axis] > 0 && sides[axis] + self.pad_before[axis] + self.pad_after[axis] >= self.kernel[axis]
        })
    }

    /// The rows of an image of `height` rows that some rows of the output see.
    pub(crate) fn rows_seen(&self, output: &Range<usize>, height: usize) -> Range<usize> {
        let above = self.pad_before[0];
        let first = (output.start * self.stride).saturating_sub(above);
        let end = (output.end.saturating_sub(1) * self.stride + self.kernel[0]).saturating_sub(above);
        first..end.min(height)
    }

    /// The same for [some rows](Self::rows_seen) of the image alone: there is padding only where the image ends.
    pub(crate) fn for_rows(mut self, seen: &Range<usize>, height: usize) -> Self {
        if seen.start > 0 {
            self.pad_before[0] = 0;
        }
        if seen.end < height {
            self.pad_after[0] = 0;
        }
        self
    }

    pub(super) fn is_pointwise(&self) -> bool {
        *self == Self::square(1, 1, 0)
    }
}
