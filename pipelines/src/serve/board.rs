//! The board of jobs: how they come in, are watched, and end before their time.

use super::failure::{Failure, FailureCode};
use super::job::{Job, JobKind, JobView, OwnedRequest, State, Status, now};
use super::limits::Limits;
use super::queue::{Queue, Ticket};
use super::running::Running;
use super::shelf::Shelf;
use super::store::{Store, is_id, sum_of};
use crate::requests::kind::OptionKind;
use bytes::Bytes;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tweedie::images::{Mask, Photo};

/// How often a state is read that another process may have written.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Steps of priority between the jobs of one client, so that a client with one job is not behind another's hundredth.
const FAIR_STEPS: i32 = 1000;
/// The largest priority that a client can ask for, and the smallest with a minus.
const MOST_PRIORITY: i32 = 100;
/// The longest key of a client.
const LONGEST_KEY: usize = 256;

/// What a client asks for, as it comes.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// What pictures are made from; nothing where it follows from the pictures that are given.
    pub kind: Option<JobKind>,
    /// The model's name, if not the first one.
    pub model: Option<String>,
    /// The options of the request.
    pub request: Map<String, Value>,
    /// The bytes of a picture.
    pub image: Option<Bytes>,
    /// The bytes of a mask, white where to repaint.
    pub mask: Option<Bytes>,
    /// Higher ones go first.
    pub priority: i32,
    /// Who asks.
    pub client: String,
    /// What makes a repeat of the same request the same job.
    pub key: Option<String>,
}

/// Jobs of a server; all of its tasks share one.
#[derive(Debug)]
pub struct Board {
    /// Where jobs lie.
    pub store: Store,
    /// Where they wait.
    pub queue: Queue,
    /// The models that can be asked for.
    pub shelf: Arc<Shelf>,
    /// What this process works on.
    pub running: Running,
    limits: Limits,
    /// Where the operator is told of what nobody else is.
    log: fn(&str),
    /// Who asked for the jobs that wait, as far as they came by this process.
    clients: Mutex<HashMap<String, String>>,
}

impl Board {
    /// Over a store and a queue.
    pub fn new(store: Store, queue: Queue, shelf: Arc<Shelf>, limits: Limits, log: fn(&str)) -> Self {
        Self { store, queue, shelf, running: Running::default(), limits, log, clients: Mutex::default() }
    }

    /// Tells the operator of a fault that concerns a job.
    pub fn log(&self, id: &str, failure: &Failure) {
        (self.log)(&format!("job {id}: {failure}"));
    }

    /// The bounds of requests.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The jobs that wait, in their order.
    ///
    /// # Errors
    /// If the queue cannot be used.
    pub async fn waiting(&self) -> Result<Vec<Ticket>, Failure> {
        Ok(self.queue.waiting().await?)
    }

    /// Checks what is asked for as far as that can be told before it is worked on, fixes its seed, and lets it wait. Whether it is new:
    /// the same key gives the same job again.
    ///
    /// # Errors
    /// If it cannot be carried out, or too much waits already.
    pub async fn admit(&self, asked: Asked) -> Result<(JobView, bool), Failure> {
        let key = asked.key.as_deref().map(|key| key_name(&asked.client, key)).transpose()?;
        let mut id = match &key {
            Some(key) => self.store.get(key).await?.map(|id| String::from_utf8_lossy(&id).into_owned()),
            None => None,
        };
        if let Some(id) = &id
            && let Ok(view) = self.view(id).await
        {
            return Ok((view, false));
        }
        if asked.priority.abs() > MOST_PRIORITY {
            let message = format!("`priority` is {}; give from -{MOST_PRIORITY} to {MOST_PRIORITY}", asked.priority);
            return Err(Failure::field("priority", message));
        }
        let waiting = self.waiting().await?;
        if waiting.len() >= self.limits.waiting {
            let message = format!("{} jobs wait already; try again later", waiting.len());
            return Err(Failure { retry_after: Some(5), ..Failure::new(FailureCode::Busy, message) });
        }
        let mut job = self.check(&asked)?;
        // The key is there first: of two requests with it, and of one that a kill cut short and its repeat, there comes one job.
        if let Some(key) = key.filter(|_| id.is_none())
            && !self.store.put_new(&key, job.id.clone()).await?
        {
            id = self.store.get(&key).await?.map(|id| String::from_utf8_lossy(&id).into_owned());
        }
        job.id = id.unwrap_or(job.id);
        self.store.add(&job, asked.image, asked.mask).await?;
        let behind = self.count_of_client(&job.client, &waiting);
        let priority = job.priority * FAIR_STEPS - behind.min(FAIR_STEPS - 1);
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(job.id.clone(), job.client.clone());
        self.queue.push(&Ticket { job: job.id.clone() }, priority).await?;
        let position = waiting.len();
        Ok((JobView { job, status: Status::default(), position: Some(position) }, true))
    }

    /// A job of what is asked for.
    fn check(&self, asked: &Asked) -> Result<Job, Failure> {
        let model = match &asked.model {
            Some(name) => self.shelf.check(name)?.to_owned(),
            None => self.shelf.default_name().to_owned(),
        };
        let kind = asked.kind.unwrap_or(match (&asked.image, &asked.mask) {
            (None, None) => JobKind::Txt2img,
            (_, Some(_)) => JobKind::Inpaint,
            (Some(_), None) if asked.request.contains_key("inpaint") => JobKind::Inpaint,
            (Some(_), None) => JobKind::Img2img,
        });
        let mut fields = asked.request.clone();
        fix_seed(&mut fields);
        let image = asked.image.as_ref().map(|bytes| self.photo(bytes, "image")).transpose()?;
        let mask = asked.mask.as_ref().map(|bytes| self.photo(bytes, "mask")).transpose()?;
        let request = OwnedRequest::read(kind, &fields, image, mask.as_ref().map(Mask::from_photo))?;
        self.check_limits(&request)?;
        if let Some(model) = self.shelf.loaded(&model) {
            let settings =
                model.settle(request.as_request()).map_err(|error| Failure::from(error).within("request"))?;
            self.check_pixels(settings.width, settings.height)?;
        }
        let sum = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| sum_of(bytes));
        Ok(Job {
            id: new_id(),
            created: now(),
            client: asked.client.clone(),
            kind,
            model,
            priority: asked.priority,
            request: request.fields().into_iter().chain([("seed".into(), request.text().seed.into())]).collect(),
            image: sum(&asked.image),
            mask: sum(&asked.mask),
        })
    }

    /// A picture that a client gives, of a size that the server takes.
    ///
    /// # Errors
    /// If it is too large, or no picture.
    pub fn photo(&self, bytes: &Bytes, field: &str) -> Result<Photo, Failure> {
        let wrong = |message: String| Failure::field(field, format!("`{field}` cannot be used: {message}"));
        // The size is looked at before anything is unpacked.
        let size = Photo::size(bytes, Path::new(field)).map_err(|error| wrong(error.to_string()))?;
        if size.0.saturating_mul(size.1) > self.limits.pixels {
            let most = self.limits.pixels;
            return Err(wrong(format!("it is {}x{}; give a picture of {most} pixels at most", size.0, size.1)));
        }
        Photo::decode(bytes, Path::new(field)).map_err(|error| wrong(error.to_string()))
    }

    fn check_limits(&self, request: &OwnedRequest) -> Result<(), Failure> {
        let text = request.text();
        let Limits { steps, images, batch, .. } = self.limits;
        let counts = [
            ("steps", text.steps.unwrap_or(1), steps),
            ("num_images", text.num_images, images),
            ("batch_size", text.batch_size, batch),
        ];
        for (name, value, most) in counts {
            if value > most {
                let message = format!("`{name}` is {value}; this server takes {most} at most");
                return Err(Failure::field(name, message).within("request"));
            }
        }
        text.loras.iter().try_for_each(|lora| self.shelf.lora(&lora.name.to_string_lossy()).map(drop))?;
        match (text.width, text.height) {
            (None, None) => Ok(()),
            (width, height) => self.check_pixels(width.unwrap_or(1), height.unwrap_or(1)),
        }
    }

    /// That a picture is no larger than the server makes.
    ///
    /// # Errors
    /// If it is.
    pub fn check_pixels(&self, width: usize, height: usize) -> Result<(), Failure> {
        let most = self.limits.pixels;
        if width.saturating_mul(height) <= most {
            return Ok(());
        }
        let message = format!("`width` and `height` are {width}x{height}; this server makes {most} pixels at most");
        Err(Failure::field("width", message).within("request"))
    }

    /// How many of a client's jobs wait.
    fn count_of_client(&self, client: &str, waiting: &[Ticket]) -> i32 {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|id, _| waiting.iter().any(|ticket| ticket.job == *id));
        clients.values().filter(|other| *other == client).count() as i32
    }

    /// A job as clients see it.
    ///
    /// # Errors
    /// If there is no such job.
    pub async fn view(&self, id: &str) -> Result<JobView, Failure> {
        let waiting = self.waiting().await?;
        self.view_among(id, &waiting).await
    }

    async fn view_among(&self, id: &str, waiting: &[Ticket]) -> Result<JobView, Failure> {
        let job = self.store.job(id).await?;
        let status = self.store.status(id).await?;
        let position = waiting.iter().position(|ticket| ticket.job == id).filter(|_| status.state == State::Queued);
        Ok(JobView { job, status, position })
    }

    /// Jobs from the newest on, or from the one before `before`, and where the next page starts.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn list(&self, before: Option<&str>, limit: usize) -> Result<(Vec<JobView>, Option<String>), Failure> {
        let ids = self.store.ids().await?;
        let mut ids = ids.into_iter().filter(|id| before.is_none_or(|before| id.as_str() < before));
        let waiting = self.waiting().await?;
        let mut views = Vec::new();
        for id in ids.by_ref() {
            // One that is being deleted is none.
            if let Ok(view) = self.view_among(&id, &waiting).await {
                views.push(view);
            }
            if views.len() == limit {
                break;
            }
        }
        let next = ids.next().and_then(|_| views.last().map(|view| view.job.id.clone()));
        Ok((views, next))
    }

    /// A job once it has changed since a sequence number, which 0 is before.
    ///
    /// # Errors
    /// If there is no such job.
    pub async fn changed(&self, id: &str, since: u64) -> Result<JobView, Failure> {
        loop {
            let told = self.running.told(id);
            let view = self.view(id).await?;
            if view.status.sequence > since {
                return Ok(view);
            }
            // This process tells at once, another is looked at.
            let _ = tokio::time::timeout(LOOK_EVERY, told).await;
        }
    }

    /// Ends a job: at once if it waits, within a step if it is worked on.
    ///
    /// # Errors
    /// If there is no such job, or it has ended.
    pub async fn cancel(&self, id: &str) -> Result<JobView, Failure> {
        let view = self.view(id).await?;
        if view.status.state.is_final() {
            return Err(Failure::new(FailureCode::Conflict, format!("the job {id} has ended already")));
        }
        if self.queue.remove(id).await? {
            let status = Status { sequence: view.status.sequence + 1, state: State::Cancelled, ..view.status };
            self.store.set_status(id, &status).await?;
            self.running.tell(id);
        } else {
            self.store.ask_cancel(id).await?;
            self.running.cancel(id);
        }
        self.view(id).await
    }

    /// Removes a job that has ended, with its pictures.
    ///
    /// # Errors
    /// If there is no such job, or it has not ended.
    pub async fn delete(&self, id: &str) -> Result<(), Failure> {
        let view = self.view(id).await?;
        if !view.status.state.is_final() {
            let fix = "cancel it first";
            return Err(Failure::new(FailureCode::Conflict, format!("the job {id} has not ended; {fix}")));
        }
        self.store.delete(id).await
    }

    /// Lets jobs wait again that a server took and did not bring into the queue before it was killed.
    ///
    /// # Errors
    /// If the store or the queue cannot be used.
    pub async fn take_up(&self) -> Result<usize, Failure> {
        let waiting = self.waiting().await?;
        let mut taken_up = 0;
        for id in self.store.ids().await? {
            let (Ok(job), Ok(status)) = (self.store.job(&id).await, self.store.status(&id).await) else { continue };
            if status.state == State::Queued && !waiting.iter().any(|ticket| ticket.job == id) {
                self.queue.push(&Ticket { job: id }, job.priority * FAIR_STEPS).await?;
                taken_up += 1;
            }
        }
        Ok(taken_up)
    }
}

/// A seed, drawn now where none is given, so that the job makes the same pictures whenever it is worked on.
fn fix_seed(fields: &mut Map<String, Value>) {
    let drawn = match fields.get("seed") {
        None | Some(Value::Null) => true,
        Some(seed) => seed.as_i64() == Some(-1) || seed == "random",
    };
    if drawn && let Ok(seed) = OptionKind::Seed.parse("random") {
        fields.insert("seed".into(), seed);
    }
}

/// Where the job of a client's key is named.
fn key_name(client: &str, key: &str) -> Result<String, Failure> {
    if key.is_empty() || key.len() > LONGEST_KEY {
        let message = format!("the header Idempotency-Key has {} bytes; give 1 to {LONGEST_KEY}", key.len());
        return Err(Failure::new(FailureCode::Invalid, message));
    }
    Ok(format!("keys/{}", sum_of(format!("{client}\n{key}").as_bytes())))
}

/// A name that no other job has, and that sorts after those before.
fn new_id() -> String {
    let id = ulid::Ulid::generate().to_string();
    debug_assert!(is_id(&id));
    id
}
