//! OpenAI's interface for images: generations, edits, models.
//!
//! Fields of this program's own, such as `seed` and `steps`, stand beside OpenAI's; its clients send them as `extra_body`.

use super::answer::{Dialect, nothing_else, object, take};
use super::awaited::Awaited;
use super::extract::{Body, InPath};
use super::jobs::client;
use super::multipart::Form;
use super::pictures::base64;
use super::{App, Shared};
use crate::requests::options::Options;
use crate::requests::text_to_image::TextToImageRequest;
use crate::serve::board::{Asked, Board};
use crate::serve::failure::{Failure, FailureCode};
use crate::serve::job::{JobKind, JobView, State as JobState};
use crate::serve::store::of_job;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use tweedie::images::{ColorType, Mask, Photo, PictureFormat};

/// The most pictures of a request.
const MOST: usize = 10;
/// The most partial images of one.
const MOST_PARTIAL: u64 = 3;

/// Fields that change nothing here, with what they may be.
const WITHOUT_EFFECT: [(&str, &[&str]); 6] = [
    ("quality", &["auto", "standard", "low", "medium", "high", "hd"]),
    ("style", &["vivid", "natural"]),
    ("background", &["auto", "opaque"]),
    ("moderation", &["auto", "low"]),
    ("input_fidelity", &["low", "high"]),
    ("user", &[]),
];

/// Its routes.
pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/images/generations", post(generations))
        .route("/v1/images/edits", post(edits))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
}

/// A failure in OpenAI's form.
struct Refused(Failure);

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        // Fields of the request stand at the top there.
        let field = failure.field.map(|field| match field.trim_start_matches("request.") {
            "num_images" => "n".to_owned(),
            "width" | "height" => "size".to_owned(),
            field => field.to_owned(),
        });
        Self(Failure { field, ..failure })
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        Dialect::OpenAi.refuse(&self.0)
    }
}

type Answer = Result<Response, Refused>;

/// How the pictures are wanted.
#[derive(Debug, Clone)]
struct Wanted {
    format: PictureFormat,
    /// The address of the server, if pictures are to be named by address.
    urls: Option<String>,
    stream: bool,
    partial: u64,
    /// What events are called.
    kind: &'static str,
}

async fn generations(
    State(app): Shared,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    Body(body): Body,
) -> Answer {
    let fields = object(&body)?;
    let (asked, wanted) = read(fields, Vec::new(), None, &headers, client(&headers, address))?;
    answer(&app, asked, wanted).await
}

async fn edits(
    State(app): Shared,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    request: Request,
) -> Answer {
    let mut form = Form::read(request, &()).await?;
    let images = form.take_files("image");
    let masks = form.take_files("mask");
    if let Some((name, _)) = form.files.first() {
        return Err(
            Failure::field(name, format!("`{name}` is a file that is not known here; give image and mask")).into()
        );
    }
    if images.is_empty() {
        return Err(Failure::field("image", "`image` is not given; send the picture to change as a file").into());
    }
    let mask = match masks.into_iter().next() {
        Some(mask) => {
            let board = app.board.clone();
            Some(app.board.blocking(move || mask_of_alpha(&board, &mask)).await?)
        }
        None => None,
    };
    let (asked, wanted) = read(form.fields, images, mask, &headers, client(&headers, address))?;
    answer(&app, asked, wanted).await
}

/// A mask as this program has it, white where to repaint, of one that is transparent there.
fn mask_of_alpha(board: &Board, bytes: &Bytes) -> Result<Bytes, Failure> {
    let photo = board.photo(bytes, "mask")?;
    if !photo.color().has_alpha() {
        let fix = "it has no transparency; it is repainted where the mask is transparent";
        return Err(Failure::field("mask", format!("`mask` cannot be used: {fix}")));
    }
    let hole = Mask::of_hole(&photo).unwrap_or(Mask::new(
        photo.width(),
        photo.height(),
        vec![0; photo.width() * photo.height()],
    )?);
    let samples = tweedie::images::Samples::Eight(hole.values().to_vec());
    let grey = Photo::new(hole.width(), hole.height(), ColorType::Grey, samples)?;
    Ok(grey.encode_png(&[])?.into())
}

/// What a request asks for.
fn read(
    mut fields: Map<String, Value>,
    images: Vec<Bytes>,
    mask: Option<Bytes>,
    headers: &HeaderMap,
    client: String,
) -> Result<(Asked, Wanted), Failure> {
    if images.len() > 1 {
        let message = format!("`image` has {} files; this program starts from one", images.len());
        return Err(Failure::field("image", message));
    }
    for (name, values) in WITHOUT_EFFECT {
        let given: Option<String> = take(&mut fields, name, "a text")?;
        if let Some(given) = given.filter(|given| !values.is_empty() && !values.contains(&given.as_str())) {
            let fix = format!("it has no effect here; give one of {}, or leave it away", values.join(", "));
            return Err(Failure::field(name, format!("`{name}` is {given:?}; {fix}")));
        }
    }
    let urls = match take::<String>(&mut fields, "response_format", "b64_json or url")?.as_deref() {
        None | Some("b64_json") => None,
        Some("url") => Some(own_address(headers)),
        Some(other) => {
            let message = format!("`response_format` is {other:?}; give b64_json or url");
            return Err(Failure::field("response_format", message));
        }
    };
    let format = match take::<String>(&mut fields, "output_format", "png, jpeg or webp")?.as_deref() {
        None | Some("png") => PictureFormat::Png,
        Some("jpeg") => PictureFormat::Jpeg,
        Some("webp") => PictureFormat::WebP,
        Some(other) => {
            return Err(Failure::field(
                "output_format",
                format!("`output_format` is {other:?}; give png, jpeg or webp"),
            ));
        }
    };
    if urls.is_some() && format != PictureFormat::Png {
        let message =
            "`output_format` is not png, which pictures named by address are; give png, or `response_format` b64_json";
        return Err(Failure::field("output_format", message));
    }
    if let Some(compression) = take::<u64>(&mut fields, "output_compression", "a whole number")?.filter(|&c| c != 100) {
        let message = format!("`output_compression` is {compression}; only 100 is known here");
        return Err(Failure::field("output_compression", message));
    }
    let partial = take::<u64>(&mut fields, "partial_images", "a whole number")?.unwrap_or(0);
    if partial > MOST_PARTIAL {
        let message = format!("`partial_images` is {partial}; give from 0 to {MOST_PARTIAL}");
        return Err(Failure::field("partial_images", message));
    }
    let stream = take(&mut fields, "stream", "true or false")?.unwrap_or(false);
    let count: usize = take(&mut fields, "n", "a whole number")?.unwrap_or(1);
    if !(1..=MOST).contains(&count) {
        return Err(Failure::field("n", format!("`n` is {count}; give from 1 to {MOST}")));
    }
    let model: Option<String> = take(&mut fields, "model", "the name of a model")?;
    let mut request = Map::from_iter([("num_images".to_owned(), count.into())]);
    if let Some((width, height)) = size(&mut fields)? {
        request.extend([("width".to_owned(), width.into()), ("height".to_owned(), height.into())]);
    }
    let prompt: Option<String> = take(&mut fields, "prompt", "a text")?;
    let prompt = prompt.ok_or_else(|| Failure::field("prompt", "`prompt` is not given; say what to draw"))?;
    request.insert("prompt".into(), prompt.into());
    let kind = if images.is_empty() { "image_generation" } else { "image_edit" };
    for name in TextToImageRequest::keys().into_iter().chain(["strength", "inpaint"]) {
        if let Some(value) = fields.shift_remove(name) {
            request.insert(name.into(), value);
        }
    }
    nothing_else(&fields)?;
    let asked = Asked {
        kind: mask.is_some().then_some(JobKind::Inpaint),
        model,
        request,
        image: images.into_iter().next(),
        mask,
        client,
        ..Asked::default()
    };
    Ok((asked, Wanted { format, urls, stream, partial, kind }))
}

/// Width and height, if they are not left to the model.
fn size(fields: &mut Map<String, Value>) -> Result<Option<(u64, u64)>, Failure> {
    let Some(size) = take::<String>(fields, "size", "a text such as 512x512, or auto")? else { return Ok(None) };
    if size == "auto" {
        return Ok(None);
    }
    let sides = size.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    let wrong =
        || Failure::field("size", format!("`size` is {size:?}; give width and height such as 512x512, or auto"));
    sides.map(Some).ok_or_else(wrong)
}

/// What the client calls this server.
fn own_address(headers: &HeaderMap) -> String {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    format!("http://{host}")
}

async fn answer(app: &Arc<App>, asked: Asked, wanted: Wanted) -> Answer {
    let mut job = Awaited::begin(&app.board, asked).await?;
    if wanted.stream {
        return Ok(streamed(app.clone(), job, wanted));
    }
    let view = job.ended().await?;
    Awaited::check(&view)?;
    let mut data = Vec::new();
    for (index, png) in job.pictures(&view).await?.into_iter().enumerate() {
        data.push(match &wanted.urls {
            Some(server) => json!({"url": format!("{server}/api/jobs/{}/pictures/{index}", job.id())}),
            None => json!({"b64_json": base64(&encoded(&png, wanted.format)?)}),
        });
    }
    let made = view.status.pictures.first();
    let body = json!({
        "created": view.job.created as u64,
        "data": data,
        "output_format": format_name(wanted.format),
        "size": made.map(|made| format!("{}x{}", made.width, made.height)),
    });
    Ok(Json(body).into_response())
}

/// A picture of the store in another format, with its settings.
fn encoded(png: &Bytes, format: PictureFormat) -> Result<Bytes, Failure> {
    if format == PictureFormat::Png {
        return Ok(png.clone());
    }
    let path = std::path::Path::new("picture.png");
    let texts = tweedie::images::read_picture_text(png, path)?;
    Ok(Photo::decode(png, path)?.encode(format, &texts)?.into())
}

fn format_name(format: PictureFormat) -> &'static str {
    match format {
        PictureFormat::Png => "png",
        PictureFormat::Jpeg => "jpeg",
        PictureFormat::WebP => "webp",
    }
}

/// Partial images while they are made, then the pictures, as server-sent events.
fn streamed(app: Arc<App>, job: Awaited, wanted: Wanted) -> Response {
    let first = Streaming { app, job, wanted, since: 0, previews: 0, sent: 0, ready: VecDeque::new(), is_over: false };
    let events = stream::unfold(first, |mut streaming| async move {
        let event = streaming.next().await?;
        Some((Ok::<_, Infallible>(event), streaming))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// A client who watches its pictures come.
struct Streaming {
    app: Arc<App>,
    job: Awaited,
    wanted: Wanted,
    since: u64,
    /// The newest preview that was sent.
    previews: u64,
    /// Partial images that were sent.
    sent: u64,
    ready: VecDeque<Event>,
    is_over: bool,
}

impl Streaming {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() && !self.is_over {
            if let Err(failure) = self.look().await {
                self.is_over = true;
                let error = json!({"message": failure.message, "type": "server_error", "param": failure.field, "code": failure.code});
                self.ready.push_back(event("error", &json!({"type": "error", "error": error})));
            }
        }
        self.ready.pop_front()
    }

    async fn look(&mut self) -> Result<(), Failure> {
        let view = self.job.changed(self.since).await?;
        Awaited::check(&view)?;
        self.since = view.status.sequence;
        let preview = view.status.preview.unwrap_or(0);
        if preview > self.previews && self.sent < self.wanted.partial {
            self.previews = preview;
            if let Some(png) = self.app.board.store.get(&of_job(self.job.id(), "preview.png")).await? {
                let kind = format!("{}.partial_image", self.wanted.kind);
                let body = self.body(&kind, &png, &view, Some(self.sent))?;
                self.ready.push_back(event(&kind, &body));
                self.sent += 1;
            }
        }
        if view.status.state == JobState::Done {
            self.is_over = true;
            let kind = format!("{}.completed", self.wanted.kind);
            for png in self.job.pictures(&view).await? {
                let body = self.body(&kind, &png, &view, None)?;
                self.ready.push_back(event(&kind, &body));
            }
        }
        Ok(())
    }

    fn body(&self, kind: &str, png: &Bytes, view: &JobView, index: Option<u64>) -> Result<Value, Failure> {
        let mut body = json!({
            "type": kind,
            "b64_json": base64(&encoded(png, self.wanted.format)?),
            "created_at": view.job.created as u64,
            "output_format": format_name(self.wanted.format),
            "background": "opaque",
            "quality": "auto",
            "size": view.status.pictures.first().map(|made| format!("{}x{}", made.width, made.height)),
        });
        if let (Some(index), Value::Object(body)) = (index, &mut body) {
            body.insert("partial_image_index".into(), index.into());
        }
        Ok(body)
    }
}

fn event(kind: &str, body: &Value) -> Event {
    Event::default().event(kind).data(body.to_string())
}

async fn models(State(app): Shared) -> Answer {
    let models: Vec<_> = app.board.shelf.names().map(described).collect();
    Ok(Json(json!({"object": "list", "data": models})).into_response())
}

async fn model(State(app): Shared, InPath(id): InPath<String>) -> Answer {
    let name = app.board.shelf.check(&id).map_err(|failure| Failure { code: FailureCode::Missing, ..failure })?;
    Ok(Json(described(name)).into_response())
}

fn described(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "tweedie"})
}
