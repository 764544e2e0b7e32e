//! The board of jobs: how they come in, are watched, and end before their time.

use super::failure::{Failure, FailureCode};
use super::job::{Job, JobKind, JobView, OwnedRequest, State, Status, now};
use super::limits::Limits;
use super::queue::{Queue, Ticket};
use super::running::Running;
use super::shelf::Shelf;
use super::store::{Store, is_id};
use crate::latent_diffusion::LatentDiffusion;
use crate::requests::kind::OptionKind;
use crate::requests::lora::LoraRequest;
use crate::settings::Settings;
use bytes::Bytes;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tweedie::files::bytes_sha256;
use tweedie::images::{Margins, Mask, Photo};

/// How often a state is read that another process may have written.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Steps of priority between the jobs of one client, so that a client with one job is not behind another's hundredth.
const FAIR_STEPS: i32 = 1000;
/// The largest priority that a client can ask for, and the smallest with a minus.
const MOST_PRIORITY: i32 = 100;
/// Requests whose pictures are unpacked at a time.
const HANDS: usize = 2;
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

/// Goes on with work when whoever waits for it does not, as when a client hangs up.
///
/// # Errors
/// Those of the work.
pub async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    tokio::spawn(work).await.unwrap_or_else(|_| Err(Failure::fault()))
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
    /// So many at a time do what takes long.
    hands: Semaphore,
    /// Who asked for the jobs that wait, as far as they came by this process.
    clients: Mutex<HashMap<String, String>>,
}

impl Board {
    /// Over a store and a queue.
    pub fn new(store: Store, queue: Queue, shelf: Arc<Shelf>, limits: Limits, log: fn(&str)) -> Self {
        Self {
            store,
            queue,
            shelf,
            running: Running::default(),
            limits,
            log,
            hands: Semaphore::new(HANDS),
            clients: Mutex::default(),
        }
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
    /// A job is admitted whole or not at all if this is done [to its end](to_its_end).
    ///
    /// # Errors
    /// If it cannot be carried out, or too much waits already.
    pub async fn admit(self: &Arc<Self>, asked: Asked) -> Result<(JobView, bool), Failure> {
        let key = asked.key.as_deref().map(|key| key_name(&asked.client, key)).transpose()?;
        let mut id = match &key {
            Some(key) => self.id_of_key(key).await?,
            None => None,
        };
        if let Some(id) = &id {
            match self.view(id).await {
                Err(failure) if failure.code == FailureCode::Missing => {}
                view => return Ok((view?, false)),
            }
        }
        self.check_room().await?;
        let checked = self.clone();
        // Pictures are unpacked, and perhaps resized.
        let checking = self.blocking(move || checked.check(&asked).map(|job| (job, asked)));
        let (mut job, asked) = checking.await?;
        // The key is there first: of two requests with it, and of one that a kill cut short and its repeat, there comes one job.
        if let Some(key) = key.as_ref().filter(|_| id.is_none())
            && !self.store.put_new(key, job.id.clone()).await?
        {
            id = self.id_of_key(key).await?;
        }
        (job.id, job.key) = (id.unwrap_or(job.id), key);
        if !self.store.add(&job, asked.image, asked.mask).await? {
            return Ok((self.view(&job.id).await?, false));
        }
        let waiting = self.waiting().await?;
        let behind = self.count_of_client(&job.client, &waiting);
        let priority = job.priority * FAIR_STEPS - behind.min(FAIR_STEPS - 1);
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(job.id.clone(), job.client.clone());
        if let Err(error) = self.queue.push(&Ticket { job: job.id.clone() }, priority).await {
            self.store.delete(&job.id).await?;
            return Err(error.into());
        }
        let position = Some(waiting.len() + self.running.count());
        Ok((JobView { job, status: Status::default(), position }, true))
    }

    /// The name of the job that a key stands for.
    async fn id_of_key(&self, key: &str) -> Result<Option<String>, Failure> {
        Ok(self.store.get(key).await?.map(|id| String::from_utf8_lossy(&id).into_owned()))
    }

    /// That no more jobs wait than the server takes.
    ///
    /// # Errors
    /// If they do.
    pub async fn check_room(&self) -> Result<(), Failure> {
        let waiting = self.queue.count().await?;
        if waiting < self.limits.waiting {
            return Ok(());
        }
        let message = format!("{waiting} jobs wait already; try again later");
        Err(Failure { retry_after: Some(5), ..Failure::new(FailureCode::Busy, message) })
    }

    /// Does what takes long away from the tasks that answer clients, for few of them at a time.
    ///
    /// # Errors
    /// Those of the work.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let _permit = self.hands.acquire().await.map_err(|_| Failure::fault())?;
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Failure::fault()))
    }

    /// A job of what is asked for.
    fn check(&self, asked: &Asked) -> Result<Job, Failure> {
        if !(-MOST_PRIORITY..=MOST_PRIORITY).contains(&asked.priority) {
            let message = format!("`priority` is {}; give from -{MOST_PRIORITY} to {MOST_PRIORITY}", asked.priority);
            return Err(Failure::field("priority", message));
        }
        let length = Value::from(asked.request.clone()).to_string().len();
        if length > self.limits.text {
            let message = format!("`request` has {length} bytes; give {} at most", self.limits.text);
            return Err(Failure { code: FailureCode::TooLarge, ..Failure::field("request", message) });
        }
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
        match self.shelf.loaded(&model) {
            Some(model) => self.settle(&model, &request).map(drop)?,
            None => self.check_limits(&request)?,
        }
        let sum = |bytes: &Option<Bytes>| bytes.as_ref().map(|bytes| bytes_sha256(bytes));
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
            key: None,
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

    /// What a model makes of a request, within the server's bounds.
    ///
    /// # Errors
    /// If it cannot be carried out, or is larger than the server makes.
    pub fn settle(&self, model: &LatentDiffusion, request: &OwnedRequest) -> Result<Settings, Failure> {
        self.check_limits(request)?;
        let settings = model.settle(request.as_request()).map_err(|error| Failure::from(error).within("request"))?;
        let times = match request {
            OwnedRequest::Inpaint(request) => request.inpaint.resample.unwrap_or(1),
            _ => 1,
        };
        self.check_count("steps", settings.steps.saturating_mul(times), self.limits.steps)?;
        self.check_pixels((settings.width, settings.height))?;
        self.check_pixels(settings.picture_size())?;
        Ok(settings)
    }

    fn check_limits(&self, request: &OwnedRequest) -> Result<(), Failure> {
        let text = request.text();
        let Limits { steps, images, batch, loras, .. } = self.limits;
        let lists = [text.timesteps.as_ref(), text.sigmas.as_ref()].into_iter().flatten().map(Vec::len);
        self.check_count("steps", lists.chain(text.steps).max().unwrap_or(0), steps)?;
        self.check_count("num_images", text.num_images, images)?;
        self.check_count("batch_size", text.batch_size, batch)?;
        self.check_count("loras", text.loras.len(), loras)?;
        let check = |lora: &LoraRequest| self.shelf.lora(&lora.name.to_string_lossy()).map(drop);
        text.loras.iter().try_for_each(check).map_err(|failure| failure.within("request"))?;
        self.check_pixels(asked_size(request))
    }

    fn check_count(&self, name: &str, value: usize, most: usize) -> Result<(), Failure> {
        if value <= most {
            return Ok(());
        }
        let message = format!("`{name}` is {value}; this server takes {most} at most");
        Err(Failure::field(name, message).within("request"))
    }

    fn check_pixels(&self, (width, height): (usize, usize)) -> Result<(), Failure> {
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
        let job = self.store.job(id).await?;
        let status = self.store.status(id).await?;
        let waiting = if status.state == State::Queued { self.waiting().await? } else { Vec::new() };
        Ok(self.view_of(job, status, &waiting))
    }

    fn view_of(&self, job: Job, status: Status, waiting: &[Ticket]) -> JobView {
        let place = waiting.iter().position(|ticket| ticket.job == job.id).filter(|_| status.state == State::Queued);
        let position = place.map(|place| place + self.running.count());
        JobView { job, status, position }
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
            if let (Ok(job), Ok(status)) = (self.store.job(&id).await, self.store.status(&id).await) {
                views.push(self.view_of(job, status, &waiting));
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

    /// Removes a job that has ended, with its pictures, or one whose files are damaged.
    ///
    /// # Errors
    /// If there is no such job, or it has not ended.
    pub async fn delete(&self, id: &str) -> Result<(), Failure> {
        match self.view(id).await {
            Ok(view) if !view.status.state.is_final() => {
                let message = format!("the job {id} has not ended; cancel it first");
                return Err(Failure::new(FailureCode::Conflict, message));
            }
            Ok(view) => {
                if let Some(key) = view.job.key {
                    self.store.remove(&key).await?;
                }
            }
            Err(failure) if failure.code == FailureCode::Internal => {}
            Err(failure) => return Err(failure),
        }
        self.store.delete(id).await
    }

    /// Lets jobs wait again that have not ended and are not in the queue: a server that was killed took them and did not bring them
    /// there, or their end could not be written. Jobs that come meanwhile are on their way there.
    ///
    /// # Errors
    /// If the store or the queue cannot be used.
    pub async fn take_up(&self) -> Result<(), Failure> {
        let first_new = new_id();
        for id in self.store.ids().await?.into_iter().filter(|id| *id < first_new) {
            let (Ok(job), Ok(status)) = (self.store.job(&id).await, self.store.status(&id).await) else { continue };
            if !status.state.is_final() && !self.queue.has(&id).await? {
                self.queue.push(&Ticket { job: id }, job.priority * FAIR_STEPS).await?;
            }
        }
        Ok(())
    }
}

/// The size of the pictures that are asked for, before a model is asked; 1 where it is left to the model.
fn asked_size(request: &OwnedRequest) -> (usize, usize) {
    let (photo, margins) = match request {
        OwnedRequest::Text(_) => (None, Margins::default()),
        OwnedRequest::Image(request) => (Some(&request.image), Margins::default()),
        OwnedRequest::Inpaint(request) => (Some(&request.image), request.inpaint.outpaint),
    };
    let side = |of: usize, before: usize, after: usize| of.saturating_add(before).saturating_add(after);
    let whole = photo.map(|photo| {
        (side(photo.width(), margins.left, margins.right), side(photo.height(), margins.top, margins.bottom))
    });
    let other = |side: usize, of: usize, to: usize| (side as f64 * to as f64 / of.max(1) as f64) as usize;
    match (request.text().width, request.text().height, whole) {
        (Some(width), Some(height), _) => (width, height),
        (Some(width), None, Some(whole)) => (width, other(width, whole.0, whole.1)),
        (None, Some(height), Some(whole)) => (other(height, whole.1, whole.0), height),
        (None, None, Some(whole)) => whole,
        (width, height, None) => (width.unwrap_or(1), height.unwrap_or(1)),
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
    Ok(format!("keys/{}", bytes_sha256(format!("{client}\n{key}").as_bytes())))
}

/// A name that no other job has; names sort by the millisecond in which they were made.
fn new_id() -> String {
    let id = ulid::Ulid::generate().to_string();
    debug_assert!(is_id(&id));
    id
}
