//! A component's configuration file, read field by field with diffusers' defaults.
//!
//! # Examples
//!
//! ```
//! use std::path::Path;
//! use tweedie::config::ConfigFields;
//!
//! let text = r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 500, "clip_sample": "yes"}"#;
//! let fields = ConfigFields::from_json("scheduler", text, Path::new("scheduler_config.json"))?;
//! assert_eq!(fields.usize("num_train_timesteps", 1000)?, 500);
//! assert_eq!(fields.f64("beta_start", 0.0001)?, 0.0001);
//! assert!(fields.bool("clip_sample", true).is_err_and(|error| error.to_string().contains("clip_sample")));
//! # Ok::<_, tweedie::Error>(())
//! ```

use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The version of diffusers whose forms of files are written, which they name.
pub const DIFFUSERS_VERSION: &str = "0.42.1";

/// No size or count of a real model is larger.
const LARGEST: usize = 1_000_000;

/// Bytes of the longest configuration, a list of small values in which takes a hundred times as much; those with the names of many
/// classes have some hundred thousand.
pub(crate) const LONGEST: usize = 4 << 20;

/// The size is halved between two, and no real network does so as often.
pub(crate) const MOST_RESOLUTIONS: usize = 16;

/// What is wrong with a configuration: the name of the field, and what it may be. Those who know the file make an error
/// of it, with [`ConfigFields::wrong`] if it has fields.
pub(crate) type Flaw = (&'static str, String);

/// Whether each of these can be a number of channels.
pub(crate) fn are_widths<'a>(numbers: impl IntoIterator<Item = &'a usize>) -> bool {
    numbers.into_iter().all(|number| (1..=LARGEST).contains(number))
}

/// The fields of a `config.json` or `scheduler_config.json`.
///
/// Whoever builds a component asks for the fields that it knows. A field that is absent or null takes the
/// default that the reader gives, which is diffusers'.
#[derive(Debug, Clone)]
pub struct ConfigFields {
    component: &'static str,
    fields: Map<String, Value>,
    /// What a request put in the place of the file's.
    requested: BTreeSet<String>,
    /// What has been asked for; clones share it.
    read: Arc<Mutex<BTreeSet<String>>>,
}

impl ConfigFields {
    /// From JSON text. Python's `Infinity`, `-Infinity` and `NaN` are accepted, since real files hold them.
    /// `component` is named in errors: "unet", "vae", "scheduler".
    ///
    /// # Errors
    /// If the text is not one JSON object.
    pub fn from_json(component: &'static str, text: &str, path: &Path) -> Result<Self> {
        if text.len() > LONGEST {
            let reason = format!("it has {} bytes, and configurations have {LONGEST} at most", text.len());
            return Err(Error::malformed(ErrorKind::Model, "JSON object", path, reason));
        }
        let fields = serde_json::from_str(&quote_bare_constants(text))
            .map_err(|e| Error::malformed(ErrorKind::Model, "JSON object", path, e))?;
        Ok(Self::from_fields(component, fields))
    }

    /// From fields that are already parsed; infinities as the strings "inf" and "-inf".
    pub fn from_fields(component: &'static str, fields: Map<String, Value>) -> Self {
        Self { component, fields, requested: BTreeSet::new(), read: Arc::default() }
    }

    /// The same fields with `name` set to `value`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.into(), value.into());
        self
    }

    /// The same fields with `name` set to what a request says: an error about it is the request's, [`ErrorKind::Request`].
    #[must_use]
    pub fn with_requested(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.requested.insert(name.into());
        self.with(name, value)
    }

    /// The fields, for a record of what made a picture.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// diffusers' class name, `_class_name`.
    pub fn class_name(&self) -> Option<&str> {
        self.fields.get("_class_name").and_then(Value::as_str)
    }

    fn asked(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.asked().insert(name.into());
        self.fields.get(name).filter(|v| !v.is_null())
    }

    /// Whether a field is there and null.
    pub fn is_null(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(Value::is_null)
    }

    /// Whether a field is absent or null.
    pub fn lacks(&self, name: &str) -> bool {
        self.fields.get(name).is_none_or(Value::is_null)
    }

    /// An error about a field's value.
    pub fn wrong(&self, name: &str, expected: impl Into<String>) -> Error {
        Error::Config {
            kind: if self.requested.contains(name) { ErrorKind::Request } else { ErrorKind::Model },
            component: self.component.into(),
            field: name.into(),
            value: self.fields.get(name).map_or("absent".into(), Value::to_string),
            expected: expected.into(),
        }
    }

    /// A number; "inf", "-inf" count as numbers.
    ///
    /// # Errors
    /// If the field is there and is no number.
    pub fn f64(&self, name: &str, default: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::String(s)) => s.parse().map_err(|_| self.wrong(name, "it must be a number")),
            Some(v) => v.as_f64().ok_or_else(|| self.wrong(name, "it must be a number")),
        }
    }

    /// A whole number, not negative.
    ///
    /// # Errors
    /// If the field is there and is something else.
    pub fn usize(&self, name: &str, default: usize) -> Result<usize> {
        match self.get(name) {
            None => Ok(default),
            Some(v) => (v.as_u64())
                .and_then(|v| usize::try_from(v).ok())
                .filter(|&v| v <= LARGEST)
                .ok_or_else(|| self.wrong(name, format!("it must be a whole number from 0 to {LARGEST}"))),
        }
    }

    /// True or false; null, which Python takes for false, is false.
    ///
    /// # Errors
    /// If the field is there and is something else.
    pub fn bool(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default && !self.is_null(name)),
            Some(v) => v.as_bool().ok_or_else(|| self.wrong(name, "it must be true or false")),
        }
    }

    /// A list of numbers, or nothing.
    ///
    /// # Errors
    /// If the field is there and is something else.
    pub fn list(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let numbers = value.as_array().and_then(|a| a.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        numbers.map(Some).ok_or_else(|| self.wrong(name, "it must be a list of numbers"))
    }

    /// A number, or nothing.
    ///
    /// # Errors
    /// If the field is there and is something else.
    pub fn optional_f64(&self, name: &str) -> Result<Option<f64>> {
        self.get(name).map(|_| self.f64(name, 0.0)).transpose()
    }

    /// A whole number, or nothing.
    ///
    /// # Errors
    /// If the field is there and is something else.
    pub fn optional_usize(&self, name: &str) -> Result<Option<usize>> {
        self.get(name).map(|_| self.usize(name, 0)).transpose()
    }

    /// A list of whole numbers; one number stands for `count` equal ones, and so does the default.
    ///
    /// # Errors
    /// If the field is there and is neither, or a list of another length.
    pub fn usize_per_block(&self, name: &str, count: usize, default: usize) -> Result<Vec<usize>> {
        let Some(value) = self.get(name) else { return Ok(vec![default; count]) };
        let whole = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|&v| v <= LARGEST);
        let list = match value {
            Value::Array(list) => list.iter().map(whole).collect::<Option<Vec<_>>>(),
            one => whole(one).map(|v| vec![v; count]),
        };
        list.filter(|list| list.len() == count).ok_or_else(|| {
            self.wrong(name, format!("it must be a whole number, or one for each of the {count} blocks"))
        })
    }

    /// A list of whole numbers above 0, of any length but none.
    ///
    /// # Errors
    /// If the field is there and is something else.
    pub fn usize_list(&self, name: &str, default: &[usize]) -> Result<Vec<usize>> {
        let Some(value) = self.get(name) else { return Ok(default.to_vec()) };
        let whole = |v: &Value| v.as_u64().and_then(|v| usize::try_from(v).ok()).filter(|v| (1..=LARGEST).contains(v));
        let list = value.as_array().and_then(|list| list.iter().map(whole).collect::<Option<Vec<_>>>());
        list.filter(|list| !list.is_empty())
            .ok_or_else(|| self.wrong(name, "it must be a list of whole numbers above 0"))
    }

    /// A list of names, each one of several; see [`Self::choice`].
    ///
    /// # Errors
    /// If the field is there and is something else.
    pub fn choices<T: Copy>(&self, name: &str, choices: &[(&str, T)], default: &[T]) -> Result<Vec<T>> {
        let Some(value) = self.get(name) else { return Ok(default.to_vec()) };
        let one = |v: &Value| choices.iter().find(|(n, _)| v.as_str() == Some(n)).map(|&(_, choice)| choice);
        let list = value.as_array().and_then(|list| list.iter().map(one).collect::<Option<Vec<_>>>());
        list.ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(n, _)| *n).collect();
            self.wrong(name, format!("each must be one of {}", names.join(", ")))
        })
    }

    /// For an option of which only the given values are supported; absent and null always are.
    ///
    /// # Errors
    /// If the field has another value.
    pub fn only(&self, name: &str, supported: &[Value]) -> Result<()> {
        match self.get(name) {
            Some(value) if !supported.contains(value) => {
                let values: Vec<_> = supported.iter().map(Value::to_string).collect();
                Err(self.wrong(name, format!("this option is only supported as {}", list_or_null(&values))))
            }
            _ => Ok(()),
        }
    }

    /// Notes fields that have no effect on what is computed.
    pub fn ignore(&self, names: &[&str]) {
        self.asked().extend(names.iter().map(|&name| name.to_owned()));
    }

    /// Refuses options that nobody asked for; names that start with an underscore, and nulls, are no options.
    ///
    /// # Errors
    /// If there is one; the message names it.
    pub fn reject_unread(&self) -> Result<()> {
        let read = self.asked().clone();
        let unknown = |(name, value): &(&String, &Value)| {
            !name.starts_with('_') && !value.is_null() && !read.contains(name.as_str())
        };
        match self.fields.iter().find(unknown) {
            Some((name, _)) => Err(self.wrong(name, "this option is not supported; remove it if it has no effect")),
            None => Ok(()),
        }
    }

    /// One of several names, given as pairs of the name in the file and what it stands for.
    ///
    /// # Errors
    /// If the field is there and is none of them; the message lists them.
    pub fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)], default: T) -> Result<T> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let found = value.as_str().and_then(|v| choices.iter().find(|(n, _)| *n == v));
        found.map(|&(_, choice)| choice).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(n, _)| *n).collect();
            self.wrong(name, format!("it must be one of {}", names.join(", ")))
        })
    }
}

fn list_or_null(values: &[String]) -> String {
    if values.is_empty() { "null".into() } else { format!("null or {}", values.join(" or ")) }
}

/// Puts the constants that Python writes and JSON does not know into quotes.
fn quote_bare_constants(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let (mut in_string, mut escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        if !in_string {
            let constant = [("-Infinity", "\"-inf\""), ("Infinity", "\"inf\""), ("NaN", "\"nan\"")]
                .into_iter()
                .find(|(bare, _)| rest.starts_with(bare));
            if let Some((bare, quoted)) = constant {
                out.push_str(quoted);
                rest = &rest[bare.len()..];
                continue;
            }
        }
        in_string ^= c == '"' && !escaped;
        escaped = in_string && c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFields> {
        ConfigFields::from_json("scheduler", text, Path::new("scheduler_config.json"))
    }

    #[test]
    fn python_constants_are_read_outside_strings_only() -> Result<()> {
        let text = r#"{"lambda_min_clipped": -Infinity, "b": Infinity, "note": "NaN \" Infinity", "n": null}"#;
        let config = parse(text)?;
        assert_eq!(config.f64("lambda_min_clipped", 0.0)?, f64::NEG_INFINITY);
        assert_eq!(config.f64("b", 0.0)?, f64::INFINITY);
        assert_eq!(config.fields()["note"], "NaN \" Infinity");
        assert_eq!(config.f64("n", 2.5)?, 2.5);
        Ok(())
    }

    #[test]
    fn an_option_that_nobody_reads_is_named() -> Result<()> {
        let config = parse(r#"{"_class_name": "X", "size": 3, "nothing": null, "extra": true}"#)?;
        config.usize("size", 0)?;
        let message = config.reject_unread().map_err(|e| e.to_string());
        assert!(message.is_err_and(|m| m.contains("`extra` is true")));
        config.ignore(&["extra"]);
        config.reject_unread()
    }

    #[test]
    fn a_wrong_type_names_field_value_and_choices() -> Result<()> {
        let config = parse(r#"{"steps_offset": "one", "timestep_spacing": "sideways"}"#)?;
        let message = config.usize("steps_offset", 0).map_err(|e| e.to_string());
        assert_eq!(
            message,
            Err("scheduler config: `steps_offset` is \"one\"; it must be a whole number from 0 to 1000000".into())
        );
        let message =
            config.choice("timestep_spacing", &[("leading", 0), ("trailing", 1)], 0).map_err(|e| e.to_string());
        assert!(message.is_err_and(|m| m.contains("leading, trailing") && m.contains("sideways")));
        Ok(())
    }

    #[test]
    fn what_a_request_put_in_is_the_requests_fault() -> Result<()> {
        let config = parse(r#"{"steps_offset": "one", "eta": 0.5}"#)?.with_requested("eta", "much");
        let kind = |name: &str| config.f64(name, 0.0).map_err(|error| error.kind());
        assert_eq!(kind("steps_offset"), Err(ErrorKind::Model));
        assert_eq!(kind("eta"), Err(ErrorKind::Request));
        Ok(())
    }
}
