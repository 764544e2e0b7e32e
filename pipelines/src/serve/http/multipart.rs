//! Forms with files in them.

use crate::serve::failure::{Failure, FailureCode};
use axum::extract::{FromRequest, Multipart, Request};
use bytes::Bytes;
use serde_json::{Map, Value};

/// Fields that are text whatever stands in them.
const TEXTS: [&str; 5] = ["prompt", "negative_prompt", "model", "size", "user"];

/// A form: what stands in its fields, and its files.
#[derive(Debug, Default)]
pub struct Form {
    /// Fields of text, as JSON where they are numbers, truth values, objects or lists.
    pub fields: Map<String, Value>,
    /// Files by the names of their fields, in their order.
    pub files: Vec<(String, Bytes)>,
}

impl Form {
    /// Reads the form of a request.
    pub async fn read<S: Send + Sync>(request: Request, state: &S) -> Result<Self, Failure> {
        let invalid =
            |message: String| Failure::new(FailureCode::Invalid, format!("the form cannot be read: {message}"));
        let mut parts = Multipart::from_request(request, state).await.map_err(|error| invalid(error.body_text()))?;
        let mut form = Self::default();
        let too_large = |error: axum::extract::multipart::MultipartError| match error.status().as_u16() {
            413 => Failure::new(FailureCode::TooLarge, "the form is larger than this server takes"),
            _ => invalid(error.body_text()),
        };
        while let Some(part) = parts.next_field().await.map_err(too_large)? {
            let name = part.name().unwrap_or_default().to_owned();
            let is_file = part.file_name().is_some();
            let bytes = part.bytes().await.map_err(too_large)?;
            if is_file {
                form.files.push((name, bytes));
            } else {
                let text = String::from_utf8_lossy(&bytes);
                let value = if TEXTS.contains(&name.as_str()) { text.into() } else { value(&text) };
                form.fields.insert(name, value);
            }
        }
        Ok(form)
    }

    /// Takes the files of a field, or of the list of that name.
    pub fn take_files(&mut self, name: &str) -> Vec<Bytes> {
        let list = format!("{name}[]");
        let (taken, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.files).into_iter().partition(|(field, _)| field == name || *field == list);
        self.files = rest;
        taken.into_iter().map(|(_, bytes)| bytes).collect()
    }
}

/// A number, truth value, object or list that a text is, else the text.
fn value(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::Object(_) | Value::Array(_))) => value,
        _ => text.into(),
    }
}
