//! Rectangles of a picture.

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// The first column.
    pub left: usize,
    /// The first row.
    pub top: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl CropBox {
    /// All of a picture.
    pub fn whole(width: usize, height: usize) -> Self {
        Self { left: 0, top: 0, width, height }
    }

    /// The column after the last.
    pub fn right(&self) -> usize {
        self.left.saturating_add(self.width)
    }

    /// The row after the last.
    pub fn bottom(&self) -> usize {
        self.top.saturating_add(self.height)
    }

    /// Whether it has pixels, all within a picture of that size.
    pub fn is_within(&self, width: usize, height: usize) -> bool {
        self.width > 0 && self.height > 0 && self.right() <= width && self.bottom() <= height
    }

    /// Larger by `padding` pixels on every side, as far as a picture of that size reaches.
    pub fn padded(&self, padding: usize, width: usize, height: usize) -> Self {
        let (left, top) = (self.left.saturating_sub(padding), self.top.saturating_sub(padding));
        let right = self.right().saturating_add(padding).min(width);
        let bottom = self.bottom().saturating_add(padding).min(height);
        Self { left, top, width: right.saturating_sub(left), height: bottom.saturating_sub(top) }
    }

    /// Larger on its shorter axis until width is to height as `aspect.0` to `aspect.1`, or the picture of that size
    /// ends. It grows about its centre, and is moved where that would leave the picture.
    pub fn with_aspect(&self, aspect: (usize, usize), width: usize, height: usize) -> Self {
        let (across, down) = (aspect.0.max(1), aspect.1.max(1));
        if self.width * down > self.height * across {
            self.enlarged(self.width, (self.width * down).div_ceil(across), width, height)
        } else {
            self.enlarged((self.height * across).div_ceil(down), self.height, width, height)
        }
    }

    fn enlarged(&self, to_width: usize, to_height: usize, width: usize, height: usize) -> Self {
        let axis = |start: usize, length: usize, to: usize, limit: usize| {
            let to = to.max(length).min(limit);
            (start.saturating_sub(to.saturating_sub(length) / 2).min(limit - to), to)
        };
        let (left, width) = axis(self.left, self.width, to_width, width);
        let (top, height) = axis(self.top, self.height, to_height, height);
        Self { left, top, width, height }
    }

    /// These pixels of `data`, which has rows of `width` pixels of `channels` samples.
    pub(super) fn cut<T: Copy>(&self, data: &[T], width: usize, channels: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(channels * self.width * self.height);
        for y in self.top..self.bottom() {
            let start = channels * (y * width + self.left);
            out.extend_from_slice(&data[start..start + channels * self.width]);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_grows_about_its_centre_and_stays_inside() {
        let small = CropBox { left: 10, top: 20, width: 30, height: 10 };
        assert_eq!(small.padded(5, 100, 100), CropBox { left: 5, top: 15, width: 40, height: 20 });
        assert_eq!(small.padded(15, 50, 32), CropBox { left: 0, top: 5, width: 50, height: 27 });
        assert_eq!(small.with_aspect((1, 1), 100, 100), CropBox { left: 10, top: 10, width: 30, height: 30 });
        // No room above: moved down; no room at all: what there is.
        assert_eq!(small.with_aspect((1, 2), 100, 100), CropBox { left: 10, top: 0, width: 30, height: 60 });
        assert_eq!(small.with_aspect((1, 2), 100, 40), CropBox { left: 10, top: 0, width: 30, height: 40 });
        assert_eq!(small.with_aspect((6, 1), 50, 50), CropBox { left: 0, top: 20, width: 50, height: 10 });
    }
}
