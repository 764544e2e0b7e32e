//! Pictures, and how far they are, in that form.

use super::super::answer::object;
use super::super::awaited::{Awaited, picture};
use super::super::extract::{Body, InQuery};
use super::super::jobs::client;
use super::super::pictures::base64;
use super::super::{App, Shared};
use super::Answer;
use super::request::{Read, read};
use crate::serve::failure::Failure;
use crate::serve::job::JobView;
use crate::serve::store::of_job;
use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use tweedie::images::{TextChunk, read_picture_text};

/// `POST /sdapi/v1/txt2img`.
pub async fn txt2img(
    State(app): Shared,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer {
    draw(app, object(&body)?, false, client(&headers, address)).await
}

/// `POST /sdapi/v1/img2img`.
pub async fn img2img(
    State(app): Shared,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer {
    draw(app, object(&body)?, true, client(&headers, address)).await
}

async fn draw(app: Arc<App>, fields: Map<String, Value>, from_picture: bool, client: String) -> Answer {
    app.board.check_room().await?;
    let chosen = app.chosen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Read { mut asked, sends_images, mut parameters } = read(fields, from_picture, chosen)?;
    asked.client = client;
    let mut job = Awaited::begin(&app.board, asked).await?;
    // As there, an interrupted request is answered with what there is.
    let view = job.ended().await?;
    let pictures = job.pictures(&view).await?;
    let info = info(&view, &pictures);
    let images: Vec<_> = if sends_images { pictures.iter().map(|png| base64(png)).collect() } else { Vec::new() };
    parameters.insert("seed".into(), info["seed"].clone());
    Ok(Json(json!({"images": images, "parameters": parameters, "info": info.to_string()})).into_response())
}

/// What that program says of pictures.
fn info(view: &JobView, pictures: &[Bytes]) -> Value {
    let request = &view.job.request;
    let texts: Vec<String> = pictures.iter().map(parameters_of).collect();
    let seeds: Vec<_> = view.status.pictures.iter().map(|made| made.seed).collect();
    let prompt = request.get("prompt").cloned().unwrap_or_default();
    let negative = request.get("negative_prompt").cloned().unwrap_or_else(|| "".into());
    let made = view.status.pictures.first();
    json!({
        "prompt": prompt,
        "all_prompts": vec![prompt.clone(); seeds.len()],
        "negative_prompt": negative,
        "all_negative_prompts": vec![negative.clone(); seeds.len()],
        "seed": seeds.first(),
        "all_seeds": seeds,
        "subseed": seeds.first(),
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": made.map(|made| made.width),
        "height": made.map(|made| made.height),
        "sampler_name": request.get("scheduler"),
        "cfg_scale": request.get("guidance_scale"),
        "steps": request.get("steps"),
        "batch_size": request.get("batch_size").cloned().unwrap_or_else(|| 1.into()),
        "denoising_strength": request.get("strength"),
        "sd_model_name": view.job.model,
        "infotexts": texts,
        "warnings": view.status.warnings,
        "job_timestamp": format!("{:.0}", view.job.created),
        "clip_skip": request.get("clip_skip").and_then(Value::as_u64).unwrap_or(0) + 1,
        "is_using_inpainting_conditioning": false,
        "index_of_first_image": 0,
        "styles": [],
        "extra_generation_params": {},
    })
}

/// The text of a picture as that program writes it.
fn parameters_of(png: &Bytes) -> String {
    let texts = read_picture_text(png, Path::new("picture.png")).unwrap_or_default();
    texts.into_iter().find(|text| text.keyword == TextChunk::PARAMETERS).map(|text| text.text).unwrap_or_default()
}

/// What of the present picture is wanted.
#[derive(Debug, Deserialize)]
pub struct Wanted {
    skip_current_image: Option<String>,
}

/// `GET /sdapi/v1/progress`.
pub async fn progress(State(app): Shared, InQuery(wanted): InQuery<Wanted>) -> Answer {
    let waiting = app.board.waiting().await?.len();
    let current = match app.board.running.ids().into_iter().next() {
        Some(id) => Some(app.board.view(&id).await?),
        None => None,
    };
    let progress = current.as_ref().and_then(|view| view.status.progress);
    let share = progress.map_or(0.0, |at| {
        let (batch, steps) = (at.picture as f64, at.steps.max(1) as f64);
        ((batch + at.step as f64 / steps) / at.pictures.max(1) as f64).min(0.999)
    });
    let skips = wanted.skip_current_image.is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let image = match &current {
        Some(view) if !skips => current_image(&app, view).await?,
        _ => None,
    };
    let (step, steps) = progress.map_or((0, 0), |at| (at.step, at.steps));
    let running = usize::from(current.is_some());
    Ok(Json(json!({
        "progress": share,
        "eta_relative": progress.and_then(|at| at.eta).unwrap_or(0.0),
        "state": {
            "skipped": false,
            "interrupted": false,
            "stopping_generation": false,
            "job": current.as_ref().map_or("", |view| view.job.id.as_str()),
            "job_count": running + waiting,
            "job_timestamp": current.as_ref().map_or_else(|| "0".into(), |view| format!("{:.0}", view.job.created)),
            "job_no": 0,
            "sampling_step": step,
            "sampling_steps": steps,
        },
        "current_image": image,
        "textinfo": null,
    }))
    .into_response())
}

/// The newest preview, or the picture that was finished last.
async fn current_image(app: &App, view: &JobView) -> Result<Option<String>, Failure> {
    if view.status.preview.is_some() {
        let preview = app.board.store.get(&of_job(&view.job.id, "preview.png")).await?;
        return Ok(preview.map(|png| base64(&png)));
    }
    match view.status.pictures.len() {
        0 => Ok(None),
        count => Ok(Some(base64(&picture(&app.board, &view.job.id, count - 1).await?))),
    }
}

/// `POST /sdapi/v1/interrupt`: the end of what this process draws.
pub async fn interrupt(State(app): Shared) -> Answer {
    for id in app.board.running.ids() {
        app.board.running.cancel(&id);
    }
    Ok(Json(json!({})).into_response())
}
