//! The server's interfaces over HTTP: its own, OpenAI's and A1111's, and the page.

mod a1111;
mod answer;
mod awaited;
mod events;
mod extract;
mod guard;
mod jobs;
mod lists;
mod metrics;
mod multipart;
mod openai;
mod openapi;
mod page;
mod pictures;

use super::board::Board;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post};
pub use guard::Access;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// What all handlers share.
#[derive(Debug)]
pub struct App {
    /// The jobs.
    pub board: Arc<Board>,
    /// Who may ask.
    pub access: Access,
    /// The model that A1111's options name for requests that name none.
    chosen: Mutex<Option<String>>,
    started: Instant,
}

impl App {
    /// Over a board of jobs.
    pub fn new(board: Arc<Board>, access: Access) -> Self {
        Self { board, access, chosen: Mutex::default(), started: Instant::now() }
    }
}

/// A handler's view of it.
type Shared = axum::extract::State<Arc<App>>;

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let own = Router::new()
        .route("/api/jobs", get(jobs::list).post(jobs::create))
        .route("/api/jobs/{id}", get(jobs::show).delete(jobs::delete))
        .route("/api/jobs/{id}/cancel", post(jobs::cancel))
        .route("/api/jobs/{id}/events", get(events::of_job))
        .route("/api/jobs/{id}/pictures/{index}", get(pictures::picture))
        .route("/api/jobs/{id}/preview", get(pictures::preview))
        .route("/api/jobs/{id}/image", get(pictures::image))
        .route("/api/jobs/{id}/mask", get(pictures::mask))
        .route("/api/settings", post(lists::settings_of_picture))
        .route("/api/models", get(lists::models))
        .route("/api/loras", get(lists::loras))
        .route("/api/schedulers", get(lists::schedulers))
        .route("/api/options", get(lists::options))
        .route("/openapi.json", get(openapi::document))
        .route("/metrics", get(metrics::text))
        .route("/healthz", get(metrics::health))
        .route("/", get(page::index))
        .route("/page/{file}", get(page::file))
        .fallback(answer::no_such_path)
        .method_not_allowed_fallback(answer::no_such_method);
    let limit = app.board.limits().body;
    own.merge(openai::routes())
        .merge(a1111::routes())
        .layer(DefaultBodyLimit::max(limit))
        .layer(middleware::from_fn_with_state(app.clone(), guard::check))
        .with_state(app)
}
