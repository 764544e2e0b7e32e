//! News of a job as server-sent events.
//!
//! Each event is the whole job, so whoever comes late or again has missed nothing that matters.

use super::Shared;
use super::answer::Answer;
use super::extract::InPath;
use crate::serve::board::Board;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// The longest silence.
const SILENCE: Duration = Duration::from_secs(15);

/// `GET /api/jobs/ID/events`.
pub async fn of_job(State(app): Shared, InPath(id): InPath<String>, headers: HeaderMap) -> Answer {
    // That there is one is said before the stream begins.
    app.board.view(&id).await?;
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0);
    let first = Follower { board: app.board.clone(), id, since: last, is_over: false };
    let events = stream::unfold(first, |follower| async move {
        let (event, follower) = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(SILENCE)).into_response())
}

/// Someone who reads the news of a job.
struct Follower {
    board: Arc<Board>,
    id: String,
    since: u64,
    is_over: bool,
}

impl Follower {
    /// The next event; nothing after the last, or when the server stops.
    async fn next(self) -> Option<(Event, Self)> {
        if self.is_over {
            return None;
        }
        let view = tokio::select! {
            view = self.board.changed(&self.id, self.since) => view.ok()?,
            () = self.board.running.stopped() => return None,
        };
        let event = Event::default().id(view.status.sequence.to_string()).event("job").json_data(view.json()).ok()?;
        let is_over = view.status.state.is_final();
        Some((event, Self { since: view.status.sequence, is_over, ..self }))
    }
}
