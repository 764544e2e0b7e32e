//! How long each kind of kernel takes, for who wants to know where the time goes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the kernels of one kind have done since the meter was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// How often they ran.
    pub calls: u64,
    /// How long in all.
    pub time: Duration,
    /// Multiplications and additions of the direct method, each counted; 0 for kernels that only move data or
    /// work on each value by itself.
    pub operations: u64,
}

/// Which of a kernel's two functions ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// The result.
    Forward,
    /// Its gradients.
    Backward,
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static TALLIES: Mutex<BTreeMap<(&'static str, Pass), Tally>> = Mutex::new(BTreeMap::new());

/// Measures every kernel of the process while it lives. There is one meter: a second one shares the first's tallies.
#[derive(Debug)]
pub struct Meter(());

impl Meter {
    /// Starts at nothing.
    #[must_use]
    pub fn start() -> Self {
        TALLIES.lock().unwrap_or_else(PoisonError::into_inner).clear();
        RUNNING.store(true, Ordering::Relaxed);
        Self(())
    }

    /// What was measured so far, by the kind of kernel and the pass.
    pub fn read(&self) -> BTreeMap<(&'static str, Pass), Tally> {
        TALLIES.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        RUNNING.store(false, Ordering::Relaxed);
    }
}

/// Runs a kernel, and measures it if somebody wants to know.
pub(super) fn measured<T>(
    work: (&'static str, Pass),
    operations: impl FnOnce() -> u64,
    kernel: impl FnOnce() -> T,
) -> T {
    if !RUNNING.load(Ordering::Relaxed) {
        return kernel();
    }
    let start = Instant::now();
    let result = kernel();
    let time = start.elapsed();
    let mut tallies = TALLIES.lock().unwrap_or_else(PoisonError::into_inner);
    let tally = tallies.entry(work).or_default();
    tally.calls += 1;
    tally.time += time;
    tally.operations += operations();
    result
}
