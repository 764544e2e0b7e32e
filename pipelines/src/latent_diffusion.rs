//! A latent diffusion model, loaded, and the whole way through it.

use crate::adapted::{AdaptedStages, Blueprint};
use crate::adapters::UsedAdapter;
use crate::builder::Builder;
use crate::device::{NumberFormat, kernels_compute};
use crate::event::{Event, Observer};
use crate::memory;
use crate::records::record::{Record, UsedAutoencoder};
use crate::requests::request::Request;
use crate::settings::{ModelFacts, Settings};
use crate::stages::{Decode, Denoise, Encode, Encoded, Reference, prepare, reference};
use crate::task::Usage;
use crate::used_weights::{UsedWeights, WeightSums};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tweedie::images::Photo;
use tweedie::kernels::{RecyclingAllocator, is_dry_run};
use tweedie::noise::TorchNoise;
use tweedie::schedulers::Step;
use tweedie::{Device, Error, ErrorKind, Result};

/// Seconds that each stage took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    /// Reading the weights.
    pub load: f64,
    /// Prompt to conditioning.
    pub encode: f64,
    /// All denoising.
    pub denoise: f64,
    /// All decoding, that of previews included.
    pub decode: f64,
}

/// A latent diffusion model, loaded and ready for any number of runs, of all three tasks, by any number of threads at a time.
///
/// A run changes nothing in it: what belongs to a run lives in that run.
#[derive(Debug)]
pub struct LatentDiffusion {
    pub(crate) parts: KeptParts,
    pub(crate) facts: ModelFacts,
    /// What stages with a request's LoRAs are built from; nothing in a model for one run.
    pub(crate) blueprint: Option<Blueprint>,
    pub(crate) adapters: Vec<UsedAdapter>,
    pub(crate) weights: Arc<WeightSums>,
    /// Its autoencoder, if it is another model's.
    pub(crate) vae: Option<UsedAutoencoder>,
    pub(crate) model_name: String,
    pub(crate) format: NumberFormat,
    pub(crate) device: Device,
    pub(crate) load_seconds: f64,
    /// Whether its own decoder draws previews of small pictures.
    pub(crate) previews: bool,
}

/// Pixels of a picture that a decoder draws in about the time of a step.
const SMALL: usize = 256 * 256;

/// The pictures of a request, and what a user should know of them.
#[derive(Debug, Clone)]
pub struct Generated {
    /// One for each image of the request, in its order.
    pub pictures: Vec<Photo>,
    /// What was asked for and had no effect, or another than might be thought.
    pub warnings: Vec<String>,
    /// How long it took.
    pub seconds: Seconds,
}

impl LatentDiffusion {
    /// Starts from the embedded model on the best device.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Checks a request and fills in what it leaves to the model.
    ///
    /// # Errors
    /// If the request cannot be carried out; the message says what can.
    pub fn settle<'a>(&self, request: impl Into<Request<'a>>) -> Result<Settings> {
        request.into().settle(&self.facts)
    }

    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// If the request cannot be carried out, or as [`Self::run`].
    pub fn generate<'a>(&self, request: impl Into<Request<'a>>) -> Result<Generated> {
        self.generate_settled(&self.settle(request)?)
    }

    /// Makes the pictures of settled settings.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn generate_settled(&self, settings: &Settings) -> Result<Generated> {
        let (mut pictures, mut warnings) = (Vec::with_capacity(settings.request.num_images), Vec::new());
        let seconds = self.run(settings, &mut |event| {
            match event {
                Event::Picture { picture, .. } => pictures.push(picture.clone()),
                Event::Warning(warning) => warnings.push(warning),
                _ => {}
            }
            ControlFlow::Continue(())
        })?;
        Ok(Generated { pictures, warnings, seconds })
    }

    /// What pictures made with these settings will say of how they were made.
    pub fn record(&self, settings: &Settings) -> Record {
        let weights = UsedWeights::new(&self.model_name, self.weights.clone(), self.format);
        Record::new(settings, weights.with_adapters(&[self.adapters.clone(), settings.adapters()].concat()))
            .with_vae(self.vae.clone())
    }

    /// What the model is called in records.
    pub fn model_name(&self) -> &str {
        &self.model_name
    }

    /// The device that it is loaded on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stage that makes conditioning.
    ///
    /// # Errors
    /// If the model was loaded for one run, which has used it up.
    pub fn encode(&self) -> Result<Arc<Encode>> {
        self.parts.encode.get()
    }

    /// The stage that makes latents.
    ///
    /// # Errors
    /// If the model was loaded for one run, which has used it up.
    pub fn denoise(&self) -> Result<Arc<Denoise>> {
        self.parts.load_network()?;
        self.parts.denoise.get()
    }

    /// The stage that makes pictures.
    pub fn decode(&self) -> &Decode {
        &self.parts.decode
    }

    /// Makes the pictures of settled settings, and tells the observer of warnings, steps, previews and pictures.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the observer breaks, which it can in every step and between the parts of the decoder; pictures
    /// that it was told of before are whole. Of [`ErrorKind::Memory`] if there is too little for it. Whatever the networks report. If the
    /// model was loaded for one run and this is another.
    pub fn run(&self, settings: &Settings, observer: &mut Observer<'_>) -> Result<Seconds> {
        let mut seconds = Seconds { load: self.load_seconds, ..Seconds::default() };
        for warning in &settings.warnings {
            tell(observer, Event::Warning(warning.clone()))?;
        }
        if let Some(unchanged) = settings.task.unchanged() {
            unchanged_pictures(settings, unchanged, observer)?;
            return Ok(seconds);
        }
        self.check_room(settings)?;
        let start = Instant::now();
        let (encode, adapted) = match self.adapted_stages(settings)? {
            Some(AdaptedStages { encode, denoise, warnings }) => {
                for warning in warnings {
                    tell(observer, Event::Warning(warning))?;
                }
                (encode, Some(denoise))
            }
            None => (self.parts.encode.last_use()?, None),
        };
        let encoded = encode.run(settings)?;
        let_go(encode);
        for warning in &encoded.warnings {
            tell(observer, Event::Warning(warning.clone()))?;
        }
        let reference = reference(&settings.task, self.decode().vae(), &self.facts.network, &self.device)?;
        seconds.encode = start.elapsed().as_secs_f64();
        let start = Instant::now();
        self.parts.load_network()?;
        seconds.load += start.elapsed().as_secs_f64();
        let denoise = adapted.map_or_else(|| self.parts.denoise.last_use(), Ok)?;
        check_memory(settings, &encoded, &denoise, self.decode())?;
        let (preview, device) = (self.preview(settings), &self.device);
        let (encoded, reference, seconds_of) = (&encoded, &reference, &mut seconds);
        let batches = Batches { settings, encoded, reference, preview, device, seconds: seconds_of };
        batches.run(denoise, self.decode(), observer)?;
        Ok(seconds)
    }

    /// Whether it was loaded for any number of runs.
    pub(crate) fn is_for_any_use(&self) -> bool {
        self.blueprint.is_some()
    }

    /// Whether the kernels compute.
    pub(crate) fn computes_with_kernels(&self) -> bool {
        let given = self.blueprint.as_ref().and_then(|blueprint| blueprint.backend);
        kernels_compute(given, &self.device)
    }

    /// What draws previews: the autoencoder that was given for that, or its own decoder if they are wanted and small.
    fn preview(&self, settings: &Settings) -> Option<&Decode> {
        let own = || self.previews && settings.width * settings.height <= SMALL;
        self.parts.preview.as_ref().or_else(|| own().then_some(self.decode()))
    }

    /// The first two stages of a run if the request puts LoRAs beside their weights.
    fn adapted_stages(&self, settings: &Settings) -> Result<Option<AdaptedStages>> {
        let loras = &settings.request.loras;
        if loras.is_empty() {
            return Ok(None);
        }
        let Some(blueprint) = &self.blueprint else {
            let fix = "a model that is loaded for one run has its LoRAs merged: give them to the builder, or load it for any use";
            return Err(Error::invalid("the number of the request's LoRAs", loras.len(), fix));
        };
        Ok(Some(blueprint.stages(loras, self.encode()?, self.denoise()?.as_ref())?))
    }
}

/// The stages of a model.
#[derive(Debug)]
pub(crate) struct ModelParts {
    pub encode: Encode,
    /// Nothing if it is loaded later.
    pub denoise: Option<Denoise>,
    pub later: Option<Blueprint>,
    pub decode: Decode,
    /// Another decoder, for previews.
    pub preview: Option<Decode>,
}

impl ModelParts {
    pub fn kept(self, usage: Usage) -> KeptParts {
        let Self { encode, denoise, later, decode, preview } = self;
        let (encode, denoise) = (Kept::new(Some(encode), usage), Kept::new(denoise, usage));
        KeptParts { encode, denoise, later: Mutex::new(later), decode, preview }
    }
}

/// The stages as a loaded model has them.
#[derive(Debug)]
pub(crate) struct KeptParts {
    encode: Kept<Encode>,
    denoise: Kept<Denoise>,
    /// What the denoising stage is built from when its turn comes.
    later: Mutex<Option<Blueprint>>,
    decode: Decode,
    preview: Option<Decode>,
}

impl KeptParts {
    /// Loads the network if its turn has not come before.
    fn load_network(&self) -> Result<()> {
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blueprint) = later.take() {
            self.denoise.put(blueprint.denoise()?);
        }
        Ok(())
    }
}

/// A stage that runs share, and that the only run of a model lets go of when it needs it no more.
#[derive(Debug)]
struct Kept<T> {
    stage: Mutex<Option<Arc<T>>>,
    usage: Usage,
}

impl<T> Kept<T> {
    fn new(stage: Option<T>, usage: Usage) -> Self {
        Self { stage: Mutex::new(stage.map(Arc::new)), usage }
    }

    fn put(&self, stage: T) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(stage));
    }

    fn get(&self) -> Result<Arc<T>> {
        // A panic elsewhere leaves the stage or nothing.
        let stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        stage.clone().ok_or_else(Self::used_up)
    }

    /// The stage for a run: the only run owns it.
    fn last_use(&self) -> Result<Arc<T>> {
        if self.usage == Usage::Any {
            return self.get();
        }
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        stage.take().ok_or_else(Self::used_up)
    }

    fn used_up() -> Error {
        Error::invalid("the model", "used up by its one run", "load it with Usage::Any for several")
    }
}

/// Drops a stage, and with its last owner what the allocator keeps of its weights.
fn let_go<T>(stage: Arc<T>) {
    if let Some(stage) = Arc::into_inner(stage) {
        drop(stage);
        RecyclingAllocator::trim();
    }
}

/// Whether there is memory for the states of the networks, as far as that is known before.
fn check_memory(settings: &Settings, encoded: &Encoded, denoise: &Denoise, decode: &Decode) -> Result<()> {
    // In a dry run it is known at its end whether there is enough; before, that there is memory for any of it.
    let available = if is_dry_run() { memory::obtainable() } else { memory::available() };
    let Some(available) = available.filter(|_| denoise.device().is_cpu()) else { return Ok(()) };
    let factor = decode.latent_space().factor;
    let (height, width) = (settings.height / factor, settings.width / factor);
    let branches = 1 + usize::from(encoded.negative.is_some());
    let of_one = denoise.network().least_memory(branches, height, width);
    let images = settings.request.batch_size.min(settings.request.num_images);
    let refused = |what: &str, needed: u64, fits: String| {
        let (needed, available) = (memory::in_words(needed), memory::in_words(available));
        let fix = format!("{available} are free here; {fits}");
        let what = format!("the memory that the {what} needs");
        Err(Error::unusable(ErrorKind::Memory, what, format!("{needed} or more"), fix))
    };
    let smaller = |needed: u64| {
        let side = |side: usize| (side as f64 * (available as f64 / needed as f64).sqrt()) as usize / 64 * 64;
        let (width, height) = (side(settings.width).max(64), side(settings.height).max(64));
        format!("take a smaller `width` and `height`, of {width}x{height} at most")
    };
    let batch = of_one.saturating_mul(images as u64);
    if of_one > available {
        return refused("denoising network", of_one, smaller(of_one));
    }
    if batch > available {
        return refused("denoising network", batch, format!("take a `batch_size` of {} at most", available / of_one));
    }
    let decoded = decode.vae().decoding_memory(height, width).least;
    if decoded > available { refused("decoder", decoded, smaller(decoded)) } else { Ok(()) }
}

/// Where there is nothing to paint, every picture is the one that was given.
fn unchanged_pictures(settings: &Settings, picture: &Photo, observer: &mut Observer<'_>) -> Result<()> {
    for (index, seed) in settings.seed_batches().concat().into_iter().enumerate() {
        tell(observer, Event::Picture { index, seed, picture, decoded: None })?;
    }
    Ok(())
}

/// The batches of one request.
struct Batches<'a> {
    settings: &'a Settings,
    encoded: &'a Encoded,
    reference: &'a Reference,
    preview: Option<&'a Decode>,
    device: &'a Device,
    seconds: &'a mut Seconds,
}

impl Batches<'_> {
    /// Denoises batch after batch and decodes image by image, which bounds the memory; `denoise` is let go of when
    /// the last batch is denoised.
    fn run(self, denoise: Arc<Denoise>, decode: &Decode, observer: &mut Observer<'_>) -> Result<()> {
        let mut denoise = Some(denoise);
        let batches = self.settings.seed_batches();
        for (batch, seeds) in batches.iter().enumerate() {
            let start = Instant::now();
            let Some(network) = denoise.as_deref() else { break };
            let mut noise = TorchNoise::per_image(seeds);
            let latent_space = decode.latent_space();
            let prepared = prepare(self.settings, self.reference, latent_space, seeds.len(), &mut noise, self.device)?;
            let (mut previewing, mut failure) = (0.0, None);
            let mut on_step = |step: &Step<'_>| {
                let (done, steps, x0) = (step.done, step.total, step.x0.as_ref());
                let told = observer(Event::Step { done, steps, batch, batches: batches.len(), x0 });
                if told.is_break() {
                    return told;
                }
                let start = Instant::now();
                let shown = self.show(step, batch, observer);
                previewing += start.elapsed().as_secs_f64();
                shown.unwrap_or_else(|error| {
                    failure = Some(error);
                    ControlFlow::Break(())
                })
            };
            let latents = network.run(self.settings, self.encoded, prepared, &mut noise, &mut on_step);
            let latents = failure.map_or(latents, Err)?;
            self.seconds.denoise += start.elapsed().as_secs_f64() - previewing;
            self.seconds.decode += previewing;
            if batch + 1 == batches.len() {
                denoise.take().into_iter().for_each(let_go);
            }

            for (i, &seed) in seeds.iter().enumerate() {
                let start = Instant::now();
                let index = batch * self.settings.request.batch_size + i;
                let latents = latents.narrow(0, i, 1)?;
                let decoded = decode
                    .run_watched(&latents, &mut |done, parts| observer(Event::Decoding { index, done, parts }))?;
                self.seconds.decode += start.elapsed().as_secs_f64();
                let picture = self.settings.task.finish(&decoded)?;
                let decoded = Some((&latents, &decoded));
                tell(observer, Event::Picture { index, seed, picture: &picture, decoded })?;
            }
        }
        Ok(())
    }

    /// Decodes the previews of a step, image by image.
    fn show(&self, step: &Step<'_>, batch: usize, observer: &mut Observer<'_>) -> Result<ControlFlow<()>> {
        let (Some(preview), Some(x0)) = (self.preview, &step.x0) else { return Ok(ControlFlow::Continue(())) };
        for i in 0..x0.dim(0)? {
            let picture = preview.run(&x0.narrow(0, i, 1)?)?;
            let index = batch * self.settings.request.batch_size + i;
            let told = observer(Event::Preview { index, done: step.done, picture: &picture });
            if told.is_break() {
                return Ok(told);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn tell(observer: &mut Observer<'_>, event: Event<'_>) -> Result<()> {
    match observer(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
