//! Grids of pictures of fixed prompts from networks in training.

use crate::conditioning::Conditioning;
use crate::config::ConfigFields;
use crate::denoising::{ClassifierFreeGuidance, Denoiser};
use crate::images::Picture;
use crate::models::{Autoencoder, ClipTextModel, UNet2DConditionModel};
use crate::noise::{NoiseSource, TorchNoise};
use crate::schedulers::{Run, SchedulerChoice, sample};
use crate::text::Tokenizer;
use crate::{Device, Result, Tensor};
use serde_json::{Map, Value};
use std::ops::ControlFlow;

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
    pub unet: &'a UNet2DConditionModel,
    pub text_encoder: &'a ClipTextModel,
    pub tokenizer: &'a Tokenizer,
    pub autoencoder: &'a dyn Autoencoder,
    /// `scheduler_config.json`.
    pub scheduler: &'a Map<String, Value>,
}

impl Painter<'_> {
    /// All pictures side by side, in about as many rows as columns.
    pub fn grid(&self, samples: &SamplePrompts, size: (usize, usize)) -> Result<Picture> {
        let mut pictures = Vec::with_capacity(samples.prompts.len());
        for (i, prompts) in samples.prompts.chunks(BATCH).enumerate() {
            pictures.extend(self.pictures(prompts, (i * BATCH) as u64, samples, size)?);
        }
        let columns = (1..).find(|columns| columns * columns >= pictures.len()).unwrap_or(1);
        Picture::grid(&pictures, columns, 2)
    }

    fn text(&self, prompts: &[&str]) -> Result<Tensor> {
        let ids = prompts.iter().map(|prompt| Ok(self.tokenizer.encode(prompt)?.ids)).collect::<Result<Vec<_>>>()?;
        Ok(self.text_encoder.forward(&Tensor::new(ids, &Device::Cpu)?)?.last_hidden_state)
    }

    fn pictures(
        &self,
        prompts: &[String],
        first_seed: u64,
        samples: &SamplePrompts,
        (height, width): (usize, usize),
    ) -> Result<Vec<Picture>> {
        let count = prompts.len();
        let positive = Conditioning::text(self.text(&prompts.iter().map(String::as_str).collect::<Vec<_>>())?);
        let negative = Conditioning::text(self.text(&vec![""; count])?);
        let fields = ConfigFields::from_fields("scheduler", self.scheduler.clone());
        let scheduler = SchedulerChoice::of_file(fields.class_name().unwrap_or("DDIMScheduler"))?.build(&fields)?;
        let levels = scheduler.levels(samples.steps.min(fields.usize("num_train_timesteps", samples.steps)?))?;
        let space = self.autoencoder.latent_space();
        let mut noise = TorchNoise::per_image(&(first_seed..first_seed + count as u64).collect::<Vec<_>>());
        let shape = [count, space.channels, height / space.factor, width / space.factor];
        let start = (noise.normal(&shape)? * levels.init_noise_sigma())?;
        let guided = ClassifierFreeGuidance::new(self.unet, &negative, samples.guidance_scale, 0.0);
        let denoiser = Denoiser::new(&guided, &positive, scheduler.parameterization());
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
