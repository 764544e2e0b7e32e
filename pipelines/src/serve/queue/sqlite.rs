//! The queue in a SQLite file.
//!
//! The statements are on the tables `Jobs` and `Workers` as apalis-sqlite 1.0.0 makes them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apalis::prelude::{BackendExt, TaskBuilder, TaskId, TaskSink, WorkerBuilder, WorkerBuilderExt, WorkerContext};
use apalis_sqlite::{Config, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteStorage};
use sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use ulid::{Generator, Ulid};

use super::statements::statements;
use super::{Cause, HEARTBEAT, KEEP_WORKERS, MISSED_HEARTBEATS, NAME, POLL, Running, Ticket};

/// How long a statement waits for those of other processes.
const BUSY: Duration = Duration::from_secs(30);

/// How many connections a process has: SQLite lets one of them write.
const CONNECTIONS: u32 = 4;

/// How often opening is tried, as two processes may be making the same file.
const OPEN_TRIES: u32 = 5;

/// Tickets in a SQLite file.
#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    pool: SqlitePool,
    storage: SqliteStorage<Ticket>,
    /// apalis notes a ticket's age in seconds and then orders by id, so ids have to rise within one millisecond too.
    ids: Arc<Mutex<Generator>>,
}

statements!(Sqlite, jobs: "Jobs");

impl Sqlite {
    /// Opens a file, makes it if it is not there, and brings its tables to this version of apalis.
    pub(super) async fn open(path: &str) -> Result<Self, Cause> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A ticket that was accepted outlasts a loss of power.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS).connect_lazy_with(options);
        let mut tries = 1;
        // Not `SqliteStorage::setup`, which turns syncing off for one of the connections.
        while let Err(error) = SqliteStorage::migrations().run(&pool).await {
            if tries == OPEN_TRIES {
                return Err(error.into());
            }
            tries += 1;
            tokio::time::sleep(POLL).await;
        }
        // Tickets are fetched one by one: a worker with more of them takes them from others, mixes up priorities, and
        // sends no heartbeats while it has any left.
        let config = Config::default()
            .queue(NAME)
            .batch_size(1)
            .heartbeat_interval(HEARTBEAT)
            .missed_heartbeats(MISSED_HEARTBEATS)
            .lock_tasks(false)
            .persist_results(false);
        let storage = SqliteStorage::new(&pool).with_config(config);
        Ok(Self { pool, storage, ids: Arc::default() })
    }

    /// Puts a ticket in.
    pub(super) async fn push(&self, ticket: &Ticket, priority: i32) -> Result<(), Cause> {
        // apalis takes a `usize` and stores it as `i64`, which gives a negative one back.
        let priority = priority as isize as usize;
        let id = TaskId::from_ulid(self.next_id());
        let task = TaskBuilder::new(ticket.clone()).task_id(id).priority(priority).build();
        self.storage.clone().push_task(task).await.map_err(Into::into)
    }

    fn next_id(&self) -> Ulid {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.generate().unwrap_or_else(|overflow| overflow.commit_overflow_increment())
    }

    /// Says that a worker lives whose apalis does not say so any more.
    pub(super) async fn keep_alive(&self, worker: &str) -> Result<(), sqlx::Error> {
        let update = sqlx::query("UPDATE Workers SET last_seen = strftime('%s', 'now') WHERE id = ?1");
        update.bind(worker).execute(&self.pool).await.map(drop)
    }

    /// Deletes workers that have long been silent and have no ticket.
    pub(super) async fn vacuum(&self) -> Result<(), sqlx::Error> {
        // Not apalis's own, which rewrites the file: done tickets are deleted at once, and their pages used again.
        sqlx::query(
            "DELETE FROM Workers WHERE worker_type = ?1 AND last_seen < CAST(strftime('%s', 'now') AS INTEGER) - ?2 \
             AND NOT EXISTS (SELECT 1 FROM Jobs WHERE lock_by = Workers.id)",
        )
        .bind(NAME)
        .bind(KEEP_WORKERS.as_secs() as i64)
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// A worker that has each of its tickets begun, one at a time.
    pub(super) fn run<B, Fut>(&self, worker: &WorkerContext, begin: B) -> Running
    where
        B: Fn(Ticket, TaskId) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let backend = self.storage.clone().poll_with_interval(POLL);
        Box::pin(WorkerBuilder::new(worker).backend(backend).concurrency(1).build(begin).run())
    }
}
