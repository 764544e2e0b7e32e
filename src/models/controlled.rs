//! A UNet under the control of pictures.

use super::controlnet::ControlNet;
use super::t2i_adapter::T2iAdapter;
use super::unet::{ControlResiduals, UNet2DConditionModel};
use crate::conditioning::Conditioning;
use crate::denoising::{Network, PerturbedNetwork};
use crate::{Error, Result};
use candle_core::Tensor;
use std::cell::Cell;

/// A network that steers a UNet by a picture.
#[derive(Debug)]
pub enum ControlModel {
    /// A ControlNet.
    ControlNet(ControlNet),
    /// A T2I-Adapter.
    Adapter(T2iAdapter),
}

impl ControlModel {
    /// A control by a picture, of which all is computed that no step changes.
    ///
    /// # Shapes
    /// `picture`: `[1, 3, height, width]`, red first, 0 to 1.
    ///
    /// # Errors
    /// If the network takes other pictures.
    pub fn control(&self, picture: &Tensor, scale: f64, window: (f64, f64)) -> Result<Control<'_>> {
        let picture = match self {
            Self::ControlNet(model) => vec![model.embed(picture)?],
            Self::Adapter(model) => model.features(picture)?,
        };
        Ok(Control { model: self, picture, scale, window })
    }
}

/// A picture's control over a run.
#[derive(Debug)]
pub struct Control<'a> {
    model: &'a ControlModel,
    /// What the model makes of the picture once.
    picture: Vec<Tensor>,
    scale: f64,
    /// The shares of the run at which it starts and ends, 0 to 1.
    window: (f64, f64),
}

impl Control<'_> {
    /// Whether it acts at evaluation `i` of `total`: all of that evaluation's share of the run must lie in the window, as
    /// in diffusers.
    fn acts(&self, i: usize, total: usize) -> bool {
        let (start, end) = self.window;
        let total = total as f64;
        i as f64 / total >= start && (i + 1) as f64 / total <= end
    }

    fn residuals(&self, x: &Tensor, timesteps: &Tensor, conditioning: &Conditioning) -> Result<ControlResiduals> {
        let rows = x.dim(0)?;
        let for_each_row = |x: &Tensor| x.repeat((rows, 1, 1, 1));
        let picture = self.picture.iter().map(for_each_row).collect::<Result<Vec<_>, _>>()?;
        match self.model {
            ControlModel::Adapter(_) => {
                let resolutions = picture.iter().map(|feature| Ok((feature * self.scale)?)).collect::<Result<_>>()?;
                Ok(ControlResiduals { resolutions, ..ControlResiduals::default() })
            }
            ControlModel::ControlNet(model) => {
                let ((_, _, height, width), (_, _, h, w)) = (x.dims4()?, picture[0].dims4()?);
                if (height, width) != (h, w) {
                    let fix = format!("the latents are {width}x{height}; the ControlNet is for another autoencoder");
                    return Err(Error::invalid("the size of the control picture's embedding", format!("{w}x{h}"), fix));
                }
                // An inpainting UNet takes more channels than the state has; a ControlNet sees the state alone.
                let x = x.narrow(1, 0, model.config().encoder.in_channels.min(x.dim(1)?))?;
                model.forward(&x, timesteps, conditioning, &picture[0], self.scale)
            }
        }
    }
}

impl ControlResiduals {
    fn plus(self, other: Self) -> Result<Self> {
        let both = |a: Vec<Tensor>, b: Vec<Tensor>| match (a.is_empty(), b.is_empty()) {
            (true, _) => Ok(b),
            (_, true) => Ok(a),
            _ if a.len() != b.len() => {
                let fix = "take control models that were made for this UNet";
                Err(Error::invalid("the number of control residuals", format!("{} and {}", a.len(), b.len()), fix))
            }
            _ => a.iter().zip(&b).map(|(a, b)| Ok((a + b)?)).collect::<Result<Vec<_>>>(),
        };
        Ok(Self {
            down: both(self.down, other.down)?,
            mid: both(self.mid.into_iter().collect(), other.mid.into_iter().collect())?.pop(),
            resolutions: both(self.resolutions, other.resolutions)?,
        })
    }
}

/// A UNet with what controls add to it, for one run: it counts its evaluations, by which controls start and end.
#[derive(Debug)]
pub struct ControlledUNet<'a> {
    unet: &'a UNet2DConditionModel,
    controls: Vec<Control<'a>>,
    evaluations: usize,
    done: Cell<usize>,
}

impl<'a> ControlledUNet<'a> {
    /// For a run of so many `evaluations`; without controls it is the UNet.
    pub fn new(unet: &'a UNet2DConditionModel, controls: Vec<Control<'a>>, evaluations: usize) -> Self {
        Self { unet, controls, evaluations: evaluations.max(1), done: Cell::new(0) }
    }

    /// What all controls that act at evaluation `i` add together, if any does.
    ///
    /// # Shapes
    /// As [`Network::forward`].
    ///
    /// # Errors
    /// If a control model does not fit the UNet.
    pub fn residuals(
        &self,
        i: usize,
        x: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
    ) -> Result<Option<ControlResiduals>> {
        let timesteps = Tensor::full(timestep as f32, x.dim(0)?, x.device())?;
        let mut sum: Option<ControlResiduals> = None;
        for control in self.controls.iter().filter(|control| control.acts(i, self.evaluations)) {
            let more = control.residuals(x, &timesteps, conditioning)?;
            sum = Some(match sum {
                Some(sum) => sum.plus(more)?,
                None => more,
            });
        }
        Ok(sum)
    }
}

impl Network for ControlledUNet<'_> {
    fn forward(&self, x: &Tensor, timestep: f64, conditioning: &Conditioning) -> Result<Tensor> {
        self.forward_perturbed(x, timestep, conditioning, 0)
    }
}

impl PerturbedNetwork for ControlledUNet<'_> {
    fn forward_perturbed(
        &self,
        x: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        perturbed: usize,
    ) -> Result<Tensor> {
        let control = self.residuals(self.done.replace(self.done.get() + 1), x, timestep, conditioning)?;
        let timesteps = Tensor::full(timestep as f32, x.dim(0)?, x.device())?;
        self.unet.run(x, &timesteps, conditioning, control.as_ref(), perturbed)
    }
}
