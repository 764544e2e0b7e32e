//! A latent diffusion model, loaded, and the whole way through it.

use crate::adapters::UsedAdapter;
use crate::device::NumberFormat;
use crate::event::{Event, Observer};
use crate::model::Defaults;
use crate::records::record::Record;
use crate::settings::{ModelFacts, Settings};
use crate::stages::{Decode, Denoise, Encode, Encoded, Reference, prepare, reference};
use crate::used_weights::{UsedWeights, WeightFile};
use crate::xl::XlFacts;
use std::ops::ControlFlow;
use std::time::Instant;
use tweedie::config::ConfigFields;
use tweedie::images::Photo;
use tweedie::noise::TorchNoise;
use tweedie::schedulers::Step;
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
    /// All decoding, that of previews included.
    pub decode: f64,
}

/// A latent diffusion model, loaded and ready: what [`crate::TextToImage`], [`crate::ImageToImage`] and
/// [`crate::Inpaint`] run.
#[derive(Debug)]
pub struct LatentDiffusion {
    pub(crate) encode: Encode,
    pub(crate) denoise: Denoise,
    pub(crate) decode: Decode,
    /// Another decoder, for previews.
    pub(crate) preview: Option<Decode>,
    pub(crate) scheduler: ConfigFields,
    pub(crate) guessed_prediction: Option<&'static str>,
    pub(crate) xl: Option<XlFacts>,
    pub(crate) defaults: Defaults,
    pub(crate) adapters: Vec<UsedAdapter>,
    pub(crate) weights: Vec<WeightFile>,
    /// What its autoencoder is called, if it is another model's.
    pub(crate) vae_name: Option<String>,
    pub(crate) model_name: String,
    pub(crate) format: NumberFormat,
    pub(crate) device: Device,
    pub(crate) load_seconds: f64,
}

impl LatentDiffusion {
    /// What the check of a request needs to know of this model.
    pub(crate) fn facts(&self) -> ModelFacts<'_> {
        ModelFacts {
            unet: self.denoise.unet().config(),
            vae: self.decode.vae().config(),
            scheduler: &self.scheduler,
            guessed_prediction: self.guessed_prediction,
            defaults: &self.defaults,
            controls: self.denoise.controls(),
            text_layers: self.skippable_layers(),
            xl: self.xl,
        }
    }

    /// Stable Diffusion XL starts to count one layer further back.
    fn skippable_layers(&self) -> usize {
        let layers = self.encode.encoders().iter().map(|encoder| encoder.model.config().num_hidden_layers);
        layers.min().unwrap_or(0).saturating_sub(usize::from(self.xl.is_some()))
    }

    /// What pictures made with these settings will say of how they were made.
    pub fn record(&self, settings: &Settings) -> Record {
        let weights = UsedWeights::new(&self.model_name, self.weights.clone(), self.format);
        Record::new(settings, weights.with_adapters(&[self.adapters.clone(), settings.adapters()].concat()))
            .with_vae(self.vae_name.clone())
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

    /// Makes the pictures of settled settings.
    ///
    /// # Errors
    /// If the network or the decoder fails.
    pub fn generate(&self, settings: &Settings) -> Result<Vec<Photo>> {
        let mut pictures = Vec::with_capacity(settings.request.num_images);
        let mut collect = |event: Event<'_>| {
            if let Event::Picture { picture, .. } = event {
                pictures.push(picture.clone());
            }
            ControlFlow::Continue(())
        };
        if let Some(unchanged) = settings.task.unchanged() {
            unchanged_pictures(settings, unchanged, &mut collect)?;
            return Ok(pictures);
        }
        let mut seconds = Seconds::default();
        let encoded = self.encode.run(settings)?;
        let reference = reference(&settings.task, self.decode.vae(), self.denoise.unet().config(), &self.device)?;
        let (preview, device, seconds) = (None, &self.device, &mut seconds);
        let batches = Batches { settings, encoded: &encoded, reference: &reference, preview, device, seconds };
        batches.run(&mut Some(&self.denoise), &self.decode, &mut collect)?;
        Ok(pictures)
    }

    /// Makes the pictures of settled settings and ends the pipeline: the text encoder's memory is given back
    /// before denoising, and the UNet's before the last picture is decoded.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the observer breaks; pictures that it was told of before are whole.
    pub fn run_once(self, settings: &Settings, observer: &mut Observer<'_>) -> Result<Seconds> {
        let mut seconds = Seconds { load: self.load_seconds, ..Seconds::default() };
        for warning in &settings.warnings {
            tell(observer, Event::Warning(warning.clone()))?;
        }
        if let Some(unchanged) = settings.task.unchanged() {
            unchanged_pictures(settings, unchanged, observer)?;
            return Ok(seconds);
        }
        let start = Instant::now();
        let encoded = self.encode.run(settings)?;
        drop(self.encode);
        for warning in &encoded.warnings {
            tell(observer, Event::Warning(warning.clone()))?;
        }
        let reference = reference(&settings.task, self.decode.vae(), self.denoise.unet().config(), &self.device)?;
        seconds.encode = start.elapsed().as_secs_f64();
        let batches = Batches {
            settings,
            encoded: &encoded,
            reference: &reference,
            preview: self.preview.as_ref(),
            device: &self.device,
            seconds: &mut seconds,
        };
        batches.run(&mut Some(self.denoise), &self.decode, observer)?;
        Ok(seconds)
    }
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
            let vae = decode.vae().config();
            let prepared = prepare(self.settings, self.reference, vae, seeds.len(), &mut noise, self.device)?;
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
            let latents = network.borrow().run(self.settings, self.encoded, prepared, &mut noise, &mut on_step);
            let latents = failure.map_or(latents, Err)?;
            self.seconds.denoise += start.elapsed().as_secs_f64() - previewing;
            self.seconds.decode += previewing;
            if batch + 1 == batches.len() {
                *denoise = None;
            }

            for (i, &seed) in seeds.iter().enumerate() {
                tell(observer, Event::Decoding)?;
                let start = Instant::now();
                let latents = latents.narrow(0, i, 1)?;
                let decoded = decode.run(&latents)?;
                self.seconds.decode += start.elapsed().as_secs_f64();
                let index = batch * self.settings.request.batch_size + i;
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
