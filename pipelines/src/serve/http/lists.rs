//! What there is to choose from: models, LoRAs, schedulers, options; and what a picture says of how it was made.

use super::Shared;
use super::answer::Answer;
use super::extract::{Body, InQuery};
use crate::records::reuse::ReusedSettings;
use crate::requests::image_to_image::ImageToImageRequest;
use crate::requests::inpaint::InpaintRequest;
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{OptionInfo, Options};
use crate::requests::text_to_image::TextToImageRequest;
use crate::serve::failure::Failure;
use crate::serve::job::JobKind;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use tweedie::schedulers::{SCHEDULERS, SchedulerEntry};

/// `GET /api/models`.
pub async fn models(State(app): Shared) -> Answer {
    let shelf = &app.board.shelf;
    Ok(Json(json!({"default": shelf.default_name(), "models": shelf.list()})).into_response())
}

/// `GET /api/loras`.
pub async fn loras(State(app): Shared) -> Answer {
    let loras: Vec<_> = app.board.shelf.lora_names().map(|name| json!({"name": name})).collect();
    Ok(Json(json!({"loras": loras})).into_response())
}

/// `GET /api/schedulers`.
pub async fn schedulers() -> Answer {
    Ok(Json(SCHEDULERS.iter().map(SchedulerEntry::to_json).collect::<Value>()).into_response())
}

/// Whose options.
#[derive(Debug, Deserialize)]
pub struct Whose {
    kind: Option<JobKind>,
}

/// `GET /api/options`.
pub async fn options(InQuery(Whose { kind }): InQuery<Whose>) -> Answer {
    let options: Vec<_> = of_kind(kind.unwrap_or(JobKind::Txt2img)).iter().map(described).collect();
    Ok(Json(Value::Array(options)).into_response())
}

/// The options of requests of a kind, as a client may give them.
pub fn of_kind(kind: JobKind) -> Vec<OptionInfo> {
    let own = match kind {
        JobKind::Txt2img => Vec::new(),
        JobKind::Img2img => ImageToImageRequest::options(),
        JobKind::Inpaint => InpaintRequest::options(),
    };
    TextToImageRequest::options().into_iter().chain(own).collect()
}

fn described(option: &OptionInfo) -> Value {
    let choices = match option.kind {
        OptionKind::Choice(names) => names,
        _ => &[],
    };
    json!({
        "path": option.path, "name": option.name, "help": option.help, "kind": kind_name(option.kind), "choices": choices,
        "default": option.default, "heading": option.heading, "rare": option.rare, "value": flag_value(option.kind),
    })
}

/// What a flag stands for where it is given.
fn flag_value(kind: OptionKind) -> Value {
    match kind {
        OptionKind::Flag(FlagValue::On) => json!(true),
        OptionKind::Flag(FlagValue::Off) => json!(false),
        OptionKind::Flag(FlagValue::Defaults) => json!({}),
        _ => Value::Null,
    }
}

fn kind_name(kind: OptionKind) -> &'static str {
    match kind {
        OptionKind::Text => "text",
        OptionKind::Name => "name",
        OptionKind::Choice(_) => "choice",
        OptionKind::Count => "count",
        OptionKind::Seed => "seed",
        OptionKind::Number => "number",
        OptionKind::Counts => "counts",
        OptionKind::Names => "names",
        OptionKind::Numbers => "numbers",
        OptionKind::Interval => "interval",
        OptionKind::Size => "size",
        OptionKind::Corner => "corner",
        OptionKind::Margins => "margins",
        OptionKind::Flag(_) => "flag",
        OptionKind::Json => "json",
    }
}

/// `POST /api/settings`.
pub async fn settings_of_picture(State(app): Shared, Body(bytes): Body) -> Answer {
    let found = ReusedSettings::of_picture(&bytes, Path::new("the picture"))
        .map_err(|error| Failure::field("picture", error.to_string()))?;
    // A model of the server's list, if it is one; its scheduler's configuration is its own.
    let model = found.model.clone().filter(|name| app.board.shelf.names().any(|known| known == name));
    let (unused, is_known) = (found.unused.clone(), model.is_some());
    let mut options = if is_known { found.options } else { found.for_another_model() };
    // What clients show in a form; all else follows from the model.
    options.retain(|name, value| name != "scheduler_config" && !value.is_null());
    Ok(Json(json!({"options": options, "model": model, "unused": unused})).into_response())
}
