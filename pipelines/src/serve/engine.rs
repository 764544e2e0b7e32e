//! The thread that computes: one job after the other, away from the tasks that answer clients.

use super::board::Board;
use super::failure::{Failure, FailureCode};
use super::job::{Job, Made, OwnedRequest, Progress, State, Status};
use super::store::{of_job, picture_name};
use crate::event::Event;
use crate::latent_diffusion::LatentDiffusion;
use crate::previews::LatentColours;
use crate::records::record::{Input, Record};
use crate::settings::Settings;
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tweedie::images::{Mask, Photo, encode_png};
use tweedie::{Error, Tensor};

/// The shortest time between two states that are written on the way.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// The shortest time between two previews.
const PREVIEW_EVERY: Duration = Duration::from_millis(500);

/// How often the last state is tried to be written.
const LAST_TRIES: usize = 10;
/// The time between two tries.
const PAUSE: Duration = Duration::from_secs(1);

/// A job with all that it needs.
pub struct Order {
    /// What was asked for.
    pub job: Job,
    /// How far it is.
    pub status: Status,
    /// The bytes of the picture that it is made from.
    pub image: Option<Bytes>,
    /// The bytes of its mask.
    pub mask: Option<Bytes>,
    /// Whether somebody asked for its end.
    pub cancel: Arc<AtomicBool>,
}

/// How an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its state is final and written.
    Final,
    /// The process is to stop: it waits again.
    HandedBack,
}

/// The way to the thread that computes.
#[derive(Debug, Clone)]
pub struct Engine {
    orders: mpsc::Sender<(Order, oneshot::Sender<Ending>)>,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has none.
    pub fn start(board: Arc<Board>, runtime: Handle) -> std::io::Result<Self> {
        let (orders, incoming) = mpsc::channel::<(Order, oneshot::Sender<Ending>)>();
        let mut bench = Workbench { board, runtime, colours: HashMap::new() };
        std::thread::Builder::new().name("engine".into()).spawn(move || {
            bench.warm_up();
            for (order, done) in incoming {
                // Whoever asked may be gone.
                let _ = done.send(bench.carry_out(order));
            }
        })?;
        Ok(Self { orders })
    }

    /// Carries out an order, after those before it.
    pub async fn carry_out(&self, order: Order) -> Ending {
        let (done, ending) = oneshot::channel();
        if self.orders.send((order, done)).is_err() {
            return Ending::HandedBack;
        }
        ending.await.unwrap_or(Ending::HandedBack)
    }
}

/// What the thread has at hand.
struct Workbench {
    board: Arc<Board>,
    runtime: Handle,
    /// What each model's latents look like, once it has made a picture.
    colours: HashMap<String, LatentColours>,
}

impl Workbench {
    /// Loads the model that most will ask for before anybody does.
    fn warm_up(&self) {
        let shelf = &self.board.shelf;
        if let Err(failure) = shelf.get(shelf.default_name()) {
            self.board.log("-", &failure);
        }
    }

    fn carry_out(&mut self, order: Order) -> Ending {
        let Order { job, status, image, mask, cancel } = order;
        let mut report = Report::new(self.board.clone(), self.runtime.clone(), job.id.clone(), status);
        report.change(|status| status.state = State::Running);
        // A panic is this job's, not the server's.
        let run = std::panic::AssertUnwindSafe(|| self.run(&job, (image, mask), &cancel, &mut report));
        let result = std::panic::catch_unwind(run).unwrap_or_else(|_| {
            let message = "the job ended in a fault of the program; its log says more";
            Err(Failure::new(FailureCode::Internal, message))
        });
        let running = &self.board.running;
        let ended = match result {
            Ok(()) => report.end(|status| status.state = State::Done),
            Err(_) if cancel.load(Ordering::SeqCst) => report.end(|status| status.state = State::Cancelled),
            Err(failure) if failure.code == FailureCode::Conflict && running.is_stopping() => {
                report.change(|status| *status = Status { sequence: status.sequence, ..Status::default() });
                return Ending::HandedBack;
            }
            Err(failure) => {
                running.failed.fetch_add(1, Ordering::Relaxed);
                report.end(|status| (status.state, status.error) = (State::Failed, Some(failure)))
            }
        };
        running.finished.fetch_add(1, Ordering::Relaxed);
        if ended { Ending::Final } else { Ending::HandedBack }
    }

    fn run(
        &mut self,
        job: &Job,
        (image, mask): (Option<Bytes>, Option<Bytes>),
        cancel: &AtomicBool,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let decode = |bytes: &Option<Bytes>, role: &str| {
            bytes.as_ref().map(|bytes| Photo::decode(bytes, Path::new(role))).transpose()
        };
        let mask_photo = decode(&mask, "mask")?;
        let photo = decode(&image, "image")?;
        let mut request = OwnedRequest::read(job.kind, &job.request, photo, mask_photo.as_ref().map(Mask::from_photo))?;
        let model = self.board.shelf.get(&job.model)?;
        let asked = || cancel.load(Ordering::SeqCst) || self.board.running.is_stopping();
        if asked() {
            return Err(Error::Cancelled.into());
        }
        let settings = self.board.settle(&model, &request)?;
        for lora in &mut request.text_mut().loras {
            lora.name = self.board.shelf.lora(&lora.name.to_string_lossy())?.to_path_buf();
        }
        // With the files of its LoRAs, which clients know by name alone.
        let settings = Settings { request: request.text().clone(), ..settings };
        let inputs = [("image", &job.image), ("mask", &job.mask)].into_iter().filter_map(|(role, sum)| {
            let sha256 = sum.clone()?;
            Some(Input { role, name: format!("{role}-{}", &sha256[..8.min(sha256.len())]), sha256 })
        });
        let record = Arc::new(inputs.fold(model.record(&settings), Record::with_input));
        let mut run = Run {
            colours: self.colours.remove(&job.model),
            asked,
            settings: &settings,
            record: &record,
            report,
            start: Instant::now(),
            previewed: Instant::now(),
            failure: None,
        };
        let result = run.draw(&model);
        if let Some(colours) = run.colours.take() {
            self.colours.insert(job.model.clone(), colours);
        }
        result
    }
}

/// A run that is under way.
struct Run<'a, F: Fn() -> bool> {
    colours: Option<LatentColours>,
    /// Whether it is to end.
    asked: F,
    settings: &'a Settings,
    record: &'a Arc<Record>,
    report: &'a mut Report,
    start: Instant,
    previewed: Instant,
    failure: Option<Failure>,
}

impl<F: Fn() -> bool> Run<'_, F> {
    fn draw(&mut self, model: &LatentDiffusion) -> Result<(), Failure> {
        // The sum of the weights goes into every picture; after a model's first run it is known. Nobody waits for it but pictures.
        let record = self.record.clone();
        std::thread::spawn(move || record.hash_weights().is_ok());
        let result = model.run(self.settings, &mut |event| match self.event(event) {
            Ok(()) if !(self.asked)() => ControlFlow::Continue(()),
            Ok(()) => ControlFlow::Break(()),
            Err(failure) => {
                self.failure = Some(failure);
                ControlFlow::Break(())
            }
        });
        match (self.failure.take(), result) {
            (Some(failure), _) => Err(failure),
            // Asked to end after the last picture was there.
            (None, Err(Error::Cancelled)) if self.report.status.pictures.len() == self.settings.request.num_images => {
                Ok(())
            }
            (None, result) => Ok(result.map(drop)?),
        }
    }

    fn event(&mut self, event: Event<'_>) -> Result<(), Failure> {
        match event {
            Event::Warning(warning) => self.report.status.warnings.push(warning),
            Event::Step { done, steps, batch, batches, x0 } => self.step((done, steps), (batch, batches), x0)?,
            Event::Picture { index, seed, picture, decoded } => {
                if let (Some((latents, decoded)), None) = (decoded, &self.colours) {
                    self.colours = LatentColours::learn(latents, decoded).ok();
                }
                self.record.hash_weights().map_err(|reason| {
                    Failure::new(FailureCode::Internal, format!("the weights cannot be hashed: {reason}"))
                })?;
                let bytes = picture.encode_png(&self.record.chunks(seed))?;
                self.report.picture(index, bytes, Made { seed, width: picture.width(), height: picture.height() })?;
            }
            _ => {}
        }
        Ok(())
    }

    fn step(
        &mut self,
        (done, steps): (usize, usize),
        (batch, batches): (usize, usize),
        x0: Option<&Tensor>,
    ) -> Result<(), Failure> {
        let elapsed = self.start.elapsed().as_secs_f64();
        let all = (batches * steps) as f64;
        let share = (batch * steps + done) as f64 / all.max(1.0);
        let (picture, pictures) = (self.report.status.pictures.len(), self.settings.request.num_images);
        let eta = (share > 0.0).then(|| elapsed * (1.0 - share) / share);
        self.report.progress(Progress { step: done, steps, picture, pictures, elapsed, eta });
        if let (Some(x0), Some(colours)) = (x0, &self.colours)
            && self.previewed.elapsed() >= PREVIEW_EVERY
            && done < steps
        {
            self.previewed = Instant::now();
            let preview = colours.picture(&x0.narrow(0, 0, 1).map_err(Error::from)?)?;
            self.report.preview(encode_png(&preview, &[])?)?;
        }
        Ok(())
    }
}

/// What is told of a job, written where clients look.
struct Report {
    board: Arc<Board>,
    runtime: Handle,
    id: String,
    status: Status,
    told: Instant,
}

impl Report {
    fn new(board: Arc<Board>, runtime: Handle, id: String, status: Status) -> Self {
        Self { board, runtime, id, status, told: Instant::now() }
    }

    /// Changes the state and writes it. That it cannot be written must not end the work: the next change tells all of it.
    fn change(&mut self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status);
        self.write();
    }

    /// Changes the state for the last time. Whether that was written, which is tried for some seconds.
    fn end(&mut self, change: impl FnOnce(&mut Status)) -> bool {
        change(&mut self.status);
        for _ in 0..LAST_TRIES {
            if self.write() {
                return true;
            }
            std::thread::sleep(PAUSE);
        }
        false
    }

    fn write(&mut self) -> bool {
        self.status.sequence += 1;
        self.told = Instant::now();
        let written = self.runtime.block_on(self.board.store.set_status(&self.id, &self.status));
        if let Err(failure) = &written {
            self.board.log(&self.id, failure);
        }
        self.board.running.tell(&self.id);
        written.is_ok()
    }

    fn progress(&mut self, progress: Progress) {
        self.status.progress = Some(progress);
        if self.told.elapsed() >= TELL_EVERY {
            self.change(|_| {});
        }
    }

    fn preview(&mut self, png: Vec<u8>) -> Result<(), Failure> {
        self.runtime.block_on(self.board.store.put_quickly(&of_job(&self.id, "preview.png"), png))?;
        self.change(|status| status.preview = Some(status.preview.unwrap_or(0) + 1));
        Ok(())
    }

    /// A picture is told of when it is there.
    fn picture(&mut self, index: usize, png: Vec<u8>, made: Made) -> Result<(), Failure> {
        self.runtime.block_on(self.board.store.put(&picture_name(&self.id, index), png))?;
        self.board.running.pictures.fetch_add(1, Ordering::Relaxed);
        self.change(|status| status.pictures.push(made));
        Ok(())
    }
}
