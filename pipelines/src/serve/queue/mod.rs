//! The queue of jobs: which one is to be worked on next, by which process, and what becomes of it if that process dies.
//!
//! It is kept by apalis in a SQLite file or, with the feature `postgres`, in a Postgres database. It carries tickets
//! only; what a job asks for and what came of it is elsewhere. A ticket is worked on at least once: a process that was
//! killed, or that could not reach the database for six seconds, may have worked on a ticket that another one then gets.
//!
//! What apalis 1.0.0 does: it keeps the tables, takes the best ticket for a worker, tells the database every two
//! seconds that the worker lives, and puts tickets of dead workers back. What it does not do as it is wanted here, this
//! module does with statements of its own on apalis's tables (see `sqlite` and `postgres`):
//!
//! - A ticket that was worked on is deleted when its handler returns, and not by apalis's acknowledgement: that one is
//!   lost if the worker fails meanwhile, and apalis works again on what it notes as failed.
//! - A ticket that is handed back loses its lock. apalis's own way (a result that asks for another try) leaves the lock
//!   in SQLite, and no worker would ever take that ticket.
//! - `Config::lock_tasks` is off: that note may be written after a ticket was handed back, and would take it again.

use std::error::Error;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use apalis::prelude::{TaskId, WorkerContext, WorkerError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use ulid::Ulid;

#[cfg(feature = "postgres")]
mod postgres;
mod sqlite;
mod statements;
#[cfg(test)]
mod tests;

/// How often a worker says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// How many heartbeats may be missing before a worker's ticket is given to another one.
const MISSED_HEARTBEATS: usize = 3;

/// How often an idle worker looks for a ticket.
const POLL: Duration = Duration::from_millis(100);

/// The name of the queue in apalis's tables, which other programs may share.
const NAME: &str = "tweedie";

/// How many waiting tickets are told at most.
const WAITING: i64 = 1000;

/// How long rows of dead workers are kept: far beyond the lease, so that their tickets have been put back.
const KEEP_WORKERS: Duration = Duration::from_secs(3600);

/// How many times in a row a worker may fail before [`Queue::work`] gives up.
const FAILURES: u32 = 30;

/// A worker that ran for so long has not failed at once.
const STEADY: Duration = Duration::from_secs(30);

/// The pause between two tries of something that the database refused.
const PAUSE: Duration = Duration::from_secs(1);

/// How many times a ticket's end is told to a database that refuses it.
const SETTLE_TRIES: u32 = 30;

/// What the queue carries of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The job's id.
    pub job: String,
}

/// What is to become of a ticket after it was worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Finished, well or badly: it leaves the queue.
    Done,
    /// To be worked on again, as this process is stopping: it is available at once, with its priority and its age. A
    /// worker that is not stopping may be the one that takes it.
    HandBack,
}

/// Why the queue could not do something.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The database is not there, is none, or cannot be prepared.
    #[error("cannot open the queue {place}: {source}: see that it is there and that this program may write to it")]
    Open {
        /// The file, or the database without its password.
        place: String,
        /// What the database said.
        source: Cause,
    },
    /// A Postgres database was asked for.
    #[error("cannot open the queue {place}: this build has no Postgres: build with --features postgres or name a file")]
    NoPostgres {
        /// The database without its password.
        place: String,
    },
    /// Neither a file nor a database that is known.
    #[error("cannot open the queue {place}: name a file (sqlite:PATH) or a database (postgres://...)")]
    Unknown {
        /// What was named.
        place: String,
    },
    /// The database refused a statement.
    #[error("cannot {what}: the queue's database refused it: {source}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// What the database said.
        source: Cause,
    },
    /// The worker failed again and again.
    #[error("the queue's worker failed {times} times in a row: {source}: see that its database can be reached")]
    Worker {
        /// How many times.
        times: u32,
        /// What the last failure was.
        source: WorkerError,
    },
}

/// What a database or apalis said.
pub type Cause = Box<dyn Error + Send + Sync>;

impl QueueError {
    /// For `map_err` of a statement that does `what`.
    fn refused<E: Into<Cause>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Refused { what, source: source.into() }
    }
}

/// A queue of tickets, shared by all processes that open the same file or database.
#[derive(Debug, Clone)]
pub struct Queue {
    store: Store,
}

/// Where the tickets are.
#[derive(Debug, Clone)]
enum Store {
    Sqlite(sqlite::Sqlite),
    #[cfg(feature = "postgres")]
    Postgres(postgres::Postgres),
}

/// Calls the same function of whichever store there is.
macro_rules! each {
    ($store:expr, $inner:ident => $call:expr) => {
        match $store {
            Store::Sqlite($inner) => $call,
            #[cfg(feature = "postgres")]
            Store::Postgres($inner) => $call,
        }
    };
}

impl Queue {
    /// Opens a queue and prepares its tables: `sqlite:PATH` or a path for a file, which is made if it is not there, or
    /// `postgres://...` with the feature `postgres`.
    pub async fn open(url: &str) -> Result<Self, QueueError> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Self::open_postgres(url).await;
        }
        let path = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or(url);
        // A database in memory would be another one for each connection.
        if path.is_empty() || path.contains("://") || path.contains(":memory:") {
            return Err(QueueError::Unknown { place: without_password(url) });
        }
        let opened = sqlite::Sqlite::open(path).await;
        let store = opened.map_err(|source| QueueError::Open { place: path.to_owned(), source })?;
        Ok(Self { store: Store::Sqlite(store) })
    }

    #[cfg(feature = "postgres")]
    async fn open_postgres(url: &str) -> Result<Self, QueueError> {
        let opened = postgres::Postgres::open(url).await;
        let store = opened.map_err(|source| QueueError::Open { place: without_password(url), source })?;
        Ok(Self { store: Store::Postgres(store) })
    }

    #[cfg(not(feature = "postgres"))]
    async fn open_postgres(url: &str) -> Result<Self, QueueError> {
        Err(QueueError::NoPostgres { place: without_password(url) })
    }

    /// Puts a ticket in. Tickets with higher priorities are worked on first, and older ones before newer ones.
    pub async fn push(&self, ticket: &Ticket, priority: i32) -> Result<(), QueueError> {
        each!(&self.store, store => store.push(ticket, priority).await).map_err(QueueError::refused("queue the job"))
    }

    /// Tickets that wait, the next one first, without those that are being worked on: a thousand of them at most.
    pub async fn waiting(&self) -> Result<Vec<Ticket>, QueueError> {
        let rows: Result<Vec<Vec<u8>>, _> = each!(&self.store, store => store.waiting().await);
        let rows = rows.map_err(QueueError::refused("list the jobs that wait"))?;
        rows.iter()
            .map(|row| serde_json::from_slice(row).map_err(QueueError::refused("read a ticket of the queue")))
            .collect()
    }

    /// How many tickets wait.
    pub async fn count(&self) -> Result<usize, QueueError> {
        let count = each!(&self.store, store => store.count().await).map_err(QueueError::refused("count the jobs"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Whether there is a ticket of a job, waiting or being worked on.
    pub async fn has(&self, job: &str) -> Result<bool, QueueError> {
        let ticket = Ticket { job: job.to_owned() };
        let tickets = each!(&self.store, store => store.tickets(&ticket).await);
        Ok(tickets.map_err(QueueError::refused("look for the job in the queue"))? > 0)
    }

    /// Takes a waiting ticket out. False if it does not wait, or not any more: then it may be being worked on.
    pub async fn remove(&self, job: &str) -> Result<bool, QueueError> {
        let ticket = Ticket { job: job.to_owned() };
        let removed = each!(&self.store, store => store.remove(&ticket).await);
        Ok(removed.map_err(QueueError::refused("take the job out of the queue"))? > 0)
    }

    /// Forgets tickets that are done and workers that are long dead, so that the tables do not grow.
    pub async fn vacuum(&self) -> Result<(), QueueError> {
        each!(&self.store, store => store.vacuum().await).map_err(QueueError::refused("tidy the queue"))
    }

    /// Works on tickets, one at a time, until `stop` resolves and the handler of the current one has returned.
    ///
    /// Nothing limits how often a ticket is begun whose process dies or whose handler panics, which puts it back: the handler has
    /// to give up at some number. It must not block its thread, or the queue takes this worker for dead; nor should this
    /// future be dropped before it is ready.
    ///
    /// A database that cannot be reached is tried again for half a minute at least before this is an error.
    pub async fn work<F, Fut, Stop>(&self, handler: F, stop: Stop) -> Result<(), QueueError>
    where
        F: Fn(Ticket) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
        Stop: Future<Output = ()> + Send + 'static,
    {
        let (stopping, mut stopped) = watch::channel(false);
        let waiter = tokio::spawn(async move {
            stop.await;
            stopping.send_replace(true);
            // What waits for it must not take the end of this task for an error.
            stopping.closed().await;
        });
        let worked = self.work_until(handler, &mut stopped).await;
        waiter.abort();
        worked
    }

    /// Runs one worker of apalis after the other, as one that saw an error of the database ends.
    async fn work_until<F, Fut>(&self, handler: F, stopped: &mut watch::Receiver<bool>) -> Result<(), QueueError>
    where
        F: Fn(Ticket) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let slot = Arc::new(Semaphore::new(1));
        let mut failures = 0;
        loop {
            // A new name, as one is refused for as long as an earlier worker with it may be alive.
            let worker = WorkerContext::new(&format!("{NAME}-{}", Ulid::generate()));
            let begun = Instant::now();
            let (store, handler) = (self.store.clone(), handler.clone());
            let desk = Desk { store, worker: worker.clone(), slot: slot.clone(), handler };
            let ended = drive(self.store.run(desk), &worker, stopped, &slot).await;
            self.outlast(&worker, &slot).await;
            // What was taken at the very end, and not begun. If this fails, the lease puts it back.
            let _ = each!(&self.store, store => store.release(worker.name()).await);
            let Err(source) = ended else { return Ok(()) };
            failures = if begun.elapsed() > STEADY { 1 } else { failures + 1 };
            if failures >= FAILURES {
                return Err(QueueError::Worker { times: failures, source });
            }
            let _ = tokio::time::timeout(PAUSE, stopped.wait_for(|stopped| *stopped)).await;
            if *stopped.borrow() {
                return Ok(());
            }
        }
    }

    /// Waits for the handler, which goes on when its worker fails, and keeps its ticket from other workers until then.
    async fn outlast(&self, worker: &WorkerContext, slot: &Semaphore) {
        while tokio::time::timeout(HEARTBEAT, slot.acquire()).await.is_err() {
            // If this fails too, the ticket may be given to another worker.
            let _ = each!(&self.store, store => store.keep_alive(worker.name()).await);
        }
    }
}

/// A future that is apalis's worker.
type Running = Pin<Box<dyn Future<Output = Result<(), WorkerError>> + Send>>;

impl Store {
    /// The worker of apalis that gives its tickets to a desk.
    fn run<F, Fut>(&self, desk: Desk<F>) -> Running
    where
        F: Fn(Ticket) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let worker = desk.worker.clone();
        let begin = move |ticket: Ticket, id: TaskId| desk.clone().begin(ticket, id.to_string());
        each!(self, store => store.run(&worker, begin))
    }
}

/// Runs a worker until it fails, or until it is to stop and nothing is being worked on.
///
/// It is paused first and stopped when its handler has returned: a stopped worker of apalis 1.0.0 waits for its handler
/// without heartbeats, so that another one would get the ticket.
async fn drive(
    running: Running,
    worker: &WorkerContext,
    stopped: &mut watch::Receiver<bool>,
    slot: &Semaphore,
) -> Result<(), WorkerError> {
    let mut running = pin!(running);
    tokio::select! {
        // The worker first, as only one that has started can be stopped.
        biased;
        ended = &mut running => return ended,
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    worker.pause()?;
    tokio::select! {
        biased;
        ended = &mut running => return ended,
        _ = slot.acquire() => {}
    }
    worker.stop()?;
    running.await
}

/// Where a worker's tickets are worked on.
#[derive(Clone)]
struct Desk<F> {
    store: Store,
    worker: WorkerContext,
    /// Taken while a handler runs.
    slot: Arc<Semaphore>,
    handler: F,
}

impl<F, Fut> Desk<F>
where
    F: Fn(Ticket) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    /// Has a ticket worked on and tells the database what came of it. Both go on in tasks of their own: an error of a
    /// heartbeat drops what the worker is doing, which must not end a handler halfway.
    async fn begin(self, ticket: Ticket, id: String) {
        let Ok(taken) = self.slot.clone().acquire_owned().await else { return };
        let handler = self.handler.clone();
        let handled = tokio::spawn(async move { handler(ticket).await });
        let settled = tokio::spawn(async move {
            // A panic is worked on again, like the death of a process.
            let outcome = handled.await.unwrap_or(Outcome::HandBack);
            self.settle(&id, outcome).await;
            drop(taken);
        });
        // Neither cancelled nor able to panic.
        let _ = settled.await;
    }

    /// Tells the database what came of a ticket, until it accepts that. If it never does, the end of this process puts it back.
    async fn settle(&self, id: &str, outcome: Outcome) {
        let worker = self.worker.name();
        for _ in 0..SETTLE_TRIES {
            let settled = match outcome {
                Outcome::Done => each!(&self.store, store => store.finish(id, worker).await),
                Outcome::HandBack => each!(&self.store, store => store.hand_back(id, worker).await),
            };
            if settled.is_ok() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// An address as it may be shown.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://{}", &url[..scheme], &url[at + 1..]),
        _ => url.to_owned(),
    }
}
