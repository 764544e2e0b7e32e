//! Why a request of a client is not carried out, and whose fault that is.

use super::queue::QueueError;
use crate::requests::inpaint::InpaintRequest;
use crate::requests::options::{Options, WrongOption};
use crate::requests::text_to_image::TextToImageRequest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tweedie::{Error, ErrorKind};

/// A request that is refused, or a job that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What was wrong, with the value, and what to do.
    pub message: String,
    /// The field at fault, after those of the objects around it, with dots between.
    pub field: Option<String>,
    /// What it is in one word.
    pub code: FailureCode,
    /// Seconds after which another try may succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

/// What a failure is, as HTTP tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// Something was asked for that cannot be done: 400.
    Invalid,
    /// The key is missing or wrong: 401.
    Unauthorized,
    /// The caller is not to ask this: 403.
    Forbidden,
    /// There is no such thing: 404.
    Missing,
    /// Not in the state that a thing is in: 409.
    Conflict,
    /// Larger than the server takes: 413.
    TooLarge,
    /// Too much waits already: 429.
    Busy,
    /// The server's own fault: 500. Another try does not help.
    Internal,
    /// The server is stopping, or a place that it needs cannot be reached: 503.
    Unavailable,
}

impl FailureCode {
    /// The status of an answer.
    pub fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::Missing => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Busy => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
        }
    }
}

impl Failure {
    /// A failure of no field.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        Self { message: message.into(), field: None, code, retry_after: None }
    }

    /// Work that ended in a panic, or never began.
    pub fn fault() -> Self {
        Self::new(FailureCode::Internal, "the request ended in a fault of the program")
    }

    /// A field that has a value that cannot be used.
    pub fn field(field: &str, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(FailureCode::Invalid, message) }
    }

    /// The same of a field inside an object.
    #[must_use]
    pub fn within(mut self, object: &str) -> Self {
        self.field = self.field.map(|field| format!("{object}.{field}"));
        self
    }

    /// As the server's own interface tells it.
    pub fn json(&self) -> Value {
        json!({"error": {"message": self.message, "field": self.field, "code": self.code}})
    }
}

impl From<WrongOption> for Failure {
    fn from(wrong: WrongOption) -> Self {
        Self::field(&wrong.name, wrong.to_string())
    }
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        Self::new(FailureCode::Unavailable, error.to_string())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Request | ErrorKind::Memory => FailureCode::Invalid,
            ErrorKind::Missing => FailureCode::Missing,
            ErrorKind::Cancelled => FailureCode::Conflict,
            ErrorKind::Model | ErrorKind::File | ErrorKind::Device => FailureCode::Internal,
        };
        let field = match &error {
            Error::Invalid { what, .. } if code == FailureCode::Invalid => named(what),
            _ => None,
        };
        Self { field, ..Self::new(code, error.to_string()) }
    }
}

/// The option that a text names: the first in backquotes, else the last word if it is one, as in "the number of steps".
fn named(text: &str) -> Option<String> {
    let last = || text.split_whitespace().last().filter(|word| is_option(word));
    text.split('`').nth(1).or_else(last).map(str::to_owned)
}

fn is_option(word: &str) -> bool {
    InpaintRequest::options().iter().chain(&TextToImageRequest::options()).any(|option| option.name == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_library_keep_their_fault_and_their_field() {
        let failure = Failure::from(Error::invalid("`steps`", 0, "give at least 1"));
        assert_eq!((failure.code, failure.field.as_deref()), (FailureCode::Invalid, Some("steps")));
        assert_eq!(failure.within("request").field.as_deref(), Some("request.steps"));
        let failure = Failure::from(Error::unusable(ErrorKind::Model, "the model", "x", "take another"));
        assert_eq!((failure.code.status(), failure.field), (500, None));
        let failure = Failure::from(Error::invalid("the number of steps", 0, "give at least 1"));
        assert_eq!(failure.field.as_deref(), Some("steps"));
        assert_eq!(Failure::from(Error::invalid("the picture", "x", "give another")).field, None);
    }
}
