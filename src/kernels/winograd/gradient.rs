//! The gradient with respect to the weight.

use super::super::linear::sum_over_tasks;
use super::super::output::Output;
use super::super::panel_row::PANEL;
use super::super::product::add_outer_products;
use super::super::simd::multiversion;
use super::super::tile::{Run, Tiled};
use super::super::{Real, zeros};
use super::lines::{SEEN, TILE, gradients_in_a_line, products_in_a_line};
use super::{POINTS, TILES_ALONE, Winograd, line, transform_tile};
use rayon::prelude::*;

/// The most memory that the transformed gradient of a weight takes.
const GRADIENT_BYTES: usize = 8 << 20;

impl Winograd {
    /// Whether [`Self::weight_gradient`] is faster than sums over pixels.
    pub fn pays_backward(&self, outputs: usize) -> bool {
        let bytes = POINTS * self.channels * outputs * size_of::<f32>();
        self.pays(outputs) && outputs.is_multiple_of(PANEL) && bytes <= GRADIENT_BYTES
    }

    /// The gradient with respect to the weight, `[out][tap][in]`. The convolution is `A^T [(G w G^T) * (B^T d B)] A`, so the
    /// gradient is `G^T [(A g A^T) * (B^T d B)] G`, with the products summed over all tiles.
    pub fn weight_gradient<T: Tiled>(&self, x: &[T], batch: usize, outputs: usize, grad: &[T]) -> Vec<T> {
        let (tiles, channels) = (batch * self.tiles_per_image(), self.channels);
        let sums = sum_over_tasks(tiles.div_ceil(TILES_ALONE), POINTS * outputs * channels, |blocks, sums| {
            // `[point][tile][channel]` of both.
            let mut seen = zeros::<T>(POINTS * TILES_ALONE * channels + PANEL);
            let mut grads = zeros::<T>(POINTS * TILES_ALONE * outputs);
            let mut sums = Output::new(sums, channels);
            for block in blocks {
                let tiles = block * TILES_ALONE..((block + 1) * TILES_ALONE).min(tiles);
                let count = tiles.len();
                for (i, tile) in tiles.enumerate() {
                    transform_tile(self, x, tile, &mut seen[i * channels..], TILES_ALONE * channels);
                    transform_gradient(self, grad, outputs, tile, &mut grads[i * outputs..], TILES_ALONE * outputs);
                }
                for point in 0..POINTS {
                    let sum = sums.part(point * outputs..(point + 1) * outputs, 0..channels);
                    let factors = [&grads[point * TILES_ALONE * outputs..], &seen[point * TILES_ALONE * channels..]];
                    let runs = [Run { left: 0, right: 0, count }];
                    add_outer_products(factors, [outputs, channels], &runs, sum);
                }
            }
        });
        let mut gradient = zeros::<T>(9 * outputs * channels);
        gradient.par_chunks_exact_mut(9 * channels).enumerate().for_each(|(out, gradient)| {
            kernel_gradient(&sums[out * channels..], outputs * channels, gradient);
        });
        gradient
    }
}

multiversion! {
    /// `A g A^T` of the gradients of a tile's output pixels, sixteen channels at a time, to `[point][channel]` where points are
    /// `stride` apart.
    fn transform_gradient<T: Real>(
        grid: &Winograd, grad: &[T], outputs: usize, tile: usize, out: &mut [T], stride: usize,
    ) {
        let (image, top, left) = grid.position(tile);
        let zeros = [T::zero(); PANEL];
        for first in (0..outputs).step_by(PANEL) {
            let pixel = |i: usize, j: usize| {
                let (y, x) = (top + i, left + j);
                let inside = y < grid.out_height && x < grid.out_width;
                let at = ((image * grid.out_height + y) * grid.out_width + x) * outputs + first;
                if inside { grad[at..].first_chunk().unwrap_or(&zeros) } else { &zeros }
            };
            let mut columns = [[zeros; TILE]; SEEN];
            for j in 0..TILE {
                let line = gradients_in_a_line([0, 1, 2, 3].map(|i| pixel(i, j)));
                for row in 0..SEEN {
                    columns[row][j] = line[row];
                }
            }
            for row in 0..SEEN {
                let [a, b, c, d] = &columns[row];
                let line = gradients_in_a_line([a, b, c, d]);
                for i in 0..SEEN {
                    out[(row * SEEN + i) * stride + first..][..PANEL].copy_from_slice(&line[i]);
                }
            }
        }
    }
}

multiversion! {
    /// `G^T m G` for one output and all channels: from points that are `stride` apart, whole panels, to `[tap][channel]`.
    fn kernel_gradient<T: Real>(sums: &[T], stride: usize, out: &mut [T]) {
        let channels = out.len() / 9;
        for first in (0..channels).step_by(PANEL) {
            let at = |point: usize| line(sums, (point * stride + first) / PANEL);
            let mut columns = [[[T::zero(); PANEL]; SEEN]; 3];
            for i in 0..SEEN {
                let at = |row: usize| at(row * SEEN + i);
                let values = products_in_a_line([at(0), at(1), at(2), at(3), at(4), at(5)]);
                for row in 0..3 {
                    columns[row][i] = values[row];
                }
            }
            for row in 0..3 {
                let [a, b, c, d, e, f] = &columns[row];
                let values = products_in_a_line([a, b, c, d, e, f]);
                for i in 0..3 {
                    out[(row * 3 + i) * channels + first..][..PANEL].copy_from_slice(&values[i]);
                }
            }
        }
    }
}
