//! Noise to latents.

use super::{Encoded, Prepared};
use crate::request::Settings;
use candle_core::Tensor;
use std::ops::ControlFlow;
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{
    AdaptiveProjectedGuidance, ClassifierFreeGuidance, Denoiser, GuidanceSchedule, Network, PerturbedAttentionGuidance,
};
use tweedie::models::UNet2DConditionModel;
use tweedie::noise::NoiseSource;
use tweedie::schedulers::{Run, Step, sample};
use tweedie::{Device, Result};

/// The denoising network.
#[derive(Debug)]
pub struct Denoise {
    unet: UNet2DConditionModel,
    device: Device,
}

impl Denoise {
    /// From its network.
    pub fn new(unet: UNet2DConditionModel, device: Device) -> Self {
        Self { unet, device }
    }

    /// The network.
    pub fn unet(&self) -> &UNet2DConditionModel {
        &self.unet
    }

    /// The device that latents live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs the solver over all levels.
    ///
    /// # Errors
    /// [`tweedie::Error::Cancelled`] if `on_step` breaks; whatever the network reports.
    pub fn run(
        &self,
        settings: &Settings,
        encoded: &Encoded,
        prepared: Prepared,
        noise: &mut dyn NoiseSource,
        on_step: &mut dyn FnMut(&Step<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let Prepared { scheduler, levels, latents } = prepared;
        let batch = latents.dim(0)?;
        let positive = encoded.positive.repeat(batch)?;
        let negative = encoded.negative.as_ref().map(|negative| negative.repeat(batch)).transpose()?;
        let schedule = settings.guidance_schedule(scheduler.schedule());
        let network = guided(&self.unet, settings, schedule, negative.as_ref());
        let denoiser = Denoiser::new(network.as_ref(), &positive, scheduler.parameterization());
        let run = Run::new(&levels, &denoiser, noise);
        sample(scheduler.solver().as_mut(), latents, 0, run, on_step)
    }
}

/// The network that the solver sees.
fn guided<'a>(
    unet: &'a UNet2DConditionModel,
    settings: &Settings,
    scale: GuidanceSchedule,
    negative: Option<&'a Conditioning>,
) -> Box<dyn Network + 'a> {
    match (negative, settings.projection) {
        _ if settings.pag_scale > 0.0 => {
            Box::new(PerturbedAttentionGuidance::new(unet, negative, scale, settings.pag_scale))
        }
        (None, _) => Box::new(unet),
        (Some(negative), None) => {
            Box::new(ClassifierFreeGuidance::new(unet, negative, scale, settings.guidance_rescale))
        }
        (Some(negative), Some(projection)) => {
            Box::new(AdaptiveProjectedGuidance::new(unet, negative, scale, projection))
        }
    }
}
