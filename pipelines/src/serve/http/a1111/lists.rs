//! What there is to choose from, in that form.

use super::super::Shared;
use super::super::answer::{object, take};
use super::super::extract::Body;
use super::super::pictures::data;
use super::Answer;
use crate::serve::failure::Failure;
use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::PoisonError;
use tweedie::images::{TextChunk, read_picture_text};
use tweedie::schedulers::SCHEDULERS;

/// `POST /sdapi/v1/png-info`.
pub async fn png_info(Body(body): Body) -> Answer {
    let mut fields = object(&body)?;
    let image: String = take(&mut fields, "image", "a picture in base64")?
        .ok_or_else(|| Failure::field("image", "`image` is not given; send a picture in base64"))?;
    let texts = read_picture_text(&data(&image, "image")?, Path::new("the picture"))
        .map_err(|error| Failure::field("image", error.to_string()))?;
    let items: Map<String, Value> = texts.iter().map(|text| (text.keyword.clone(), text.text.clone().into())).collect();
    let info = texts.iter().find(|text| text.keyword == TextChunk::PARAMETERS).map_or("", |text| text.text.as_str());
    Ok(Json(json!({"info": info, "items": items, "parameters": {}})).into_response())
}

/// `GET /sdapi/v1/options`.
pub async fn options(State(app): Shared) -> Answer {
    let chosen = app.chosen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let model = chosen.unwrap_or_else(|| app.board.shelf.default_name().to_owned());
    Ok(Json(json!({
        "sd_model_checkpoint": model, "sd_checkpoint_hash": "", "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1,
        "samples_format": "png", "eta_noise_seed_delta": 0, "show_progress_every_n_steps": 1,
    }))
    .into_response())
}

/// `POST /sdapi/v1/options`: the model of requests that name none. Other options have no effect.
pub async fn set_options(State(app): Shared, Body(body): Body) -> Answer {
    let mut fields = object(&body)?;
    if let Some(name) = take::<String>(&mut fields, "sd_model_checkpoint", "the name of a model")? {
        let name = app.board.shelf.check(&name)?.to_owned();
        *app.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
    }
    Ok(Json(Value::Null).into_response())
}

/// `GET /sdapi/v1/cmd-flags`.
pub async fn flags() -> Answer {
    Ok(Json(json!({})).into_response())
}

/// `GET /sdapi/v1/sd-models`.
pub async fn models(State(app): Shared) -> Answer {
    let models = app.board.shelf.names().map(|name| {
        json!({"title": name, "model_name": name, "hash": null, "sha256": null, "filename": name, "config": null})
    });
    Ok(Json(models.collect::<Vec<_>>()).into_response())
}

/// `GET /sdapi/v1/samplers`.
pub async fn samplers() -> Answer {
    let rows = SCHEDULERS.iter().map(|entry| json!({"name": entry.label, "aliases": [entry.name], "options": {}}));
    Ok(Json(rows.collect::<Vec<_>>()).into_response())
}

/// `GET /sdapi/v1/schedulers`: how the levels of those samplers are placed.
pub async fn schedulers() -> Answer {
    let mut endings: Vec<&str> =
        SCHEDULERS.iter().flat_map(|entry| entry.suffixes.iter().map(|suffix| suffix.name)).collect();
    endings.sort_unstable();
    endings.dedup();
    let rows = ["automatic"].into_iter().chain(endings).map(|name| {
        let mut letters = name.chars();
        let label: String = letters.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(letters).collect();
        json!({"name": name, "label": label, "aliases": null, "default_rho": -1.0, "need_inner_model": false})
    });
    Ok(Json(rows.collect::<Vec<_>>()).into_response())
}

/// `GET /sdapi/v1/loras`.
pub async fn loras(State(app): Shared) -> Answer {
    let rows =
        app.board.shelf.lora_names().map(|name| json!({"name": name, "alias": name, "path": name, "metadata": {}}));
    Ok(Json(rows.collect::<Vec<_>>()).into_response())
}

/// `GET /sdapi/v1/upscalers`.
pub async fn upscalers() -> Answer {
    Ok(Json(json!([{"name": "None", "model_name": null, "model_path": null, "model_url": null, "scale": 4.0}]))
        .into_response())
}

/// `GET /sdapi/v1/scripts`.
pub async fn scripts() -> Answer {
    Ok(Json(json!({"txt2img": [], "img2img": []})).into_response())
}

/// `GET /sdapi/v1/embeddings`.
pub async fn embeddings() -> Answer {
    Ok(Json(json!({"loaded": {}, "skipped": {}})).into_response())
}

/// `GET /sdapi/v1/memory`.
pub async fn memory() -> Answer {
    let free = crate::memory::available();
    let used = crate::memory::peak_mb().map(|mebibytes| mebibytes << 20);
    Ok(Json(json!({"ram": {"free": free, "used": used, "total": null}, "cuda": {}})).into_response())
}

/// A list of what this program has none of.
pub async fn none() -> Answer {
    Ok(Json(json!([])).into_response())
}

/// The lists are those of the start.
pub async fn refreshed() -> Answer {
    Ok(Json(Value::Null).into_response())
}
