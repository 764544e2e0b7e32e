//! What the machine can do: at best, to compare kernels with; and in which number format faster.

use super::InstructionSet;
use super::addend::Start;
use super::bf16::{self, MatmulPrecision, Pairs, STEP};
use super::conv::{ConvGeometry, conv2d_packed};
use super::linear::linear_packed;
use super::output::Output;
use super::packed_weight::PackedWeight;
use super::panel_row::PANEL;
use super::rows::Rows;
use super::tile::{Left, Right, Run, Tiled, add_tiles};
use candle_core::{DType, Device, Result, Tensor};
use std::time::Instant;

/// The speed of the product in GFLOP/s on all threads, on factors that stay in the first two caches: the most that any
/// direct kernel here can reach. Takes about a tenth of a second.
pub fn measured_peak(products: MatmulPrecision) -> f64 {
    const TRIALS: usize = 8;
    let work = match products {
        MatmulPrecision::Full => full_products,
        MatmulPrecision::Bf16 => bf16_products,
    };
    let trial = |_| {
        let start = Instant::now();
        let operations: usize = rayon::broadcast(|_| work()).into_iter().sum();
        operations as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..TRIALS).map(trial).fold(0.0, f64::max)
}

/// MatmulPrecision of f32; how many operations they were.
fn full_products() -> usize {
    const ROWS: usize = 24;
    const DEPTH: usize = 128;
    const REPEATS: usize = 300;
    let columns = f32::panels_at_once() * PANEL;
    let (left, right) = (vec![1f32; ROWS * DEPTH], vec![1f32; DEPTH * columns]);
    let starts: Vec<usize> = (0..ROWS).map(|row| row * DEPTH).collect();
    let runs = [Run { left: 0, right: 0, count: DEPTH }];
    let mut sums = vec![0f32; ROWS * columns];
    for _ in 0..REPEATS {
        let left = Left { values: &left, starts: &starts, step: 1 };
        let right = Right { values: &right, step: PANEL, panel: DEPTH * PANEL };
        add_tiles(left, right, &runs, Start::Output, Output::new(&mut sums, columns));
    }
    std::hint::black_box(sums);
    2 * ROWS * DEPTH * columns * REPEATS
}

/// MatmulPrecision of bf16, on so many columns that laying out the rows is of no account.
fn bf16_products() -> usize {
    const ROWS: usize = 64;
    const DEPTH: usize = 8 * STEP;
    const COLUMNS: usize = 1024;
    let repeats = if InstructionSet::in_use().multiplies_bf16() { 50 } else { 1 };
    let rows = vec![half::bf16::ONE; ROWS * DEPTH];
    let pairs = bf16::pack(DEPTH, COLUMNS, |_, _| half::bf16::ONE);
    let starts: Vec<usize> = (0..ROWS).map(|row| row * DEPTH).collect();
    let rows = Rows { values: &rows, starts: &starts, stretches: &[(0, DEPTH)] };
    let mut sums = vec![0f32; ROWS * COLUMNS];
    for _ in 0..repeats {
        let mut out = Output::new(&mut sums, COLUMNS);
        bf16::add_product(rows, Pairs::new(&pairs), Start::Output, &mut out, InstructionSet::in_use());
    }
    std::hint::black_box(sums);
    2 * ROWS * DEPTH * COLUMNS * repeats
}

/// How many times as fast as in full a network's products are in bf16, on one thread: one convolution with a 3x3 kernel and one
/// linear layer of the sizes that they have in Stable Diffusion's UNet, which takes about a fifth of a second on machines
/// with [such instructions](InstructionSet::multiplies_bf16), and seconds on others.
pub fn bf16_speedup() -> f64 {
    // One is what changes nothing.
    speedup(32, 320).unwrap_or(1.0)
}

/// The weights of full products are stored in half precision, as those are that could be in bf16 instead.
fn speedup(side: usize, channels: usize) -> Result<f64> {
    const TRIALS: usize = 3;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(candle_core::Error::wrap)?;
    let values = |shape: &[usize]| Tensor::full(0.01f32, shape, &Device::Cpu);
    let image = values(&[1, side, side, channels])?;
    let tokens = image.reshape((1, side * side, channels))?;
    let bias = values(&[channels])?;
    let geometry = ConvGeometry::square(3, 1, 1);
    let seconds = |products| -> Result<f64> {
        let packed = |shape: &[usize]| PackedWeight::with_products(&values(shape)?.to_dtype(DType::F16)?, products);
        let (kernel, matrix) = (packed(&[channels, channels, 3, 3])?, packed(&[channels, channels])?);
        let mut best = f64::INFINITY;
        for _ in 0..TRIALS {
            let start = Instant::now();
            conv2d_packed(&image, &kernel, &bias, geometry)?;
            linear_packed(&tokens, &matrix, &bias)?;
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    pool.install(|| Ok(seconds(MatmulPrecision::Full)? / seconds(MatmulPrecision::Bf16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_products_are_timed() -> Result<()> {
        let speedup = speedup(8, 32)?;
        assert!(speedup.is_finite() && speedup > 0.0, "{speedup}");
        Ok(())
    }
}
