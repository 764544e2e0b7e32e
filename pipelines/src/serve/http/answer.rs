//! Answers, and what is said in each interface's own form where a request is refused.

use crate::serve::failure::{Failure, FailureCode};
use axum::Json;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Commas of a request.
const MOST_VALUES: usize = 20_000;

/// An answer in the server's own interface.
pub type Answer = Result<Response, Failure>;

/// Whose form errors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The server's own.
    Own,
    /// OpenAI's.
    OpenAi,
    /// A1111's.
    A1111,
}

impl Dialect {
    /// That of a path.
    pub fn of_path(path: &str) -> Self {
        match path {
            path if path.starts_with("/v1/") => Self::OpenAi,
            path if path.starts_with("/sdapi/") => Self::A1111,
            _ => Self::Own,
        }
    }

    /// The answer that says why a request is refused.
    pub fn refuse(self, failure: &Failure) -> Response {
        let status = match (self, failure.code) {
            // As that program says of a field that it does not take.
            (Self::A1111, FailureCode::Invalid) => 422,
            (_, code) => code.status(),
        };
        let body = match self {
            Self::Own => failure.json(),
            Self::OpenAi => {
                let kind = if status < 500 { "invalid_request_error" } else { "server_error" };
                json!({"error": {"message": failure.message, "type": kind, "param": failure.field, "code": failure.code}})
            }
            Self::A1111 => json!({
                "error": failure.code, "detail": failure.message, "body": "", "errors": failure.message,
                "field": failure.field,
            }),
        };
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = failure.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if matches!(failure.code, FailureCode::Internal | FailureCode::Conflict) {
            // The same request fails again, or makes anew what somebody ended.
            headers.insert("x-should-retry", header::HeaderValue::from_static("false"));
        }
        if failure.code == FailureCode::Unauthorized {
            headers
                .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer, Basic realm=\"tweedie\""));
        }
        response
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        Dialect::Own.refuse(&self)
    }
}

/// The object that a request is, without what is null in it: clients send that for what they leave open.
pub fn object(bytes: &Bytes) -> Result<Map<String, Value>, Failure> {
    let invalid = |message: String| Failure::new(FailureCode::Invalid, message);
    // Values take far more memory than their bytes, and there is one to a comma.
    if bytes.iter().filter(|byte| **byte == b',').count() > MOST_VALUES {
        return Err(Failure::new(FailureCode::TooLarge, format!("the request has more than {MOST_VALUES} values")));
    }
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(mut fields)) => {
            fields.retain(|_, value| !value.is_null());
            Ok(fields)
        }
        Ok(_) => Err(invalid("the request is no JSON object".into())),
        Err(error) => Err(invalid(format!("the request is no JSON: {error}"))),
    }
}

/// Takes a field of a type out of an object.
pub fn take<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &str,
    expected: &str,
) -> Result<Option<T>, Failure> {
    let Some(value) = fields.shift_remove(name) else { return Ok(None) };
    T::deserialize(&value).map(Some).map_err(|_| {
        let shown = crate::requests::options::shortened(&value);
        Failure::field(name, format!("`{name}` is {shown}; it must be {expected}"))
    })
}

/// That nothing is left of an object.
pub fn nothing_else(fields: &Map<String, Value>) -> Result<(), Failure> {
    match fields.keys().next() {
        None => Ok(()),
        Some(name) => Err(Failure::field(name, format!("`{name}` is not known here; leave it away"))),
    }
}

/// There is nothing at such a path.
pub async fn no_such_path(uri: Uri) -> Response {
    let message = format!("there is nothing at {}; /openapi.json lists what there is", uri.path());
    Dialect::of_path(uri.path()).refuse(&Failure::new(FailureCode::Missing, message))
}

/// A path does not take such a request.
pub async fn no_such_method(method: Method, uri: Uri) -> Response {
    let failure = Failure::new(FailureCode::Invalid, format!("{} does not take {method}", uri.path()));
    let mut response = Dialect::of_path(uri.path()).refuse(&failure);
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
}
