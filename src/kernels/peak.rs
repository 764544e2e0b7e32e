//! What the machine can do at best, to compare kernels with.

use super::InstructionSet;
use super::bf16::{self, Pairs, Products, STEP};
use super::output::{Output, Start};
use super::tile::{Left, PANEL, Product, Right, Rows, Run, add_tiles};
use std::time::Instant;

/// The speed of the product in GFLOP/s on all threads, on factors that stay in the first two caches: the most that any
/// direct kernel here can reach. Takes about a tenth of a second.
pub fn measured_peak(products: Products) -> f64 {
    const TRIALS: usize = 8;
    let work = match products {
        Products::Full => full_products,
        Products::Bf16 => bf16_products,
    };
    let trial = |_| {
        let start = Instant::now();
        let operations: usize = rayon::broadcast(|_| work()).into_iter().sum();
        operations as f64 / start.elapsed().as_secs_f64() / 1e9
    };
    (0..TRIALS).map(trial).fold(0.0, f64::max)
}

/// Products of f32; how many operations they were.
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

/// Products of bf16, on so many columns that laying out the rows is of no account.
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
        let out = Output::new(&mut sums, COLUMNS);
        bf16::add_product(rows, Pairs::new(&pairs), Start::Output, &out, InstructionSet::in_use());
    }
    std::hint::black_box(sums);
    2 * ROWS * DEPTH * COLUMNS * repeats
}
