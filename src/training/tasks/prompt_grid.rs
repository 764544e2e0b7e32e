//! Grids of pictures of fixed prompts from networks in training.

use crate::Result;
use crate::conditioning::Conditioning;
use crate::config::ConfigFields;
use crate::denoising::{ClassifierFreeGuidance, Denoiser, Network};
use crate::images::Picture;
use crate::models::Autoencoder;
use crate::noise::{NoiseSource, TorchNoise};
use crate::schedulers::{Run, SchedulerChoice, sample};
use serde_json::{Map, Value};
use std::ops::{ControlFlow, Range};

/// Pictures that are made at once.
const BATCH: usize = 8;

/// What sample grids show, and how the finished model is run by default.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplePrompts {
    /// The prompts: picture `i` is of prompt `i` and starts from the seed `i`.
    pub prompts: Vec<String>,
    /// The scale of classifier-free guidance.
    pub guidance_scale: f64,
    /// The number of steps.
    pub steps: usize,
}

/// Networks that make pictures of prompts.
pub(super) struct Painter<'a> {
    pub network: &'a dyn Network,
    pub autoencoder: &'a dyn Autoencoder,
    /// `scheduler_config.json`.
    pub scheduler: &'a Map<String, Value>,
}

impl Painter<'_> {
    /// All pictures side by side, in about as many rows as columns.
    ///
    /// # Shapes
    /// `positive`: a row for each prompt; `negative`: one row.
    pub fn grid(
        &self,
        samples: &SamplePrompts,
        positive: &Conditioning,
        negative: &Conditioning,
        size: (usize, usize),
    ) -> Result<Picture> {
        let count = samples.prompts.len();
        let mut pictures = Vec::with_capacity(count);
        for first in (0..count).step_by(BATCH) {
            let rows = first..(first + BATCH).min(count);
            let negative = negative.repeat(rows.len())?;
            pictures.extend(self.pictures(rows.clone(), [&positive.rows(rows)?, &negative], samples, size)?);
        }
        let columns = (1..).find(|columns| columns * columns >= pictures.len()).unwrap_or(1);
        Picture::grid(&pictures, columns, 2)
    }

    fn pictures(
        &self,
        rows: Range<usize>,
        [positive, negative]: [&Conditioning; 2],
        samples: &SamplePrompts,
        (height, width): (usize, usize),
    ) -> Result<Vec<Picture>> {
        let count = rows.len();
        let fields = ConfigFields::from_fields("scheduler", self.scheduler.clone());
        let scheduler = SchedulerChoice::of_file(fields.class_name().unwrap_or("DDIMScheduler"))?.build(&fields)?;
        let levels = scheduler.levels(samples.steps.min(fields.usize("num_train_timesteps", samples.steps)?))?;
        let space = self.autoencoder.latent_space();
        let mut noise = TorchNoise::per_image(&rows.map(|row| row as u64).collect::<Vec<_>>());
        let shape = [count, space.channels, height / space.factor, width / space.factor];
        let start = (noise.normal(&shape)? * levels.init_noise_sigma())?;
        let guided = ClassifierFreeGuidance::new(self.network, negative, samples.guidance_scale, 0.0);
        let denoiser = Denoiser::new(&guided, positive, scheduler.parameterization());
        let run = Run::new(&levels, &denoiser, &mut noise);
        let latents = sample(scheduler.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
        let mut pictures = Vec::with_capacity(count);
        for i in 0..count {
            let decoded = self.autoencoder.decode(&space.unscaled(&latents.narrow(0, i, 1)?)?)?;
            pictures.extend(Picture::from_tensor(&decoded)?);
        }
        Ok(pictures)
    }
}
