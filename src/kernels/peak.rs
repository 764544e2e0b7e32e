//! What the machine can do at best, to compare kernels with.

use super::tile::{Output, PANEL, Run, Start, Strided, add_tiles};
use std::time::Instant;

/// The speed of the f32 product in GFLOP/s on all threads, on factors that stay in the first cache: the most that any
/// direct kernel here can reach. Takes about a tenth of a second.
pub fn measured_peak() -> f64 {
    const ROWS: usize = 12;
    const DEPTH: usize = 200;
    const REPEATS: usize = 400;
    const TRIALS: usize = 8;
    let operations = (2 * ROWS * DEPTH * PANEL * REPEATS * rayon::current_num_threads()) as f64;
    let trial = |_| {
        let start = Instant::now();
        rayon::broadcast(|_| {
            let (left, right) = (vec![1f32; ROWS * DEPTH], vec![1f32; DEPTH * PANEL]);
            let starts: Vec<usize> = (0..ROWS).map(|row| row * DEPTH).collect();
            let runs = [Run { left: 0, right: 0, count: DEPTH }];
            let mut sums = vec![0f32; ROWS * PANEL];
            for _ in 0..REPEATS {
                let (left, right) = (Strided { values: &left, step: 1 }, Strided { values: &right, step: PANEL });
                add_tiles(left, &starts, right, 0, &runs, Start::Output, Output::new(&mut sums, PANEL));
            }
            std::hint::black_box(sums)
        });
        operations / start.elapsed().as_secs_f64() / 1e9
    };
    (0..TRIALS).map(trial).fold(0.0, f64::max)
}
