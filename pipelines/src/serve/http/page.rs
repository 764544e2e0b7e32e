//! The page: its files are compiled in.

use super::answer::no_such_path;
use super::extract::InPath;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};

/// What the page may load: its own files, and pictures that it was given.
const POLICY: &str =
    "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Files by their names.
macro_rules! files {
    ($($name:literal),+ $(,)?) => { [$(($name, include_bytes!(concat!("../page/", $name)).as_slice())),+] };
}
const FILES: &[(&str, &[u8])] = &files![
    "api.js",
    "app.js",
    "choices.js",
    "dom.js",
    "events.js",
    "fields.js",
    "form.js",
    "gallery.js",
    "index.html",
    "intake.js",
    "jobs.js",
    "key.js",
    "mask-editor.js",
    "mask-file.js",
    "mask-keys.js",
    "mask-view.js",
    "mask.js",
    "more-options.js",
    "outpaint.js",
    "pictures.js",
    "queue.js",
    "source.js",
    "stage.js",
    "style.css",
    "viewer.js",
    "vocabulary.js",
];

/// `GET /`.
pub async fn index(uri: Uri) -> Response {
    send("index.html", uri).await
}

/// `GET /page/FILE`.
pub async fn file(InPath(name): InPath<String>, uri: Uri) -> Response {
    send(&name, uri).await
}

async fn send(name: &str, uri: Uri) -> Response {
    let Some((name, bytes)) = FILES.iter().find(|(known, _)| *known == name) else { return no_such_path(uri).await };
    let kind = match name.rsplit_once('.') {
        Some((_, "html")) => "text/html; charset=utf-8",
        Some((_, "css")) => "text/css; charset=utf-8",
        Some((_, "js")) => "text/javascript; charset=utf-8",
        _ => "application/octet-stream",
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, *bytes).into_response()
}
