//! Samples that a model makes to be judged: nothing of them is kept but what the judgement needs.

use crate::event::Event;
use crate::latent_diffusion::LatentDiffusion;
use crate::pixel::{PixelPipeline, PixelSettings};
use crate::requests::text_to_image::TextToImageRequest;
use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use tweedie::images::Photo;
use tweedie::metrics::{Extraction, FeatureNetwork, Kept, PictureSet};
use tweedie::{Error, Result};

/// What happens while samples are made.
#[derive(Debug)]
pub enum SampleEvent<'a> {
    /// Something that the user should know, each once.
    Warning(String),
    /// There are so many samples, and work goes on.
    Working {
        /// How many.
        done: usize,
    },
    /// One is finished, as it would be saved.
    Sample {
        /// Which, from 0.
        index: usize,
        /// The seed that makes it alone.
        seed: u64,
        /// The picture.
        picture: &'a Photo,
    },
}

/// Is told of every [`SampleEvent`]; an error stops the work and is its result.
pub type SampleObserver<'a> = dyn FnMut(SampleEvent<'_>) -> Result<()> + 'a;

/// Samples that a model will make, one after the other.
pub trait Samples: fmt::Debug {
    /// How many.
    fn count(&self) -> usize;

    /// Makes them.
    ///
    /// # Errors
    /// Whatever the model or the observer reports.
    fn make(&self, observer: &mut SampleObserver<'_>) -> Result<()>;
}

/// Those of a model in pixel space, which may be lent.
#[derive(Debug)]
pub struct PixelSamples<P = PixelPipeline> {
    /// The model.
    pub pipeline: P,
    /// What is made with it.
    pub settings: PixelSettings,
}

impl<P: Borrow<PixelPipeline> + fmt::Debug> Samples for PixelSamples<P> {
    fn count(&self) -> usize {
        self.settings.num_images
    }

    fn make(&self, observer: &mut SampleObserver<'_>) -> Result<()> {
        told(observer, |tell| {
            self.pipeline.borrow().run(&self.settings, None, &mut |event| match event {
                Event::Warning(text) => tell(SampleEvent::Warning(text)),
                // So that steps can be stopped too.
                Event::Step { batch, .. } => {
                    tell(SampleEvent::Working { done: (batch * self.settings.batch_size).min(self.count()) })
                }
                Event::Picture { index, seed, picture, .. } => tell(SampleEvent::Sample { index, seed, picture }),
                _ => ControlFlow::Continue(()),
            })
        })
    }
}

/// Pictures of prompts in turn, by a text-to-image model: sample `i` is of prompt `i mod n`, and of the seed that is `i` after the
/// first.
#[derive(Debug)]
pub struct PromptSamples {
    model: LatentDiffusion,
    prompts: Vec<String>,
    request: TextToImageRequest,
}

impl PromptSamples {
    /// Of a model that is loaded for any number of runs. All but the prompt is asked for by `request`: the number of all samples, the
    /// first one's seed, and how many of one prompt are made at a time.
    ///
    /// # Errors
    /// If there is no prompt, or one cannot be drawn as it is asked for.
    pub fn new(model: LatentDiffusion, prompts: Vec<String>, request: TextToImageRequest) -> Result<Self> {
        if prompts.is_empty() {
            return Err(Error::invalid("the number of prompts", 0, "give at least one"));
        }
        let samples = Self { model, prompts, request };
        for prompt in 0..samples.prompts.len().min(samples.count().max(1)) {
            samples.model.settle(&samples.request_of(prompt, samples.request.num_images))?;
        }
        Ok(samples)
    }

    /// The prompt of a sample.
    pub fn prompt(&self, index: usize) -> &str {
        &self.prompts[index % self.prompts.len()]
    }

    /// A request for some samples of one prompt from one of them on.
    fn request_of(&self, first: usize, num_images: usize) -> TextToImageRequest {
        let seed = self.request.seed.wrapping_add(first as u64);
        TextToImageRequest { prompt: self.prompt(first).to_owned(), seed, num_images, ..self.request.clone() }
    }
}

impl Samples for PromptSamples {
    fn count(&self) -> usize {
        self.request.num_images
    }

    fn make(&self, observer: &mut SampleObserver<'_>) -> Result<()> {
        // Samples that follow each other can be made together if their prompt is the same.
        let together = if self.prompts.len() == 1 { self.request.batch_size.max(1) } else { 1 };
        let mut warned = BTreeSet::new();
        told(observer, |tell| {
            for first in (0..self.count()).step_by(together) {
                let settings = self.model.settle(&self.request_of(first, together.min(self.count() - first)))?;
                self.model.run(&settings, &mut |event| match event {
                    Event::Warning(text) if warned.insert(text.clone()) => tell(SampleEvent::Warning(text)),
                    Event::Step { .. } | Event::Decoding { .. } => tell(SampleEvent::Working { done: first }),
                    Event::Picture { index, seed, picture, .. } => {
                        tell(SampleEvent::Sample { index: first + index, seed, picture })
                    }
                    _ => ControlFlow::Continue(()),
                })?;
            }
            Ok(())
        })
    }
}

/// Runs a model that stops where the observer has an error, which is then the result.
fn told<T>(
    observer: &mut SampleObserver<'_>,
    run: impl FnOnce(&mut dyn FnMut(SampleEvent<'_>) -> ControlFlow<()>) -> Result<T>,
) -> Result<()> {
    let mut failure = None;
    let made = run(&mut |event| match observer(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    });
    failure.map_or(made.map(|_| ()), Err)
}

/// Features of samples.
///
/// # Errors
/// Whatever the networks or the observer report.
pub fn features_of_samples(
    network: &dyn FeatureNetwork,
    samples: &dyn Samples,
    kept: Kept,
    observer: &mut SampleObserver<'_>,
) -> Result<PictureSet> {
    let mut extraction = Extraction::new(network, kept);
    samples.make(&mut |event| {
        if let SampleEvent::Sample { seed, picture, .. } = &event {
            extraction.add(picture, &format!("the sample of seed {seed}"))?;
        }
        observer(event)
    })?;
    extraction.finish()
}
