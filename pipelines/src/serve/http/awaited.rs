//! Requests that are answered when their pictures are there.

use crate::serve::board::{Asked, Board, to_its_end};
use crate::serve::failure::{Failure, FailureCode};
use crate::serve::job::{JobView, State};
use crate::serve::store::picture_name;
use bytes::Bytes;
use std::sync::Arc;

/// A job whose client waits: if the client goes, so does the job.
pub struct Awaited {
    board: Arc<Board>,
    id: String,
    is_over: bool,
}

impl Awaited {
    /// Lets a request wait among the others.
    pub async fn begin(board: &Arc<Board>, asked: Asked) -> Result<Self, Failure> {
        let board = board.clone();
        // If the client goes meanwhile, what this task returns is dropped, and the job with it.
        to_its_end(async move {
            let (view, _) = board.admit(asked).await?;
            Ok(Self { board, id: view.job.id, is_over: false })
        })
        .await
    }

    /// The job's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The job once it has changed since a sequence number. That it failed is an error.
    pub async fn changed(&mut self, since: u64) -> Result<JobView, Failure> {
        let view = tokio::select! {
            view = self.board.changed(&self.id, since) => view?,
            () = self.board.running.stopped() => {
                let message = "the server is stopping; the job goes on when it is started again";
                self.is_over = true;
                return Err(Failure::new(FailureCode::Unavailable, message));
            }
        };
        self.is_over = view.status.state.is_final();
        match view.status.state {
            State::Failed => {
                let unknown = || Failure::new(FailureCode::Internal, "the job failed");
                Err(view.status.error.clone().unwrap_or_else(unknown))
            }
            _ => Ok(view),
        }
    }

    /// The job once all its pictures are there, or those that were when somebody ended it.
    pub async fn ended(&mut self) -> Result<JobView, Failure> {
        let mut since = 0;
        loop {
            let view = self.changed(since).await?;
            if view.status.state.is_final() {
                return Ok(view);
            }
            since = view.status.sequence;
        }
    }

    /// That nobody ended it before its pictures were there.
    pub fn check(view: &JobView) -> Result<(), Failure> {
        match view.status.state {
            State::Cancelled => Err(Failure::new(FailureCode::Conflict, "the job was cancelled")),
            _ => Ok(()),
        }
    }

    /// The files of its pictures.
    pub async fn pictures(&self, view: &JobView) -> Result<Vec<Bytes>, Failure> {
        let mut pictures = Vec::new();
        for index in 0..view.status.pictures.len() {
            pictures.push(picture(&self.board, &self.id, index).await?);
        }
        Ok(pictures)
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let (board, id) = (self.board.clone(), std::mem::take(&mut self.id));
        tokio::spawn(async move { board.cancel(&id).await.map(drop) });
    }
}

/// The file of a job's picture.
pub async fn picture(board: &Board, id: &str, index: usize) -> Result<Bytes, Failure> {
    let missing = || Failure::new(FailureCode::Missing, format!("the job {id} has no picture {index}"));
    board.store.get(&picture_name(id, index)).await?.ok_or_else(missing)
}
