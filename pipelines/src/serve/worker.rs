//! From a ticket of the queue to a job whose state is final.

use super::board::Board;
use super::engine::{Ending, Engine, Order};
use super::failure::{Failure, FailureCode};
use super::job::{Job, State, Status};
use super::queue::{Outcome, Queue, Ticket};
use super::store::{IMAGE, MASK};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often it is looked at whether another process was asked for a job's end.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The sequence number of a state whose predecessor could not be read; it is exact in JavaScript.
const UNREAD: u64 = 1 << 52;
/// How long a ticket waits whose job cannot be read or written.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often tickets that are done are forgotten.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// Takes up jobs that were left, then forgets tickets that are done, now and then; does not resolve.
pub async fn tidy(board: Arc<Board>) {
    if let Err(failure) = board.take_up().await {
        board.log("-", &failure);
    }
    loop {
        if let Err(error) = board.queue.vacuum().await {
            board.log("-", &error.into());
        }
        tokio::time::sleep(TIDY_EVERY).await;
    }
}

/// Works on tickets until `stop` resolves; what is worked on then is handed back.
///
/// # Errors
/// If the queue cannot be used.
pub async fn work(
    board: Arc<Board>,
    engine: Engine,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Failure> {
    let queue: Queue = board.queue.clone();
    let handler = move |ticket: Ticket| {
        let (board, engine) = (board.clone(), engine.clone());
        async move {
            match carry_out(&board, &engine, &ticket.job).await {
                Ok(outcome) => outcome,
                // There is no such job any more.
                Err(failure) if failure.code == FailureCode::Missing => Outcome::Done,
                Err(failure) => {
                    board.log(&ticket.job, &failure);
                    // Its files are damaged: others must not wait for it.
                    if failure.code == FailureCode::Internal {
                        set_aside(&board, &ticket.job, failure).await;
                        return Outcome::Done;
                    }
                    tokio::time::sleep(PATIENCE).await;
                    Outcome::HandBack
                }
            }
        }
    };
    Ok(queue.work(handler, stop).await?)
}

/// Says in the state of a job that cannot be read why it failed.
async fn set_aside(board: &Board, id: &str, failure: Failure) {
    board.running.failed.fetch_add(1, Ordering::Relaxed);
    board.running.finished.fetch_add(1, Ordering::Relaxed);
    let status = Status { sequence: UNREAD, state: State::Failed, error: Some(failure), ..Status::default() };
    if let Err(failure) = board.store.set_status(id, &status).await {
        board.log(id, &failure);
    }
    board.running.tell(id);
}

async fn carry_out(board: &Board, engine: &Engine, id: &str) -> Result<Outcome, Failure> {
    if board.running.is_stopping() {
        return Ok(Outcome::HandBack);
    }
    let job = board.store.job(id).await?;
    let status = board.store.status(id).await?;
    // Done by a process that was killed before it could say so to the queue.
    if status.state.is_final() {
        return Ok(Outcome::Done);
    }
    let finish = async |state: State, error: Option<Failure>| {
        let status = Status { sequence: status.sequence + 1, state, error, ..status.clone() };
        let written = board.store.set_status(id, &status).await;
        board.running.tell(id);
        written.map(|()| Outcome::Done)
    };
    if board.store.cancel_is_asked(id).await? {
        return finish(State::Cancelled, None).await;
    }
    let Some(attempt) = board.store.begin(id, board.limits().attempts).await? else {
        board.running.failed.fetch_add(1, Ordering::Relaxed);
        board.running.finished.fetch_add(1, Ordering::Relaxed);
        let message =
            format!("it was begun {} times, and each time the process ended before it", board.limits().attempts);
        return finish(State::Failed, Some(Failure::new(FailureCode::Internal, message))).await;
    };
    let outcome = run(board, engine, job, Status { sequence: status.sequence, attempt, ..Status::default() }).await;
    if !matches!(outcome, Ok(Outcome::Done)) {
        board.store.take_back(id, attempt).await?;
    }
    outcome
}

async fn run(board: &Board, engine: &Engine, job: Job, status: Status) -> Result<Outcome, Failure> {
    let id = job.id.clone();
    let (image, mask) = (board.store.input(&id, IMAGE).await?, board.store.input(&id, MASK).await?);
    let cancel = board.running.begin(&id);
    let order = Order { job, status, image, mask, cancel: cancel.clone() };
    let ending = tokio::select! {
        ending = engine.carry_out(order) => ending,
        () = watch(board, &id, &cancel) => Ending::HandedBack,
    };
    board.running.end(&id);
    Ok(match ending {
        Ending::Final => Outcome::Done,
        Ending::HandedBack => Outcome::HandBack,
    })
}

/// Looks for the wish for a job's end that another process wrote; does not resolve.
async fn watch(board: &Board, id: &str, cancel: &AtomicBool) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if matches!(board.store.cancel_is_asked(id).await, Ok(true)) {
            cancel.store(true, Ordering::SeqCst);
        }
    }
}
