//! Noise to latents.

use super::{Encoded, Prepared};
use crate::requests::fast::Fast;
use crate::settings::Settings;
use candle_core::Tensor;
use std::ops::ControlFlow;
use std::sync::Arc;
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{
    AdaptiveProjectedGuidance, ClassifierFreeGuidance, Denoiser, GuidanceSchedule, InpaintingNetwork, Network,
    PerturbedAttentionGuidance,
};
use tweedie::families::DenoisingNetwork;
use tweedie::models::{ControlModel, ControlledUNet};
use tweedie::noise::NoiseSource;
use tweedie::schedulers::{Run, Step};
use tweedie::{Device, NoiseLevel, Result};

/// The denoising network.
#[derive(Debug)]
pub struct Denoise {
    network: Box<dyn DenoisingNetwork>,
    controls: Arc<Vec<ControlModel>>,
    device: Device,
}

impl Denoise {
    /// From its network.
    pub fn new(network: Box<dyn DenoisingNetwork>, device: Device) -> Self {
        Self { network, controls: Arc::default(), device }
    }

    /// The same with control models.
    #[must_use]
    pub fn with_controls(mut self, controls: Vec<ControlModel>) -> Self {
        self.controls = Arc::new(controls);
        self
    }

    /// The same control models around another network.
    #[must_use]
    pub fn with_network(&self, network: Box<dyn DenoisingNetwork>) -> Self {
        Self { network, controls: self.controls.clone(), device: self.device.clone() }
    }

    /// The control models.
    pub fn controls(&self) -> &[ControlModel] {
        &self.controls
    }

    /// The network of a run under the control of its pictures; nothing if there are none.
    ///
    /// # Errors
    /// If a control model does not take the picture that it is given.
    pub fn controlled(&self, settings: &Settings) -> Result<Option<ControlledUNet<'_>>> {
        if self.controls.is_empty() {
            return Ok(None);
        }
        let controls = self.controls.iter().zip(&settings.controls).map(|(model, control)| {
            let picture = control.picture.to_tensor(&self.device)?.affine(0.5, 0.5)?;
            model.control(&picture, control.strength, control.window)
        });
        self.network.controlled(controls.collect::<Result<_>>()?).map(Some)
    }

    /// The network.
    pub fn network(&self) -> &dyn DenoisingNetwork {
        self.network.as_ref()
    }

    /// The device that latents live on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs the solver from the prepared step to the end.
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
        let controlled = self.controlled(settings)?;
        let network: &dyn Network = match &controlled {
            Some(controlled) => controlled,
            None => self.network.as_ref(),
        };
        let Prepared { scheduler, levels, start, latents, known, shown, resampling } = prepared;
        let batch = latents.dim(0)?;
        let positive = encoded.positive.repeat(batch)?;
        let negative = encoded.negative.as_ref().map(|negative| negative.repeat(batch)).transpose()?;
        let noise_share = |level: &NoiseLevel| scheduler.noise_share(level);
        let schedule = settings.guidance_schedule(&noise_share);
        let inpainting = shown.as_ref().map(|shown| InpaintingNetwork::new(network, shown));
        let network: &dyn Network = match &inpainting {
            Some(inpainting) => inpainting,
            None => network,
        };
        let network = guided(network, settings, schedule, negative.as_ref());
        let reuse = settings.request.fast.map(Fast::schedule).transpose()?;
        let denoiser = Denoiser::new(network.as_ref(), &positive, scheduler.parameterization())
            .reusing(reuse)
            .merging_tokens(settings.request.token_merging);
        let end = levels.after(levels.len() - 1);
        let constraint = known.map(|known| {
            move |x: &mut Tensor, level: &NoiseLevel| {
                *x = known.put_back(x, level, &end)?;
                Ok(())
            }
        });
        let mut run = Run::new(&levels, &denoiser, noise);
        if let Some(constraint) = &constraint {
            run = run.constrained(constraint);
        }
        resampling.sample(scheduler.as_ref(), latents, start, run, on_step)
    }
}

/// The network that the solver sees.
fn guided<'a>(
    network: &'a dyn Network,
    settings: &Settings,
    scale: GuidanceSchedule<'a>,
    negative: Option<&'a Conditioning>,
) -> Box<dyn Network + 'a> {
    match (negative, settings.request.apg) {
        _ if settings.request.pag_scale > 0.0 => {
            Box::new(PerturbedAttentionGuidance::new(network, negative, scale, settings.request.pag_scale))
        }
        (None, _) => Box::new(network),
        (Some(negative), None) => {
            Box::new(ClassifierFreeGuidance::new(network, negative, scale, settings.guidance_rescale))
        }
        (Some(negative), Some(projection)) => {
            Box::new(AdaptiveProjectedGuidance::new(network, negative, scale, projection))
        }
    }
}
