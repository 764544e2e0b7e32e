//! Diffusion in pixel space: noise to pictures without text or autoencoder, unconditional or of a class.
//!
//! ```text
//! PixelRequest -> PixelPipeline::settle -> PixelSettings -> PixelPipeline::run -> pictures
//! ```

mod builder;
mod record;
mod request;
mod trajectory;

pub use builder::{PixelBuilder, PixelModel};
pub use record::PixelRecord;
pub use request::{PixelClass, PixelRequest, PixelSettings};
pub use trajectory::Trajectory;

use crate::device::NumberFormat;
use crate::event::{Event, Observer};
use crate::model::Defaults;
use candle_core::Tensor;
use request::PixelModelFacts;
use std::ops::ControlFlow;
use std::time::Instant;
use trajectory::Watch;
use tweedie::checkpoints::ModelFiles;
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{ClassifierFreeGuidance, ClassifierGuidance, Denoiser, Network};
use tweedie::families::{PictureClassifier, PixelFacts, PixelNetwork};
use tweedie::images::Picture;
use tweedie::noise::{NoiseSource, TorchNoise};
use tweedie::schedulers::{Run, Step, sample};
use tweedie::{Device, Error, Result};

/// Seconds that each stage took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PixelSeconds {
    /// Reading the weights.
    pub load: f64,
    /// All denoising.
    pub denoise: f64,
}

/// A pipeline from noise to pictures, loaded and ready.
///
/// # Examples
///
/// ```
/// use tweedie_pipelines::{PixelPipeline, PixelRequest};
///
/// // The embedded digits.
/// let pipeline = PixelPipeline::builder().build()?;
/// let request = PixelRequest { classes: vec![3.into(), 7.into()], steps: Some(3), seed: 1, ..PixelRequest::default() };
/// let pictures = pipeline.generate(&request)?;
/// assert_eq!((pictures.len(), pictures[0].width()), (2, 28));
/// # Ok::<_, tweedie_pipelines::Error>(())
/// ```
#[derive(Debug)]
pub struct PixelPipeline {
    network: Box<dyn PixelNetwork>,
    facts: PixelFacts,
    classifier: Option<Box<dyn PictureClassifier>>,
    scheduler: ConfigFields,
    pipeline_class: Option<String>,
    class_names: Vec<String>,
    defaults: Defaults,
    files: ModelFiles,
    weight_files: Vec<String>,
    model_name: String,
    format: NumberFormat,
    device: Device,
    load_seconds: f64,
}

impl PixelPipeline {
    /// Starts from the embedded model on the best device.
    pub fn builder() -> PixelBuilder {
        PixelBuilder::default()
    }

    /// The network.
    pub fn network(&self) -> &dyn PixelNetwork {
        self.network.as_ref()
    }

    /// What is known of the network.
    pub fn facts(&self) -> &PixelFacts {
        &self.facts
    }

    /// The device that it is loaded on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What pictures' settings call the model.
    pub fn model_name(&self) -> &str {
        &self.model_name
    }

    /// Checks a request and fills in what it leaves to the model.
    ///
    /// # Errors
    /// If the request cannot be carried out; the message says what can.
    pub fn settle(&self, request: &PixelRequest) -> Result<PixelSettings> {
        request.settle(&PixelModelFacts {
            network: self.facts,
            classifier: self.classifier.as_ref().map(|classifier| classifier.facts()),
            scheduler: &self.scheduler,
            pipeline_class: self.pipeline_class.as_deref(),
            class_names: &self.class_names,
            defaults: &self.defaults,
        })
    }

    /// What pictures made with these settings will say of how they were made.
    pub fn record(&self, settings: &PixelSettings) -> PixelRecord {
        PixelRecord::new(settings, &self.model_name, &self.files, &self.weight_files, self.format)
    }

    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// If the request cannot be carried out.
    pub fn generate(&self, request: &PixelRequest) -> Result<Vec<Picture>> {
        let settings = self.settle(request)?;
        let mut pictures = Vec::with_capacity(settings.num_images);
        self.run(&settings, None, &mut |event| {
            if let Event::Picture { picture, .. } = event {
                pictures.push(picture.to_picture());
            }
            ControlFlow::Continue(())
        })?;
        Ok(pictures)
    }

    /// Makes the pictures of settled settings, batch after batch. A trajectory is told of every state of the first
    /// batch.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the observer breaks; pictures that it was told of before are whole.
    pub fn run(
        &self,
        settings: &PixelSettings,
        mut trajectory: Option<&mut Trajectory>,
        observer: &mut Observer<'_>,
    ) -> Result<PixelSeconds> {
        let mut seconds = PixelSeconds { load: self.load_seconds, denoise: 0.0 };
        for warning in &settings.warnings {
            tell(observer, Event::Warning(warning.clone()))?;
        }
        let batches = settings.batches();
        for (batch, (seeds, classes)) in batches.iter().enumerate() {
            let start = Instant::now();
            let mut on_step = |step: &Step<'_>| {
                let (done, steps, x0) = (step.done, step.total, step.x0.as_ref());
                observer(Event::Step { done, steps, batch, batches: batches.len(), x0 })
            };
            let mut noise = TorchNoise::per_image(seeds);
            let x = self.denoise(settings, (seeds.len(), classes), &mut noise, trajectory.take(), &mut on_step)?;
            seconds.denoise += start.elapsed().as_secs_f64();
            for (i, (picture, &seed)) in Picture::from_tensor(&x)?.iter().zip(seeds).enumerate() {
                let index = batch * settings.batch_size + i;
                tell(observer, Event::Picture { index, seed, picture: &picture.into(), decoded: None })?;
            }
        }
        Ok(seconds)
    }

    /// Denoises one batch, drawing the first state from `noise`, and then what the solver asks for.
    ///
    /// # Shapes
    /// The number of `images`; `classes`: one for each, or none; the result: `[batch, in_channels, height, width]`, about `[-1, 1]`.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `on_step` breaks; whatever the network reports.
    pub fn denoise(
        &self,
        settings: &PixelSettings,
        (images, classes): (usize, &[u32]),
        noise: &mut dyn NoiseSource,
        trajectory: Option<&mut Trajectory>,
        on_step: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let scheduler = settings.build_scheduler()?;
        let parameterization = scheduler.parameterization().clone().with_learned_variance(settings.learned_variance);
        let levels = scheduler.levels(settings.steps)?;
        let shape = [images, self.facts.channels, settings.height, settings.width];
        let start = (noise.normal(&shape)?.to_device(&self.device)? * levels.init_noise_sigma())?;

        let (conditioning, none) = self.conditioning(settings, classes)?;
        let network: &dyn Network = self.network.as_ref();
        let guided = none.as_ref().map(|none| ClassifierFreeGuidance::new(network, none, settings.guidance_scale, 0.0));
        let network = guided.as_ref().map_or(network, |guided| guided);
        let judged = match &self.classifier {
            Some(classifier) if settings.classifier_scale != 0.0 => {
                let (scale, kind) = (settings.classifier_scale, parameterization.prediction_type);
                Some(ClassifierGuidance::new(network, classifier.as_ref(), classes, scale, kind)?)
            }
            _ => None,
        };
        let network = judged.as_ref().map_or(network, |judged| judged);
        let watch = Watch::new(network, trajectory.is_some());
        let denoiser = Denoiser::new(&watch, &conditioning, &parameterization);
        let mut states = Vec::new();
        let watched = trajectory.is_some();
        let first = start.clone();
        let mut and_keep = |step: &Step<'_>| {
            if watched {
                states.push((step.level, step.latents.clone()));
            }
            on_step(step)
        };
        let run = Run::new(&levels, &denoiser, noise);
        let x = sample(scheduler.solver().as_mut(), start, 0, run, &mut and_keep)?;
        if let Some(trajectory) = trajectory {
            states.insert(0, (levels.from(0), first));
            trajectory.fill(states, watch.into_evaluations(), &parameterization)?;
        }
        Ok(x)
    }

    /// The conditioning, and that of no class if there is guidance.
    fn conditioning(&self, settings: &PixelSettings, classes: &[u32]) -> Result<(Conditioning, Option<Conditioning>)> {
        if self.facts.classes == 0 {
            return Ok((Conditioning::default(), None));
        }
        let conditioning = Conditioning::classes(classes, &self.device)?;
        let none = match self.facts.null_class {
            Some(null) if settings.guidance_scale != 1.0 => {
                Some(Conditioning::classes(&vec![null as u32; classes.len()], &self.device)?)
            }
            _ => None,
        };
        Ok((conditioning, none))
    }
}

fn tell(observer: &mut Observer<'_>, event: Event<'_>) -> Result<()> {
    match observer(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}
