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

use super::statements::statements;
use super::{Cause, HEARTBEAT, KEEP_WORKERS, MISSED_HEARTBEATS, NAME, POLL, Running, Ticket};

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

statements!(Postgres, jobs: "apalis.jobs");

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

    /// Says that a worker lives whose apalis does not say so any more.
    pub(super) async fn keep_alive(&self, worker: &str) -> Result<(), sqlx::Error> {
        let update = sqlx::query("UPDATE apalis.workers SET last_seen = now() WHERE id = $1");
        update.bind(worker).execute(&self.pool).await.map(drop)
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
