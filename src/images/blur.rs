//! Gaussian blur of one channel of bytes, with the numbers of Pillow's `ImageFilter.GaussianBlur`.

use rayon::prelude::*;

/// Box blurs along each axis; three are within 3 % of a Gaussian.
const PASSES: usize = 3;
/// The box is kept in 24 fraction bits.
const FRACTION_BITS: u32 = 24;

/// Blurred by a Gaussian with a standard deviation of `sigma` pixels, the edge's pixels repeated outside. Three box
/// blurs along rows and three along columns, each rounded to bytes; the cost does not depend on `sigma`.
///
/// The boxes have fractional radii: Gwosdek et al., "Theoretical Foundations of Gaussian Convolution by Extended Box
/// Filtering" (2011).
pub(super) fn gaussian(data: &[u8], width: usize, height: usize, sigma: f32) -> Vec<u8> {
    let window = Window::of_gaussian(sigma);
    let rows = window.blurred_rows(data, width);
    let columns = window.blurred_rows(&transposed(&rows, width, height), height);
    transposed(&columns, height, width)
}

fn transposed(data: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut out = vec![0; data.len()];
    out.par_chunks_exact_mut(height).enumerate().for_each(|(x, column)| {
        for (y, value) in column.iter_mut().enumerate() {
            *value = data[y * width + x];
        }
    });
    out
}

/// A box: `2 * radius + 1` whole pixels of one weight, and one pixel more on each side of a smaller weight.
struct Window {
    radius: usize,
    whole: u32,
    edge: u32,
}

impl Window {
    /// The box whose variance is that of a Gaussian, divided by the number of passes.
    fn of_gaussian(sigma: f32) -> Self {
        let variance = f64::from(sigma * sigma / PASSES as f32);
        // The largest whole radius whose box has less variance, then the fraction that makes up the rest: equations 6
        // and 7.
        let whole = (((12.0 * variance + 1.0).sqrt() - 1.0) / 2.0).floor();
        let missing = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
        let fraction = missing / (6.0 * (variance - (whole + 1.0).powi(2)));
        let radius = (whole + fraction) as f32;
        let weight = (f64::from(1u32 << FRACTION_BITS) / (f64::from(radius) * 2.0 + 1.0)) as u32;
        let covered = (radius as u32 * 2 + 1) * weight;
        Self { radius: radius as usize, whole: weight, edge: ((1 << FRACTION_BITS) - covered) / 2 }
    }

    fn blurred_rows(&self, data: &[u8], width: usize) -> Vec<u8> {
        let mut out = data.to_vec();
        out.par_chunks_exact_mut(width).for_each_init(Vec::new, |line, row| {
            for _ in 0..PASSES {
                line.clear();
                line.extend_from_slice(row);
                self.blur_line(line, row);
            }
        });
        out
    }

    fn blur_line(&self, line: &[u8], out: &mut [u8]) {
        let last = line.len() - 1;
        let at = |x: usize| u32::from(line[x.min(last)]);
        let before = |x: usize, distance: usize| at(x.saturating_sub(distance));
        // Around the pixel before the first: its window is all edge on the left.
        let outside = self.radius.saturating_sub(line.len()) as u32;
        let inside: u32 = line.iter().take(self.radius).map(|&value| u32::from(value)).sum();
        let mut sum = at(0) * (self.radius as u32 + 1) + inside + at(last) * outside;
        for (x, out) in out.iter_mut().enumerate() {
            sum = sum + at(x + self.radius) - before(x, self.radius + 1);
            let edges = before(x, self.radius + 1) + at(x + self.radius + 1);
            *out = ((sum * self.whole + edges * self.edge + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS) as u8;
        }
    }
}
