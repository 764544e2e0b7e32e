//! Convolution with a 3x3 kernel by Winograd's F(4x4, 3x3) (Lavin and Gray 2016).
//!
//! A tile of 4x4 output pixels is computed from 6x6 input pixels. Both the pixels and the kernel are transformed
//! to 36 values per channel, multiplied there, and the sums transformed back: 36 products instead of 144. In a
//! line, pixels and kernel are polynomials that are evaluated at 0, ±[`NEAR`](lines::NEAR), ±[`FAR`](lines::FAR) and infinity. The
//! kernels are transformed a panel and some channels at a time, just before they are used, so that no
//! larger copy of the weights exists.
#![allow(clippy::needless_range_loop)] // rows and columns are numbered as in the formulas

mod gradient;
mod lines;

pub(super) use lines::TILE;

use super::addend::{Addend, Start};
use super::output::{Matrix, Output, matrix};
use super::panel_row::PANEL;
use super::panels::{PanelSource, TapLines};
use super::simd::multiversion;
use super::tile::{Left, Right, Run, Tiled, add_tiles};
use super::{Real, zeros};
use lines::{Lanes, SEEN, lanes, pixels_in_a_line, sums_in_a_line, weights_in_a_line};
use rayon::prelude::*;
use std::ops::Range;

/// Values per channel that a tile is transformed to.
const POINTS: usize = SEEN * SEEN;

/// Tiles that are transformed and multiplied together, by all threads.
const TILES: usize = 128;

/// The same by one thread, where there are many, and of gradients.
const TILES_ALONE: usize = 64;

/// The most that a thread alone has where the last cache has room for more: the more tiles, the fewer times kernels are transformed.
const MOST_ALONE: usize = 128;

/// Transformed values for which the last cache has room, of all threads together.
const VALUES_CACHED: usize = 3 << 20;

/// Input channels whose kernels are transformed at a time: they stay in the second cache.
const CHANNELS: usize = 80;

/// The least share of the tiles' pixels that has to be inside the image.
const LEAST_USE: f64 = 0.5;

/// A 3x3 convolution of stride 1 on images of one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Winograd {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// Zeros above and to the left.
    pub pad: [usize; 2],
    pub out_height: usize,
    pub out_width: usize,
}

impl Winograd {
    /// Whether it is faster than to multiply patches: which depends on one image and the weights alone, so that
    /// the batch changes nothing; and of images of [`LEAST_SIDE`](super::conv::LEAST_SIDE) pixels a side on the channels alone.
    pub fn pays(&self, outputs: usize) -> bool {
        let pixels = (self.tiles_per_image() * TILE * TILE) as f64;
        let used = (self.out_height * self.out_width) as f64;
        self.channels.is_multiple_of(PANEL) && outputs >= PANEL && used >= LEAST_USE * pixels
    }

    fn tile_columns(&self) -> usize {
        self.out_width.div_ceil(TILE)
    }

    fn tiles_per_image(&self) -> usize {
        self.out_height.div_ceil(TILE) * self.tile_columns()
    }

    /// The convolution with weights packed as for patches: `[panel][tap][channel][16]`.
    pub fn convolve<'a, T: Tiled>(
        &self,
        x: &[T],
        batch: usize,
        panels: impl PanelSource<'a, T>,
        addend: Addend<'_, T>,
    ) -> Vec<T> {
        let outputs = addend.outputs;
        let tiles = batch * self.tiles_per_image();
        let (at_once, all_panels) = (T::panels_at_once(), outputs.div_ceil(PANEL));
        let groups = all_panels.div_ceil(at_once);
        let write_group =
            |transformed: &[T], tiles: &Range<usize>, group: usize, buffers: &mut Buffers<T>, whole: &Matrix<'_, T>| {
                let group = group * at_once..((group + 1) * at_once).min(all_panels);
                self.multiply(transformed, (panels, &group), tiles.len(), buffers);
                for (i, panel) in group.clone().enumerate() {
                    let columns = panel * PANEL..((panel + 1) * PANEL).min(outputs);
                    write_tiles(self, (&buffers.sums, group.len(), i), tiles.clone(), addend, columns, whole);
                }
            };
        let compute = |whole: Output<'_, T>| {
            let whole = Matrix::new(whole);
            let threads = rayon::current_num_threads();
            if let Some(blocks) = self.blocks_alone(tiles, threads) {
                // Nobody waits for anybody.
                let len = tiles.div_ceil(blocks) * self.tile_len();
                let buffers = || {
                    let mut transformed = Vec::with_capacity(capacity_alone(len, threads));
                    transformed.resize(len, T::zero());
                    (transformed, Buffers::default())
                };
                (0..blocks).into_par_iter().for_each_init(buffers, |(transformed, buffers), block| {
                    let tiles = block * tiles / blocks..(block + 1) * tiles / blocks;
                    let lines = transformed.chunks_exact_mut(self.tile_len());
                    tiles.clone().zip(lines).for_each(|(tile, out)| transform_tile(self, x, tile, out, self.channels));
                    (0..groups).for_each(|group| write_group(transformed, &tiles, group, buffers, &whole));
                });
                return;
            }
            let mut transformed = zeros::<T>(TILES.min(tiles) * self.tile_len());
            for first in (0..tiles).step_by(TILES) {
                let tiles = first..(first + TILES).min(tiles);
                let lines = transformed.par_chunks_exact_mut(self.tile_len());
                let transform = |(tile, out): (usize, &mut [T])| transform_tile(self, x, tile, out, self.channels);
                tiles.clone().into_par_iter().zip(lines).for_each(transform);
                (0..groups).into_par_iter().for_each_init(Buffers::default, |buffers, group| {
                    write_group(&transformed, &tiles, group, buffers, &whole);
                });
            }
        };
        // SAFETY: every pixel is in a tile and every column in a panel, and `write_tiles` sets all of both.
        unsafe { matrix(batch * self.out_height * self.out_width, outputs, addend.residual, compute) }
    }

    /// Into how many blocks so many tiles are cut if each thread has its own, which is where there are enough of them.
    fn blocks_alone(&self, tiles: usize, threads: usize) -> Option<usize> {
        let most = (VALUES_CACHED / threads / self.tile_len()).clamp(TILES_ALONE, MOST_ALONE);
        (tiles >= threads * TILES_ALONE).then(|| tiles.div_ceil(most).next_multiple_of(threads))
    }

    /// The values of each block that the threads have for themselves while a convolution is computed: tiles, kernels and sums.
    pub fn scratch(&self, batch: usize, outputs: usize) -> Vec<usize> {
        let threads = rayon::current_num_threads();
        let (tiles, panels) = (batch * self.tiles_per_image(), outputs.div_ceil(PANEL));
        let at_once = f32::panels_at_once().min(panels).max(1);
        let values = |lines: usize| at_once * PANEL * POINTS * (lines + 1);
        let buffers = |tiles: usize| [values(self.channels.min(CHANNELS)), values(tiles)];
        match self.blocks_alone(tiles, threads) {
            Some(blocks) => {
                let tiles = tiles.div_ceil(blocks);
                let [kernels, sums] = buffers(tiles);
                [capacity_alone(tiles * self.tile_len(), threads), kernels, sums].repeat(threads)
            }
            None => {
                let tiles = tiles.min(TILES);
                let mut blocks = vec![tiles * self.tile_len()];
                blocks.extend(buffers(tiles).repeat(threads.min(panels.div_ceil(at_once))));
                blocks
            }
        }
    }

    /// The values of a transformed tile, `[point][channel]`, and a line more: otherwise tiles could share a place in the
    /// cache.
    fn tile_len(&self) -> usize {
        POINTS * self.channels + PANEL
    }

    /// The image that a tile is in, and its first pixel.
    fn position(&self, tile: usize) -> (usize, usize, usize) {
        let (image, tile) = (tile / self.tiles_per_image(), tile % self.tiles_per_image());
        (image, tile / self.tile_columns() * TILE, tile % self.tile_columns() * TILE)
    }

    /// For each point the sums over the channels, for some panels.
    fn multiply<'a, T: Tiled>(
        &self,
        x: &[T],
        (source, panels): (impl PanelSource<'a, T>, &Range<usize>),
        tiles: usize,
        buffers: &mut Buffers<T>,
    ) {
        let Buffers { lines, kernels, sums } = buffers;
        let columns = panels.len() * PANEL;
        let starts: Vec<usize> = (0..tiles).map(|tile| tile * self.tile_len()).collect();
        sums.resize(POINTS * (tiles + 1) * columns, T::zero());
        let mut sums = Output::new(sums, columns);
        let pieces = self.channels.div_ceil(CHANNELS);
        for piece in 0..pieces {
            let channels = piece * self.channels / pieces..(piece + 1) * self.channels / pieces;
            let count = channels.len();
            let start = if piece == 0 { Start::Zero } else { Start::Output };
            let panel_len = POINTS * (count + 1) * PANEL;
            kernels.resize(panels.len() * panel_len, T::zero());
            for (panel, kernels) in panels.clone().zip(kernels.chunks_exact_mut(panel_len)) {
                let weights = source.tap_lines(panel, [9, self.channels], &channels, lines);
                (0..count).for_each(|channel| transform_kernel(weights, channel, kernels, count));
            }
            for point in 0..POINTS {
                let rows = point * (tiles + 1)..point * (tiles + 1) + tiles;
                let out = sums.part(rows, 0..columns);
                let left = Left { values: x, starts: &starts, step: 1 };
                let right = Right { values: kernels, step: PANEL, panel: panel_len };
                let left_start = point * self.channels + channels.start;
                let run = Run { left: left_start, right: point * (count + 1) * PANEL, count };
                add_tiles(left, right, &[run], start, out);
            }
        }
    }
}

/// Room for the transformed values of a thread alone: as much for all convolutions of few channels, so that they have the same block
/// in turn, which is kept unless there are very many threads.
fn capacity_alone(len: usize, threads: usize) -> usize {
    len.max(VALUES_CACHED / threads)
}

/// What a task keeps from one group of panels to the next.
#[derive(Debug)]
struct Buffers<T> {
    /// Kernels that lie nowhere, some channels of a panel at a time.
    lines: Vec<T>,
    /// Transformed kernels, `[panel][point][channel][16]`, one line more for each point.
    kernels: Vec<T>,
    /// `[point][tile][panel][16]`, one tile more for each point.
    sums: Vec<T>,
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), kernels: Vec::new(), sums: Vec::new() }
    }
}

multiversion! {
    /// `B^T d B` of a tile, sixteen channels at a time, to `[point][channel]` where points are `stride` apart.
    fn transform_tile<T: Real>(grid: &Winograd, x: &[T], tile: usize, out: &mut [T], stride: usize) {
        let (image, top, left) = grid.position(tile);
        let inside =
            |start: usize, i: usize, pad: usize, side: usize| (start + i).checked_sub(pad).filter(|&i| i < side);
        let [above, before] = grid.pad;
        let zeros = [T::zero(); PANEL];
        let pixels: [Option<&[T]>; POINTS] = std::array::from_fn(|i| {
            let y = inside(top, i / SEEN, above, grid.height)?;
            let x_ = inside(left, i % SEEN, before, grid.width)?;
            Some(&x[((image * grid.height + y) * grid.width + x_) * grid.channels..][..grid.channels])
        });
        let mut columns = [[zeros; SEEN]; SEEN];
        for first in (0..grid.channels).step_by(PANEL) {
            let pixel = |i: usize| pixels[i].and_then(|pixel| pixel[first..].first_chunk()).unwrap_or(&zeros);
            for i in 0..SEEN {
                let line = pixels_in_a_line([0, 1, 2, 3, 4, 5].map(|row| pixel(row * SEEN + i)));
                for row in 0..SEEN {
                    columns[row][i] = line[row];
                }
            }
            for row in 0..SEEN {
                let [a, b, c, d, e, f] = &columns[row];
                let line = pixels_in_a_line([a, b, c, d, e, f]);
                for i in 0..SEEN {
                    out[(row * SEEN + i) * stride + first..][..PANEL].copy_from_slice(&line[i]);
                }
            }
        }
    }
}

/// The sixteen values at a multiple of sixteen.
#[inline(always)]
fn line<T: Real>(values: &[T], line: usize) -> &Lanes<T> {
    &values.as_chunks().0[line]
}

multiversion! {
    /// `G g G^T` of the kernels from one of `count` channels to sixteen outputs, written as its row for each point.
    fn transform_kernel<T: Real>(weights: TapLines<'_, T>, channel: usize, out: &mut [T], count: usize) {
        let TapLines { values, first, tap: apart } = weights;
        let (lines, out) = (&values.as_chunks::<PANEL>().0[first + channel..], out.as_chunks_mut::<PANEL>().0);
        let mut columns = [[[T::zero(); PANEL]; 3]; SEEN];
        for i in 0..3 {
            let values = weights_in_a_line([&lines[i * apart], &lines[(3 + i) * apart], &lines[(6 + i) * apart]]);
            for row in 0..SEEN {
                columns[row][i] = values[row];
            }
        }
        for row in 0..SEEN {
            let [a, b, c] = &columns[row];
            let values = weights_in_a_line([a, b, c]);
            for column in 0..SEEN {
                out[(row * SEEN + column) * (count + 1) + channel] = values[column];
            }
        }
    }
}

multiversion! {
    /// The output pixels of some tiles: `A^T m A` of their sums, plus the bias and the residual. With the sums comes how many
    /// panels they are of, and which one is written.
    fn write_tiles<T: Real>(
        grid: &Winograd, sums: (&[T], usize, usize), tiles: Range<usize>, addend: Addend<'_, T>, columns: Range<usize>,
        whole: &Matrix<'_, T>,
    ) {
        let (sums, panels, panel) = sums;
        for tile in tiles.clone() {
            let (image, top, left) = grid.position(tile);
            let mut offset = [T::zero(); PANEL];
            if let Start::Row(bias) = addend.of(image, &columns) {
                offset[..bias.len()].copy_from_slice(bias);
            }
            let mut halfway = [[[T::zero(); PANEL]; SEEN]; TILE];
            for i in 0..SEEN {
                let place = |row: usize| (row * SEEN + i) * (tiles.len() + 1) + tile - tiles.start;
                let at = |row: usize| line(sums, place(row) * panels + panel);
                let values = sums_in_a_line([at(0), at(1), at(2), at(3), at(4), at(5)]);
                for row in 0..TILE {
                    halfway[row][i] = values[row];
                }
            }
            for y in 0..TILE.min(grid.out_height - top) {
                let [a, b, c, d, e, f] = &halfway[y];
                let values = sums_in_a_line([a, b, c, d, e, f]);
                for x in 0..TILE.min(grid.out_width - left) {
                    let pixel = (image * grid.out_height + top + y) * grid.out_width + left + x;
                    let mut values = lanes(|i| values[x][i] + offset[i]);
                    // SAFETY: every tile has its own pixels, every task its own columns.
                    let mut out = unsafe { whole.block(pixel..pixel + 1, columns.clone()) };
                    if let Some(residual) = out.residual(0) {
                        values.iter_mut().zip(residual).for_each(|(value, &residual)| *value += residual);
                    }
                    out.fill(&values[..columns.len()]);
                }
            }
        }
    }
}
