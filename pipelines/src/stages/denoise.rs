//! Noise to latents.

use super::{Encoded, Prepared};
use crate::request::Settings;
use candle_core::Tensor;
use std::ops::ControlFlow;
use tweedie::denoising::{ClassifierFreeGuidance, Denoiser, Network};
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
        self.run_network(&self.unet, settings, encoded, prepared, noise, on_step)
    }

    /// The same with a network in the UNet's place, for whoever wraps it.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_network(
        &self,
        network: &dyn Network,
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
        let guided = negative.as_ref().map(|negative| {
            ClassifierFreeGuidance::new(network, negative, settings.guidance_scale, settings.guidance_rescale)
        });
        let network: &dyn Network = match &guided {
            Some(guided) => guided,
            None => network,
        };
        let denoiser = Denoiser::new(network, &positive, scheduler.parameterization());
        let run = Run::new(&levels, &denoiser, noise);
        sample(scheduler.solver().as_mut(), latents, 0, run, on_step)
    }
}
