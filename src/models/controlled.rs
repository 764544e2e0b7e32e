//! A UNet under the control of pictures.

use super::controlnet::{ControlNet, ControlNetConfig, Strength};
use super::t2i_adapter::{T2iAdapter, T2iAdapterConfig};
use super::unet::{ControlResiduals, UNet2DConditionModel};
use crate::conditioning::{Conditioning, Derived};
use crate::denoising::{Network, PerturbedNetwork};
use crate::layers::Weights;
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use std::cell::{Cell, RefCell};
use std::ops::Range;

/// The configuration of a [`ControlModel`].
#[derive(Debug, Clone, PartialEq)]
pub enum ControlConfig {
    /// A ControlNet's.
    ControlNet(Box<ControlNetConfig>),
    /// A T2I-Adapter's.
    Adapter(T2iAdapterConfig),
}

/// A network that steers a UNet by a picture.
#[derive(Debug)]
pub enum ControlModel {
    /// A ControlNet.
    ControlNet(Box<ControlNet>),
    /// A T2I-Adapter.
    Adapter(T2iAdapter),
}

impl ControlModel {
    /// Builds the network. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: ControlConfig, dtype: DType) -> Result<Self> {
        Ok(match config {
            ControlConfig::ControlNet(config) => Self::ControlNet(Box::new(ControlNet::new(weights, *config, dtype)?)),
            ControlConfig::Adapter(config) => Self::Adapter(T2iAdapter::new(weights, config, dtype)?),
        })
    }

    /// A control by a picture, of which all is computed that no step changes.
    ///
    /// # Shapes
    /// `picture`: `[1, 3, height, width]`, red first, 0 to 1.
    ///
    /// # Errors
    /// If the network takes other pictures.
    pub fn control(&self, picture: &Tensor, strength: Strength, window: (f64, f64)) -> Result<Control<'_>> {
        let picture = match self {
            Self::ControlNet(model) => vec![model.embed(picture)?],
            Self::Adapter(model) => {
                let features = model.features(picture)?.into_iter();
                features.map(|feature| Ok((feature * strength.scale)?)).collect::<Result<_>>()?
            }
        };
        Ok(Control { model: self, picture: RefCell::new(picture), prompted: Derived::default(), strength, window })
    }
}

/// A picture's control over a run.
#[derive(Debug)]
pub struct Control<'a> {
    model: &'a ControlModel,
    /// What the model makes of the picture once, an adapter's times the scale; repeated for as many rows as the batch
    /// before had.
    picture: RefCell<Vec<Tensor>>,
    /// The prompted rows of the conditioning, where it sees those alone.
    prompted: Derived,
    strength: Strength,
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

    /// What the model makes of the picture, for each row of a batch.
    fn picture(&self, rows: usize) -> Result<Vec<Tensor>> {
        let mut picture = self.picture.borrow_mut();
        for part in picture.iter_mut() {
            if part.dim(0)? != rows {
                *part = part.narrow(0, 0, 1)?.repeat((rows, 1, 1, 1))?;
            }
        }
        Ok(picture.clone())
    }

    /// What is added to the rows of a batch, of which `prompted` have the prompt.
    fn residuals(
        &self,
        x: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
        prompted: Range<usize>,
    ) -> Result<ControlResiduals> {
        let rows = x.dim(0)?;
        let ControlModel::ControlNet(model) = self.model else {
            return Ok(ControlResiduals { resolutions: self.picture(rows)?, ..ControlResiduals::default() });
        };
        if !(self.strength.guess || model.config().pools) || prompted.len() == rows {
            return self.of_controlnet(model, x, timesteps, conditioning);
        }
        let (start, count) = (prompted.start, prompted.len());
        let (x, timesteps) = (x.narrow(0, start, count)?, timesteps.narrow(0, start, count)?);
        let prompted = self.prompted.of(conditioning, || conditioning.rows(prompted))?;
        let some = self.of_controlnet(model, &x, &timesteps, &prompted)?;
        let all = |x: Tensor| x.pad_with_zeros(0, start, rows - start - count);
        Ok(ControlResiduals {
            down: some.down.into_iter().map(all).collect::<Result<_, _>>()?,
            mid: some.mid.map(all).transpose()?,
            ..ControlResiduals::default()
        })
    }

    fn of_controlnet(
        &self,
        model: &ControlNet,
        x: &Tensor,
        timesteps: &Tensor,
        conditioning: &Conditioning,
    ) -> Result<ControlResiduals> {
        let picture = &self.picture(x.dim(0)?)?[0];
        let ((_, _, height, width), (_, _, h, w)) = (x.dims4()?, picture.dims4()?);
        if (height, width) != (h, w) {
            let fix = format!("the latents are {width}x{height}; the ControlNet is for another autoencoder");
            return Err(Error::invalid("the size of the control picture's embedding", format!("{w}x{h}"), fix));
        }
        // An inpainting UNet takes more channels than the state has; a ControlNet sees the state alone.
        let x = x.narrow(1, 0, model.config().encoder.in_channels.min(x.dim(1)?))?;
        model.forward(&x, timesteps, conditioning, picture, self.strength)
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
    images: usize,
    evaluations: usize,
    done: Cell<usize>,
}

impl<'a> ControlledUNet<'a> {
    /// For a run of so many `evaluations` of so many `images` at a time; without controls it is the UNet.
    pub fn new(unet: &'a UNet2DConditionModel, controls: Vec<Control<'a>>, images: usize, evaluations: usize) -> Self {
        Self { unet, controls, images, evaluations: evaluations.max(1), done: Cell::new(0) }
    }

    /// The rows that have the prompt. Guidance puts those without it first, perturbed attention after all others; its
    /// perturbed rows have it too.
    fn prompted(&self, rows: usize, perturbed: usize) -> Range<usize> {
        match perturbed {
            0 => rows.saturating_sub(self.images)..rows,
            _ => 0..(perturbed + self.images).min(rows),
        }
    }

    /// What all controls that act at evaluation `i` add together, if any does.
    ///
    /// # Shapes
    /// As [`PerturbedNetwork::forward_perturbed`].
    ///
    /// # Errors
    /// If a control model does not fit the UNet.
    pub fn residuals(
        &self,
        i: usize,
        x: &Tensor,
        timestep: f64,
        conditioning: &Conditioning,
        perturbed: usize,
    ) -> Result<Option<ControlResiduals>> {
        let prompted = self.prompted(x.dim(0)?, perturbed);
        let timesteps = Tensor::full(timestep as f32, x.dim(0)?, x.device())?;
        let mut sum: Option<ControlResiduals> = None;
        for control in self.controls.iter().filter(|control| control.acts(i, self.evaluations)) {
            let more = control.residuals(x, &timesteps, conditioning, prompted.clone())?;
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
        let i = self.done.replace(self.done.get() + 1);
        let control = self.residuals(i, x, timestep, conditioning, perturbed)?;
        let timesteps = Tensor::full(timestep as f32, x.dim(0)?, x.device())?;
        self.unet.run(x, &timesteps, conditioning, control.as_ref(), perturbed)
    }
}
