//! Kernel size, stride and padding.

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

    pub(super) fn is_pointwise(&self) -> bool {
        *self == Self { kernel: 1, stride: 1, pad_before: 0, pad_after: 0 }
    }
}
