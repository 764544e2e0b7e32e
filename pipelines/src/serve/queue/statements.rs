//! What both databases are asked in the same words.

/// The calls that differ in the names of apalis's tables alone. The type has a `pool`.
///
/// In the table of jobs, `job` is the ticket as JSON, as apalis's codec writes it too, `job_type` the queue's name, `status` is
/// `Pending` for what waits and `Queued` for what a worker has (the one that `lock_by` names).
macro_rules! statements {
    ($store:ty, jobs: $jobs:literal) => {
        impl $store {
            /// The tickets that wait, as JSON, in the order in which apalis takes them.
            pub(super) async fn waiting(&self) -> Result<Vec<Vec<u8>>, sqlx::Error> {
                sqlx::query_scalar(concat!(
                    "SELECT job FROM ",
                    $jobs,
                    " WHERE job_type = $1 AND status = 'Pending' ORDER BY priority DESC, run_at ASC, id ASC LIMIT $2"
                ))
                .bind(super::NAME)
                .bind(super::WAITING)
                .fetch_all(&self.pool)
                .await
            }

            /// How many tickets wait.
            pub(super) async fn count(&self) -> Result<i64, sqlx::Error> {
                let count = concat!("SELECT COUNT(*) FROM ", $jobs, " WHERE job_type = $1 AND status = 'Pending'");
                sqlx::query_scalar(count).bind(super::NAME).fetch_one(&self.pool).await
            }

            /// How many tickets of a job there are, waiting or being worked on.
            pub(super) async fn tickets(&self, ticket: &super::Ticket) -> Result<i64, super::Cause> {
                let count = concat!("SELECT COUNT(*) FROM ", $jobs, " WHERE job_type = $1 AND job = $2");
                let job = serde_json::to_vec(ticket)?;
                Ok(sqlx::query_scalar(count).bind(super::NAME).bind(job).fetch_one(&self.pool).await?)
            }

            /// Deletes a ticket that waits, and says how many there were.
            pub(super) async fn remove(&self, ticket: &super::Ticket) -> Result<u64, super::Cause> {
                let delete = concat!("DELETE FROM ", $jobs, " WHERE job_type = $1 AND status = 'Pending' AND job = $2");
                let job = serde_json::to_vec(ticket)?;
                Ok(sqlx::query(delete).bind(super::NAME).bind(job).execute(&self.pool).await?.rows_affected())
            }

            /// Deletes a ticket that was worked on, also if it was put back meanwhile, but not one that another worker has.
            pub(super) async fn finish(&self, id: &str, worker: &str) -> Result<(), sqlx::Error> {
                let delete = concat!("DELETE FROM ", $jobs, " WHERE id = $1 AND (lock_by = $2 OR lock_by IS NULL)");
                sqlx::query(delete).bind(id).bind(worker).execute(&self.pool).await.map(drop)
            }

            /// Puts a ticket back that was begun, unless another worker has it.
            pub(super) async fn hand_back(&self, id: &str, worker: &str) -> Result<(), sqlx::Error> {
                let update = concat!(
                    "UPDATE ",
                    $jobs,
                    " SET status = 'Pending', lock_by = NULL, lock_at = NULL WHERE id = $1 AND lock_by = $2"
                );
                sqlx::query(update).bind(id).bind(worker).execute(&self.pool).await.map(drop)
            }

            /// Puts all tickets of a worker back, which it has not begun.
            pub(super) async fn release(&self, worker: &str) -> Result<(), sqlx::Error> {
                let update = concat!(
                    "UPDATE ",
                    $jobs,
                    " SET status = 'Pending', lock_by = NULL, lock_at = NULL WHERE lock_by = $1"
                );
                sqlx::query(update).bind(worker).execute(&self.pool).await.map(drop)
            }
        }
    };
}

pub(super) use statements;
