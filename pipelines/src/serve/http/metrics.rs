//! Figures for whoever watches over a server.

use super::Shared;
use super::answer::Answer;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::json;
use std::sync::atomic::Ordering;

/// `GET /healthz`.
pub async fn health(State(app): Shared) -> Answer {
    app.board.waiting().await?;
    Ok(Json(json!({"status": "ok"})).into_response())
}

/// `GET /metrics`, as Prometheus reads it.
pub async fn text(State(app): Shared) -> Answer {
    let running = &app.board.running;
    let waiting = app.board.waiting().await?.len() as u64;
    let seconds = app.started.elapsed().as_secs();
    let rows = [
        ("tweedie_jobs_waiting", "gauge", "Jobs that wait in the queue.", waiting),
        ("tweedie_jobs_running", "gauge", "Jobs that this process works on.", running.count() as u64),
        (
            "tweedie_jobs_finished_total",
            "counter",
            "Jobs that this process ended.",
            running.finished.load(Ordering::Relaxed),
        ),
        ("tweedie_jobs_failed_total", "counter", "Jobs of those that failed.", running.failed.load(Ordering::Relaxed)),
        (
            "tweedie_pictures_total",
            "counter",
            "Pictures that this process made.",
            running.pictures.load(Ordering::Relaxed),
        ),
        ("tweedie_models_loaded", "gauge", "Models in memory.", app.board.shelf.count_loaded() as u64),
        (
            "tweedie_peak_memory_mebibytes",
            "gauge",
            "The most memory that was resident.",
            crate::memory::peak_mb().unwrap_or(0),
        ),
        ("tweedie_uptime_seconds", "gauge", "Seconds since the start.", seconds),
    ];
    let rows =
        rows.map(|(name, kind, help, value)| format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"));
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], rows.concat()).into_response())
}
