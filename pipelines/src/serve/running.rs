//! What this process works on, and who waits for news of it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// Jobs that are worked on here.
#[derive(Debug, Default)]
pub struct Running {
    /// Whether each was asked to end.
    jobs: Mutex<HashMap<String, Arc<AtomicBool>>>,
    /// Those who wait for news, by job.
    waiting: Mutex<HashMap<String, Arc<Notify>>>,
    /// Jobs that were brought to an end, well or badly.
    pub finished: AtomicU64,
    /// Jobs of those that failed.
    pub failed: AtomicU64,
    /// Pictures that were made.
    pub pictures: AtomicU64,
    /// Whether the process is to stop.
    stopping: watch::Sender<bool>,
}

impl Running {
    /// Begins a job; the flag says whether it was asked to end.
    pub fn begin(&self, id: &str) -> Arc<AtomicBool> {
        self.jobs().entry(id.into()).or_default().clone()
    }

    /// Ends a job.
    pub fn end(&self, id: &str) {
        self.jobs().remove(id);
    }

    /// Asks a job to end, if it is worked on here.
    pub fn cancel(&self, id: &str) {
        if let Some(flag) = self.jobs().get(id) {
            flag.store(true, Ordering::SeqCst);
        }
    }

    /// The jobs that are worked on here.
    pub fn ids(&self) -> Vec<String> {
        self.jobs().keys().cloned().collect()
    }

    /// How many jobs are worked on here.
    pub fn count(&self) -> usize {
        self.jobs().len()
    }

    /// That the process is to stop: jobs are handed back.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Whether the process is to stop.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Resolves once the process is to stop.
    pub async fn stopped(&self) {
        // The sender lives as long as this.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Tells those who wait that a job has changed.
    pub fn tell(&self, id: &str) {
        if let Some(notify) = self.waiting().get(id) {
            notify.notify_waiters();
        }
    }

    /// Resolves once a job has changed since this call.
    pub fn told(&self, id: &str) -> impl Future<Output = ()> + Send + 'static {
        let notify = {
            let mut waiting = self.waiting();
            // Those whom nobody waits for any more are let go of.
            waiting.retain(|other, notify| other == id || Arc::strong_count(notify) > 1);
            waiting.entry(id.into()).or_default().clone()
        };
        notify.notified_owned()
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<String, Arc<AtomicBool>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
