//! Batches made beside the training step.

use crate::{Error, ErrorKind, Result};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

/// What batches are made from: any data set, each batch a function of its number alone.
pub trait BatchSource: Send + 'static {
    /// What a step sees.
    type Batch: Send + 'static;

    /// Batch `n`, counted from 0. It does not depend on which batches were asked for before.
    ///
    /// # Errors
    /// If the data cannot be read.
    fn get(&mut self, n: u64) -> Result<Self::Batch>;

    /// Batches of what is held out of the data, on which a loss is taken and nothing trained; by default none.
    ///
    /// # Errors
    /// If the data cannot be read.
    fn held_out(&mut self) -> Result<Vec<HeldOutBatch<Self::Batch>>> {
        Ok(Vec::new())
    }
}

/// A batch of what is held out, which may be smaller than others.
#[derive(Debug, Clone)]
pub struct HeldOutBatch<B> {
    /// The batch.
    pub batch: B,
    /// The number of its items, by which its loss counts.
    pub items: usize,
}

/// Items that are looked at of what is held out, at most: those of [`evenly_spaced`](super::evenly_spaced).
pub(super) const MOST_HELD_OUT: usize = 256;

/// Batches that are kept ready. One would do for steps of equal length; a few even out the others.
const AHEAD: usize = 4;

/// Makes batches on a thread of its own, from any number on, a few ahead of who takes them.
///
/// Dropping it ends the thread.
#[derive(Debug)]
pub struct Loader<B> {
    ready: Option<Receiver<Result<B>>>,
    thread: Option<JoinHandle<()>>,
}

impl<B: Send + 'static> Loader<B> {
    /// Starts with batch `first`: 0, or the global step at which a run is resumed.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(mut batches: impl BatchSource<Batch = B>, first: u64) -> Result<Self> {
        let (sender, ready) = sync_channel(AHEAD);
        let work = move || {
            for n in first.. {
                // Nobody takes them any more once the loader is dropped.
                if sender.send(batches.get(n)).is_err() {
                    break;
                }
            }
        };
        let thread = std::thread::Builder::new().name("loader".into()).spawn(work);
        let thread = thread.map_err(|e| {
            Error::unusable(ErrorKind::Device, "the loader's thread", e, "free some of the system's threads")
        })?;
        Ok(Self { ready: Some(ready), thread: Some(thread) })
    }

    /// The next batch; it waits if none is ready.
    ///
    /// # Errors
    /// Whatever the source reports.
    pub fn next_batch(&mut self) -> Result<B> {
        let batch = self.ready.as_ref().and_then(|ready| ready.recv().ok());
        batch.unwrap_or_else(|| {
            Err(Error::unusable(ErrorKind::Device, "the loader", "stopped", "this is a bug; start the run again"))
        })
    }
}

impl<B> Drop for Loader<B> {
    fn drop(&mut self) {
        // The thread sees that the other end is gone, even while it waits to hand over a batch.
        self.ready = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported already.
            let _ = thread.join();
        }
    }
}
