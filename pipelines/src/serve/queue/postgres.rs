//! The queue in a Postgres database.
//!
//! The statements are on the tables `apalis.jobs` and `apalis.workers` as apalis-postgres 1.0.0 makes them, with the
//! columns that they have in SQLite. The migrations make the schema `apalis` and the extensions `hstore` and
//! `pgcrypto`.

use apalis::prelude::{BackendExt, TaskId, WorkerBuilder, WorkerBuilderExt, WorkerContext};
use apalis_postgres::{Config, PgPool, PostgresStorage};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection};
use ulid::Ulid;

use super::{Cause, HEARTBEAT, KEEP_WORKERS, MISSED_HEARTBEATS, NAME, POLL, Running, Ticket, WAITING};

/// How many connections a process has.
const CONNECTIONS: u32 = 8;

/// Tickets in a Postgres database.
#[derive(Clone)]
pub(super) struct Postgres {
    pool: PgPool,
    storage: PostgresStorage<Ticket>,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl Postgres {
    /// Connects to a database and brings its tables to this version of apalis.
    pub(super) async fn open(url: &str) -> Result<Self, Cause> {
        // The pool would try for half a minute, and then not say why it could not connect.
        PgConnection::connect(url).await?.close().await?;
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await?;
        PostgresStorage::setup(&pool).await?;
        // See `sqlite` for why.
        let config = Config::default()
            .queue(NAME)
            .batch_size(1)
            .heartbeat_interval(HEARTBEAT)
            .missed_heartbeats(MISSED_HEARTBEATS)
            .lock_tasks(false)
            .persist_results(false);
        let storage = PostgresStorage::new(&pool).with_config(config);
        Ok(Self { pool, storage })
    }

    /// Puts a ticket in.
    pub(super) async fn push(&self, ticket: &Ticket, priority: i32) -> Result<(), Cause> {
        // apalis's own statement notes a ticket's age in seconds, and its `get_jobs` orders by nothing else after it.
        sqlx::query(
            "INSERT INTO apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at, priority) \
             VALUES ($1, $2, $3, 'Pending', 0, 25, clock_timestamp(), $4)",
        )
        .bind(Ulid::generate().to_string())
        .bind(NAME)
        .bind(serde_json::to_vec(ticket)?)
        .bind(priority)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The tickets that wait, as JSON.
    pub(super) async fn waiting(&self) -> Result<Vec<Vec<u8>>, sqlx::Error> {
        // The order of apalis's `get_jobs`.
        sqlx::query_scalar(
            "SELECT job FROM apalis.jobs WHERE job_type = $1 AND status = 'Pending' \
             ORDER BY priority DESC, run_at ASC LIMIT $2",
        )
        .bind(NAME)
        .bind(WAITING)
        .fetch_all(&self.pool)
        .await
    }

    /// How many tickets wait.
    pub(super) async fn count(&self) -> Result<i64, sqlx::Error> {
        sqlx::query_scalar("SELECT COUNT(*) FROM apalis.jobs WHERE job_type = $1 AND status = 'Pending'")
            .bind(NAME)
            .fetch_one(&self.pool)
            .await
    }

    /// How many tickets of a job there are, waiting or being worked on.
    pub(super) async fn tickets(&self, ticket: &Ticket) -> Result<i64, Cause> {
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM apalis.jobs WHERE job_type = $1 AND job = $2");
        Ok(count.bind(NAME).bind(serde_json::to_vec(ticket)?).fetch_one(&self.pool).await?)
    }

    /// Deletes a ticket that waits, and says how many there were.
    pub(super) async fn remove(&self, ticket: &Ticket) -> Result<u64, Cause> {
        let job = serde_json::to_vec(ticket)?;
        let deleted = sqlx::query("DELETE FROM apalis.jobs WHERE job_type = $1 AND status = 'Pending' AND job = $2")
            .bind(NAME)
            .bind(job)
            .execute(&self.pool)
            .await?;
        Ok(deleted.rows_affected())
    }

    /// Deletes a ticket that was worked on, also if it was put back meanwhile, but not one that another worker has.
    pub(super) async fn finish(&self, id: &str, worker: &str) -> Result<(), sqlx::Error> {
        let delete = sqlx::query("DELETE FROM apalis.jobs WHERE id = $1 AND (lock_by = $2 OR lock_by IS NULL)");
        delete.bind(id).bind(worker).execute(&self.pool).await.map(drop)
    }

    /// Puts a ticket back that was begun, unless another worker has it.
    pub(super) async fn hand_back(&self, id: &str, worker: &str) -> Result<(), sqlx::Error> {
        sqlx::query(
            "UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL \
             WHERE id = $1 AND lock_by = $2",
        )
        .bind(id)
        .bind(worker)
        .execute(&self.pool)
        .await
        .map(drop)
    }

    /// Says that a worker lives whose apalis does not say so any more.
    pub(super) async fn keep_alive(&self, worker: &str) -> Result<(), sqlx::Error> {
        let update = sqlx::query("UPDATE apalis.workers SET last_seen = now() WHERE id = $1");
        update.bind(worker).execute(&self.pool).await.map(drop)
    }

    /// Puts all tickets of a worker back, which it has not begun.
    pub(super) async fn release(&self, worker: &str) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE apalis.jobs SET status = 'Pending', lock_by = NULL, lock_at = NULL WHERE lock_by = $1")
            .bind(worker)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Deletes workers that have long been silent and have no ticket.
    pub(super) async fn vacuum(&self) -> Result<(), sqlx::Error> {
        sqlx::query(
            "DELETE FROM apalis.workers WHERE worker_type = $1 AND last_seen < now() - make_interval(secs => $2) \
             AND NOT EXISTS (SELECT 1 FROM apalis.jobs WHERE lock_by = workers.id)",
        )
        .bind(NAME)
        .bind(KEEP_WORKERS.as_secs_f64())
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
