//! What a request brings, refused in its interface's own form where it cannot be read.

use super::answer::Dialect;
use crate::serve::failure::{Failure, FailureCode};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use bytes::Bytes;
use serde::de::DeserializeOwned;

/// The bytes of a request, no more than the server takes.
pub struct Body(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let dialect = Dialect::of_path(request.uri().path());
        let refused = |status, text| refused(dialect, status, "the request", text);
        Bytes::from_request(request, state).await.map(Self).map_err(|e| refused(e.status(), e.body_text()))
    }
}

/// The names in a path.
pub struct InPath<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let dialect = Dialect::of_path(parts.uri.path());
        let names = Path::from_request_parts(parts, state).await;
        names.map(|Path(names)| Self(names)).map_err(|e| refused(dialect, e.status(), "the path", e.body_text()))
    }
}

/// What stands after a path's question mark.
pub struct InQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for InQuery<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let dialect = Dialect::of_path(parts.uri.path());
        let query = Query::from_request_parts(parts, state).await;
        query.map(|Query(query)| Self(query)).map_err(|e| refused(dialect, e.status(), "the query", e.body_text()))
    }
}

fn refused(dialect: Dialect, status: StatusCode, what: &str, text: String) -> Response {
    let code = match status {
        StatusCode::PAYLOAD_TOO_LARGE => FailureCode::TooLarge,
        _ => FailureCode::Invalid,
    };
    dialect.refuse(&Failure::new(code, format!("{what} cannot be read: {text}")))
}
