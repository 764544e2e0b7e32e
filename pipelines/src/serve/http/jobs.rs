//! Jobs in the server's own interface.

use super::Shared;
use super::answer::{Answer, nothing_else, object, take};
use super::extract::{Body, InPath, InQuery};
use super::pictures::data;
use crate::serve::board::{Asked, to_its_end};
use crate::serve::failure::Failure;
use crate::serve::job::{JobKind, JobView};
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

/// Jobs on a page of a list, where nothing is said.
const PAGE: usize = 50;
/// The most on one.
const LONGEST_PAGE: usize = 200;

/// Who asks: what the header X-Client says, else an address.
pub fn client(headers: &HeaderMap, address: SocketAddr) -> String {
    let named = headers.get("x-client").and_then(|value| value.to_str().ok()).filter(|name| name.len() <= 100);
    named.map_or_else(|| address.ip().to_string(), str::to_owned)
}

/// `POST /api/jobs`.
pub async fn create(
    State(app): Shared,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer {
    let mut fields = object(&body)?;
    let picture = |fields: &mut Map<String, Value>, name: &str| -> Result<_, Failure> {
        take::<String>(fields, name, "base64 or a data URL")?.map(|text| data(&text, name)).transpose()
    };
    let asked = Asked {
        kind: take::<JobKind>(&mut fields, "kind", "txt2img, img2img or inpaint")?,
        model: take(&mut fields, "model", "the name of a model")?,
        image: picture(&mut fields, "image")?,
        mask: picture(&mut fields, "mask")?,
        priority: take(&mut fields, "priority", "a whole number")?.unwrap_or(0),
        request: take(&mut fields, "request", "an object with the options of a request")?.unwrap_or_default(),
        client: client(&headers, address),
        key: headers.get("idempotency-key").map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned()),
    };
    nothing_else(&fields)?;
    if asked.request.get("prompt").is_none_or(|prompt| !prompt.is_string()) {
        return Err(Failure::field("request.prompt", "`request.prompt` is not given; say what to draw"));
    }
    let (view, is_new) = to_its_end(async move { app.board.admit(asked).await }).await?;
    let status = if is_new { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(view.json())).into_response())
}

/// Where a list begins and ends.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Page {
    limit: Option<usize>,
    before: Option<String>,
}

/// `GET /api/jobs`.
pub async fn list(State(app): Shared, InQuery(Page { limit, before }): InQuery<Page>) -> Answer {
    let limit = limit.unwrap_or(PAGE);
    if !(1..=LONGEST_PAGE).contains(&limit) {
        return Err(Failure::field("limit", format!("`limit` is {limit}; give from 1 to {LONGEST_PAGE}")));
    }
    let (views, next) = app.board.list(before.as_deref(), limit).await?;
    let jobs: Vec<_> = views.iter().map(JobView::json).collect();
    Ok(Json(json!({"jobs": jobs, "next": next})).into_response())
}

/// `GET /api/jobs/ID`.
pub async fn show(State(app): Shared, InPath(id): InPath<String>) -> Answer {
    Ok(Json(app.board.view(&id).await?.json()).into_response())
}

/// `POST /api/jobs/ID/cancel`.
pub async fn cancel(State(app): Shared, InPath(id): InPath<String>) -> Answer {
    Ok(Json(app.board.cancel(&id).await?.json()).into_response())
}

/// `DELETE /api/jobs/ID`.
pub async fn delete(State(app): Shared, InPath(id): InPath<String>) -> Answer {
    app.board.delete(&id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
