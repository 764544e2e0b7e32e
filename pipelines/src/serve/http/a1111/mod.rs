//! The interface of A1111's web UI, `sdapi/v1`, that many programs draw with.

mod generation;
mod lists;
mod prompt;
mod request;

use super::App;
use super::answer::{Dialect, take};
use crate::serve::failure::Failure;
use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value};
use std::sync::Arc;

/// A failure in A1111's form.
pub struct Refused(Failure);

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        let field = failure.field.map(|field| match field.as_str() {
            "request.num_images" => "n_iter".to_owned(),
            "request.guidance_scale" => "cfg_scale".to_owned(),
            "request.strength" => "denoising_strength".to_owned(),
            "request.scheduler" => "sampler_name".to_owned(),
            "image" => "init_images".to_owned(),
            field => field.trim_start_matches("request.").to_owned(),
        });
        Self(Failure { field, ..failure })
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        Dialect::A1111.refuse(&self.0)
    }
}

type Answer = Result<Response, Refused>;

/// Its routes.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/sdapi/v1/txt2img", post(generation::txt2img))
        .route("/sdapi/v1/img2img", post(generation::img2img))
        .route("/sdapi/v1/progress", get(generation::progress))
        .route("/sdapi/v1/interrupt", post(generation::interrupt))
        .route("/sdapi/v1/skip", post(generation::interrupt))
        .route("/sdapi/v1/png-info", post(lists::png_info))
        .route("/sdapi/v1/options", get(lists::options).post(lists::set_options))
        .route("/sdapi/v1/cmd-flags", get(lists::flags))
        .route("/sdapi/v1/sd-models", get(lists::models))
        .route("/sdapi/v1/samplers", get(lists::samplers))
        .route("/sdapi/v1/schedulers", get(lists::schedulers))
        .route("/sdapi/v1/loras", get(lists::loras))
        .route("/sdapi/v1/upscalers", get(lists::upscalers))
        .route("/sdapi/v1/scripts", get(lists::scripts))
        .route("/sdapi/v1/embeddings", get(lists::embeddings))
        .route("/sdapi/v1/memory", get(lists::memory))
        .route("/sdapi/v1/sd-vae", get(lists::none))
        .route("/sdapi/v1/hypernetworks", get(lists::none))
        .route("/sdapi/v1/face-restorers", get(lists::none))
        .route("/sdapi/v1/realesrgan-models", get(lists::none))
        .route("/sdapi/v1/prompt-styles", get(lists::none))
        .route("/sdapi/v1/latent-upscale-modes", get(lists::none))
        .route("/sdapi/v1/refresh-checkpoints", post(lists::refreshed))
        .route("/sdapi/v1/refresh-loras", post(lists::refreshed))
}

/// Takes a number, which some clients send as text.
fn number(fields: &mut Map<String, Value>, name: &str) -> Result<Option<f64>, Failure> {
    if let Some(Value::String(text)) = fields.get(name)
        && let Ok(number) = text.trim().parse::<f64>()
    {
        fields.insert(name.into(), number.into());
    }
    take(fields, name, "a number")
}

/// Takes a whole number from 0 on.
fn count(fields: &mut Map<String, Value>, name: &str) -> Result<Option<u64>, Failure> {
    let wrong = |number: f64| Failure::field(name, format!("`{name}` is {number}; give a whole number from 0 on"));
    let whole = |number: f64| {
        let is_count = number >= 0.0 && number.fract() == 0.0 && number <= 2f64.powi(53);
        if is_count { Ok(number as u64) } else { Err(wrong(number)) }
    };
    number(fields, name)?.map(whole).transpose()
}
