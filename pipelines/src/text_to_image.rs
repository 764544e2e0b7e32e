//! Text to image: the whole way.

use crate::builder::Builder;
use crate::device::NumberFormat;
use crate::event::{Event, Observer};
use crate::model::Defaults;
use crate::record::Record;
use crate::request::{ModelFacts, Settings, TextToImageRequest};
use crate::stages::{Decode, Denoise, Encode, Encoded, prepare};
use std::ops::ControlFlow;
use std::time::Instant;
use tweedie::checkpoints::ModelFiles;
use tweedie::config::ConfigFields;
use tweedie::images::Picture;
use tweedie::noise::TorchNoise;
use tweedie::{Device, Error, Result};

/// Seconds that each stage took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    /// Reading the weights.
    pub load: f64,
    /// Prompt to conditioning.
    pub encode: f64,
    /// All denoising.
    pub denoise: f64,
    /// All decoding.
    pub decode: f64,
}

/// A pipeline from text to pictures, loaded and ready.
#[derive(Debug)]
pub struct TextToImage {
    pub(crate) encode: Encode,
    pub(crate) denoise: Denoise,
    pub(crate) decode: Decode,
    pub(crate) scheduler: ConfigFields,
    pub(crate) defaults: Defaults,
    pub(crate) files: ModelFiles,
    pub(crate) weight_files: Vec<String>,
    pub(crate) model_name: String,
    pub(crate) format: NumberFormat,
    pub(crate) device: Device,
    pub(crate) load_seconds: f64,
}

impl TextToImage {
    /// Starts from the embedded model on the best device.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Checks a request and fills in what it leaves to the model.
    ///
    /// # Errors
    /// If the request cannot be carried out; the message says what can.
    pub fn settle(&self, request: &TextToImageRequest) -> Result<Settings> {
        request.settle(&ModelFacts {
            unet: self.denoise.unet().config(),
            vae: self.decode.vae().config(),
            scheduler: &self.scheduler,
            defaults: &self.defaults,
            text_layers: self.encode.text_encoder().config().num_hidden_layers,
        })
    }

    /// What pictures made with these settings will say of how they were made.
    pub fn record(&self, settings: &Settings) -> Record {
        Record::new(settings, &self.model_name, &self.files, &self.weight_files, self.format)
    }

    /// The stage that makes conditioning.
    pub fn encode(&self) -> &Encode {
        &self.encode
    }

    /// The stage that makes latents.
    pub fn denoise(&self) -> &Denoise {
        &self.denoise
    }

    /// The stage that makes pictures.
    pub fn decode(&self) -> &Decode {
        &self.decode
    }

    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// If the request cannot be carried out.
    pub fn generate(&self, request: &TextToImageRequest) -> Result<Vec<Picture>> {
        let settings = self.settle(request)?;
        let mut pictures = Vec::with_capacity(settings.num_images);
        let mut collect = |event: Event<'_>| {
            if let Event::Picture { picture, .. } = event {
                pictures.push(picture.clone());
            }
            ControlFlow::Continue(())
        };
        let mut seconds = Seconds::default();
        let encoded = self.encode.run(&settings)?;
        Batches { settings: &settings, encoded: &encoded, device: &self.device, seconds: &mut seconds }.run(
            &mut Some(&self.denoise),
            &self.decode,
            &mut collect,
        )?;
        Ok(pictures)
    }

    /// Makes the pictures of settled settings and ends the pipeline: the text encoder's memory is given back
    /// before denoising, and the UNet's before the last picture is decoded.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the observer breaks; pictures that it was told of before are whole.
    pub fn run_once(self, settings: &Settings, observer: &mut Observer<'_>) -> Result<Seconds> {
        let mut seconds = Seconds { load: self.load_seconds, ..Seconds::default() };
        let start = Instant::now();
        let encoded = self.encode.run(settings)?;
        drop(self.encode);
        seconds.encode = start.elapsed().as_secs_f64();
        for warning in settings.warnings.iter().chain(&encoded.warnings) {
            tell(observer, Event::Warning(warning.clone()))?;
        }
        Batches { settings, encoded: &encoded, device: &self.device, seconds: &mut seconds }.run(
            &mut Some(self.denoise),
            &self.decode,
            observer,
        )?;
        Ok(seconds)
    }
}

/// The batches of one request.
struct Batches<'a> {
    settings: &'a Settings,
    encoded: &'a Encoded,
    device: &'a Device,
    seconds: &'a mut Seconds,
}

impl Batches<'_> {
    /// Denoises batch after batch and decodes image by image, which bounds the memory; `denoise` is dropped when
    /// the last batch is denoised.
    fn run<D: std::borrow::Borrow<Denoise>>(
        self,
        denoise: &mut Option<D>,
        decode: &Decode,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let batches = self.settings.seed_batches();
        for (batch, seeds) in batches.iter().enumerate() {
            let start = Instant::now();
            let Some(network) = denoise.as_ref() else { break };
            let mut noise = TorchNoise::per_image(seeds);
            let prepared = prepare(self.settings, decode.vae().config(), seeds.len(), &mut noise, self.device)?;
            let mut on_step = |step: &tweedie::schedulers::Step<'_>| {
                observer(Event::Step { done: step.index + 1, steps: step.total, batch, batches: batches.len() })
            };
            let latents = network.borrow().run(self.settings, self.encoded, prepared, &mut noise, &mut on_step)?;
            self.seconds.denoise += start.elapsed().as_secs_f64();
            if batch + 1 == batches.len() {
                *denoise = None;
            }

            for (i, &seed) in seeds.iter().enumerate() {
                tell(observer, Event::Decoding)?;
                let start = Instant::now();
                let picture = decode.run(&latents.narrow(0, i, 1)?)?;
                self.seconds.decode += start.elapsed().as_secs_f64();
                let index = batch * self.settings.batch_size + i;
                tell(observer, Event::Picture { index, seed, picture: &picture })?;
            }
        }
        Ok(())
    }
}

fn tell(observer: &mut Observer<'_>, event: Event<'_>) -> Result<()> {
    match observer(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
