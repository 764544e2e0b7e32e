//! A job: what was asked for, how it goes, and the files that say so.
//!
//! All of a job lies in the store, below `jobs/ID/`: `job.json`, which never changes; `state.json`, written anew at each change;
//! the pictures, `0.png` and so on; `preview.png`; `image` and `mask`, what it is made from; `cancel`, once somebody asked for that; and an `attempt-N` for every time that
//! it was begun. The queue has nothing but its name.

use super::failure::Failure;
use crate::requests::image_to_image::ImageToImageRequest;
use crate::requests::inpaint::InpaintRequest;
use crate::requests::options::{Options, WrongOption};
use crate::requests::request::Request;
use crate::requests::text_to_image::TextToImageRequest;
use crate::task::TaskKind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::time::{SystemTime, UNIX_EPOCH};
use tweedie::images::{Mask, Photo};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name, by which jobs sort in the order in which they came.
    pub id: String,
    /// When it came, in seconds since 1970.
    pub created: f64,
    /// Who asked, as far as a server can tell.
    pub client: String,
    /// The command that makes such pictures.
    pub kind: JobKind,
    /// The model's name in the server's list.
    pub model: String,
    /// Higher ones go first.
    pub priority: i32,
    /// The options of the request. The seed is among them, so a job that is begun again makes the same pictures.
    pub request: Map<String, Value>,
    /// The SHA-256 of the picture that it is made from, which is the job's file `image`.
    pub image: Option<String>,
    /// The SHA-256 of its mask, which is the job's file `mask`.
    pub mask: Option<String>,
    /// The file that names this job by the key of its client.
    #[serde(default)]
    pub key: Option<String>,
}

/// What a job makes pictures from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    /// A text.
    Txt2img,
    /// A text and a picture.
    Img2img,
    /// A text, and a picture with a part to paint anew.
    Inpaint,
}

impl JobKind {
    /// The task of a model.
    pub fn task(self) -> TaskKind {
        match self {
            Self::Txt2img => TaskKind::TextToImage,
            Self::Img2img => TaskKind::ImageToImage,
            Self::Inpaint => TaskKind::Inpaint,
        }
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits.
    Queued,
    /// It is worked on.
    Running,
    /// All its pictures are there.
    Done,
    /// It has an error.
    Failed,
    /// Somebody asked for its end.
    Cancelled,
}

impl State {
    /// Whether nothing will change any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps of the present batch that are done.
    pub step: usize,
    /// Steps of each batch.
    pub steps: usize,
    /// Pictures that are done.
    pub picture: usize,
    /// All pictures.
    pub pictures: usize,
    /// Seconds since the run began.
    pub elapsed: f64,
    /// Seconds that are left, as far as can be told.
    pub eta: Option<f64>,
}

/// A picture that is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The seed that makes it alone.
    pub seed: u64,
    /// Its width in pixels.
    pub width: usize,
    /// Its height in pixels.
    pub height: usize,
}

/// All of a job that changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Grows with each change.
    pub sequence: u64,
    /// How far the job is.
    pub state: State,
    /// How often it was begun.
    pub attempt: u32,
    /// How far the run is.
    pub progress: Option<Progress>,
    /// The number of the newest preview, from 1.
    pub preview: Option<u64>,
    /// The pictures that are done.
    pub pictures: Vec<Made>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Why there are no pictures, or not all.
    pub error: Option<Failure>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            sequence: 1,
            state: State::Queued,
            attempt: 0,
            progress: None,
            preview: None,
            pictures: Vec::new(),
            warnings: Vec::new(),
            error: None,
        }
    }
}

/// A job as clients see it.
#[derive(Debug, Clone)]
pub struct JobView {
    /// What was asked for.
    pub job: Job,
    /// How far it is.
    pub status: Status,
    /// How many jobs are before it, those that this process works on among them, while it waits.
    pub position: Option<usize>,
}

impl JobView {
    /// As JSON.
    pub fn json(&self) -> Value {
        let Self { job, status, position } = self;
        let at = |name: &str| format!("/api/jobs/{}/{name}", job.id);
        let pictures = status.pictures.iter().enumerate().map(|(i, made)| {
            json!({"url": at(&format!("pictures/{i}")), "seed": made.seed, "width": made.width, "height": made.height})
        });
        json!({
            "id": job.id,
            "state": status.state,
            "created": job.created,
            "kind": job.kind,
            "model": job.model,
            "priority": job.priority,
            "request": job.request,
            "position": position,
            "attempt": status.attempt,
            "progress": status.progress,
            "preview": status.preview.map(|number| at(&format!("preview?{number}"))),
            "pictures": pictures.collect::<Vec<_>>(),
            "image": job.image.as_ref().map(|_| at("image")),
            "mask": job.mask.as_ref().map(|_| at("mask")),
            "warnings": status.warnings,
            "error": status.error.as_ref().map(|failure| failure.json()["error"].clone()),
            "sequence": status.sequence,
        })
    }
}

/// A request of any task with the pictures that it owns.
#[derive(Debug, Clone)]
pub enum OwnedRequest {
    /// From a text.
    Text(TextToImageRequest),
    /// From a text and a picture.
    Image(ImageToImageRequest),
    /// A part of a picture.
    Inpaint(InpaintRequest),
}

impl OwnedRequest {
    /// Reads the options of a request of that kind.
    ///
    /// # Errors
    /// If an option is of another type, or there is none of that name; or a picture is missing.
    pub fn read(
        kind: JobKind,
        fields: &Map<String, Value>,
        image: Option<Photo>,
        mask: Option<Mask>,
    ) -> Result<Self, Failure> {
        let text = TextToImageRequest::default();
        let read = |request: &mut dyn OptionsOf| -> Result<(), Failure> {
            request.read_all(fields.clone()).map_err(|wrong| Failure::from(wrong).within("request"))
        };
        let missing =
            || Failure::field("image", format!("`image` is not given; {} starts from one", kind.task().name()));
        match kind {
            JobKind::Txt2img if image.is_some() || mask.is_some() => Err(Failure::field(
                "kind",
                "`kind` is txt2img and a picture is given; take img2img or inpaint, or leave it away",
            )),
            JobKind::Txt2img => {
                let mut request = text;
                read(&mut request)?;
                Ok(Self::Text(request))
            }
            JobKind::Img2img if mask.is_some() => Err(Failure::field(
                "kind",
                "`kind` is img2img and a mask is given; take inpaint, or leave the mask away",
            )),
            JobKind::Img2img => {
                let mut request = ImageToImageRequest::of(image.ok_or_else(missing)?, text);
                read(&mut request)?;
                Ok(Self::Image(request))
            }
            JobKind::Inpaint => {
                let mut request = InpaintRequest::of(image.ok_or_else(missing)?, mask, text);
                read(&mut request)?;
                Ok(Self::Inpaint(request))
            }
        }
    }

    /// What all tasks share.
    pub fn text(&self) -> &TextToImageRequest {
        match self {
            Self::Text(request) => request,
            Self::Image(request) => &request.text,
            Self::Inpaint(request) => &request.text,
        }
    }

    /// The same, to change.
    pub fn text_mut(&mut self) -> &mut TextToImageRequest {
        match self {
            Self::Text(request) => request,
            Self::Image(request) => &mut request.text,
            Self::Inpaint(request) => &mut request.text,
        }
    }

    /// Its options that are not at their defaults.
    pub fn fields(&self) -> Map<String, Value> {
        match self {
            Self::Text(request) => request.write(),
            Self::Image(request) => request.write(),
            Self::Inpaint(request) => request.write(),
        }
    }

    /// As models take it.
    pub fn as_request(&self) -> Request<'_> {
        match self {
            Self::Text(request) => request.into(),
            Self::Image(request) => request.into(),
            Self::Inpaint(request) => request.into(),
        }
    }
}

/// [`Options::read`] of any structure of them.
trait OptionsOf {
    fn read_all(&mut self, fields: Map<String, Value>) -> Result<(), WrongOption>;
}

impl<T: Options> OptionsOf for T {
    fn read_all(&mut self, fields: Map<String, Value>) -> Result<(), WrongOption> {
        self.read(fields)
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
