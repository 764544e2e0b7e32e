//! The queue in a SQLite file.
//!
//! The statements are on the tables `Jobs` and `Workers` as apalis-sqlite 1.0.0 makes them. In `Jobs`, `job` is the
//! ticket as JSON, `job_type` the queue's name, `status` is `Pending` for what waits and `Queued` for what a worker has
//! (the one that `lock_by` names).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apalis::prelude::{BackendExt, TaskBuilder, TaskId, TaskSink, WorkerBuilder, WorkerBuilderExt, WorkerContext};
use apalis_sqlite::{Config, SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteStorage};
use sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use ulid::{Generator, Ulid};

use super::{Cause, HEARTBEAT, KEEP_WORKERS, MISSED_HEARTBEATS, NAME, POLL, Running, Ticket, WAITING};

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

    /// The tickets that wait, as JSON.
    pub(super) async fn waiting(&self) -> Result<Vec<Vec<u8>>, sqlx::Error> {
        // The order of apalis's `fetch_next.sql`.
        sqlx::query_scalar(
            "SELECT job FROM Jobs WHERE job_type = ?1 AND status = 'Pending' \
             ORDER BY priority DESC, run_at ASC, id ASC LIMIT ?2",
        )
        .bind(NAME)
        .bind(WAITING)
        .fetch_all(&self.pool)
        .await
    }

    /// How many tickets wait.
    pub(super) async fn count(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT COUNT(*) FROM Jobs WHERE job_type = ?1 AND status = 'Pending'")
            .bind(NAME)
            .fetch_one(&self.pool)
            .await
    }

    /// How many tickets of a job there are, waiting or being worked on.
    pub(super) async fn tickets(&self, ticket: &Ticket) -> Result<i64, Cause> {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM Jobs WHERE job_type = ?1 AND job = ?2");
        Ok(count.bind(NAME).bind(serde_json::to_vec(ticket)?).fetch_one(&self.pool).await?)
    }

    /// Deletes a ticket that waits, and says how many there were.
    pub(super) async fn remove(&self, ticket: &Ticket) -> Result<u64, Cause> {
        // The codec of apalis writes it in the same way.
        let job = serde_json::to_vec(ticket)?;
        let deleted = sqlx::query("DELETE FROM Jobs WHERE job_type = ?1 AND status = 'Pending' AND job = ?2")
            .bind(NAME)
            .bind(job)
            .execute(&self.pool)
            .await?;
        Ok(deleted.rows_affected())
    }

    /// Deletes a ticket that was worked on, also if it was put back meanwhile, but not one that another worker has.
    pub(super) async fn finish(&self, id: &str, worker: &str) -> Result<(), sqlx::Error> {
        let delete = sqlx::query("DELETE FROM Jobs WHERE id = ?1 AND (lock_by = ?2 OR lock_by IS NULL)");
        delete.bind(id).bind(worker).execute(&self.pool).await.map(drop)
    }

    /// Puts a ticket back that was begun, unless another worker has it.
    pub(super) async fn hand_back(&self, id: &str, worker: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL \
             WHERE id = ?1 AND lock_by = ?2",
        )
        .bind(id)
        .bind(worker)
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Says that a worker lives whose apalis does not say so any more.
    pub(super) async fn keep_alive(&self, worker: &str) -> Result<(), sqlx::Error> {
        let update = sqlx::query("UPDATE Workers SET last_seen = strftime('%s', 'now') WHERE id = ?1");
        update.bind(worker).execute(&self.pool).await.map(drop)
    }

    /// Puts all tickets of a worker back, which it has not begun.
    pub(super) async fn release(&self, worker: &str) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE Jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL WHERE lock_by = ?1")
            .bind(worker)
            .execute(&self.pool)
            .await
            .map(drop)
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
