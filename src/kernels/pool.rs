//! The one pool of threads that all kernels share: rayon's.

use super::dry_run::{is_dry_run, without_dry_run};
use super::tape::without_tape;
use std::sync::OnceLock;

/// The stack of each of its threads: that of a program's first thread, since candle's walk through a graph of operations calls
/// itself for every one of them.
const STACK_BYTES: usize = 8 << 20;

/// Makes the pool, unless somebody has made it: a program does so before all else, so that [`in_pool`] can use it. It has so many
/// threads, or as many as `RAYON_NUM_THREADS` says, or as there are cores.
pub fn make_pool(threads: Option<usize>) {
    is_deep(threads);
}

/// Whether the pool's threads have as much stack as it takes to run any work there; if there is no pool, one of so many is made.
fn is_deep(threads: Option<usize>) -> bool {
    static DEEP: OnceLock<bool> = OnceLock::new();
    *DEEP.get_or_init(|| {
        // For 0 the pool decides.
        let pool = rayon::ThreadPoolBuilder::new().stack_size(STACK_BYTES).num_threads(threads.unwrap_or(0));
        pool.build_global().is_ok()
    })
}

/// How many threads the kernels use: those of the pool that the caller is in, which `RAYON_NUM_THREADS` may set.
pub fn threads() -> usize {
    make_pool(None);
    rayon::current_num_threads()
}

/// Runs work that consists of many kernels on a thread of the pool. From outside, each kernel would be handed over to the pool,
/// and its end back; for small networks these changes of threads took a tenth of the time.
///
/// Where rayon's pool was made by somebody else, the work stays on its thread: threads of that pool may have too little stack.
pub fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    // A dry run is of its thread.
    match is_deep(None) && !is_dry_run() {
        // The thread that takes it may be one that waits in the middle of another caller's work.
        true if rayon::current_thread_index().is_none() => rayon::scope(|_| without_tape(|| without_dry_run(work))),
        _ => work(),
    }
}
