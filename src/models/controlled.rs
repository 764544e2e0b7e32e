//! A UNet under the control of pictures.

use super::controlnet::{ControlNet, ControlNetConfig, Strength};
use super::t2i_adapter::{T2iAdapter, T2iAdapterConfig};
use super::unet::{ControlResiduals, UNet2DConditionModel};
use crate::conditioning::Derived;
use crate::denoising::{Branch, Call, Network, Position, RowLevels};
use crate::layers::Weights;
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Tensor};
use std::cell::RefCell;

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
    /// Whether it acts at an evaluation: all of that evaluation's share of the run must lie in the window, as in diffusers.
    /// Outside of runs there are no shares, and it acts.
    fn acts(&self, position: Option<Position>) -> bool {
        let Some(Position { evaluation, total }) = position else { return true };
        let (start, end) = self.window;
        let total = total as f64;
        evaluation as f64 / total >= start && (evaluation + 1) as f64 / total <= end
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

    /// What is added to the rows of a call.
    fn residuals(&self, call: &Call<'_>) -> Result<ControlResiduals> {
        let rows = call.x.dim(0)?;
        let ControlModel::ControlNet(model) = self.model else {
            return Ok(ControlResiduals { resolutions: self.picture(rows)?, ..ControlResiduals::default() });
        };
        let prompted = call.rows(Branch::has_prompt)?;
        if !(self.strength.guess || model.config().pools) || prompted.len() == rows {
            return self.of_controlnet(model, call);
        }
        let (start, count) = (prompted.start, prompted.len());
        let x = call.x.narrow(0, start, count)?;
        let levels = match call.levels {
            RowLevels::Each(levels) => RowLevels::Each(&levels[prompted.clone()]),
            shared @ RowLevels::Shared(_) => shared,
        };
        let conditioning = self.prompted.of(call.conditioning, || call.conditioning.rows(prompted))?;
        let branches = &[Branch::Prompted];
        let some =
            self.of_controlnet(model, &Call { x: &x, levels, conditioning: &conditioning, branches, ..*call })?;
        let all = |x: Tensor| x.pad_with_zeros(0, start, rows - start - count);
        Ok(ControlResiduals {
            down: some.down.into_iter().map(all).collect::<Result<_, _>>()?,
            mid: some.mid.map(all).transpose()?,
            ..ControlResiduals::default()
        })
    }

    fn of_controlnet(&self, model: &ControlNet, call: &Call<'_>) -> Result<ControlResiduals> {
        let x = call.x;
        let picture = &self.picture(x.dim(0)?)?[0];
        let ((_, _, height, width), (_, _, h, w)) = (x.dims4()?, picture.dims4()?);
        if (height, width) != (h, w) {
            let fix = format!("the latents are {width}x{height}; the ControlNet is for another autoencoder");
            return Err(Error::unusable(
                ErrorKind::Model,
                "the size of the control picture's embedding",
                format!("{w}x{h}"),
                fix,
            ));
        }
        // An inpainting UNet takes more channels than the state has; a ControlNet sees the state alone.
        let x = &x.narrow(1, 0, model.config().encoder.in_channels.min(x.dim(1)?))?;
        model.forward(&Call { x, ..*call }, picture, self.strength)
    }
}

impl ControlResiduals {
    fn plus(self, other: Self) -> Result<Self> {
        let both = |a: Vec<Tensor>, b: Vec<Tensor>| match (a.is_empty(), b.is_empty()) {
            (true, _) => Ok(b),
            (_, true) => Ok(a),
            _ if a.len() != b.len() => {
                let fix = "take control models that were made for this UNet";
                Err(Error::unusable(
                    ErrorKind::Model,
                    "the number of control residuals",
                    format!("{} and {}", a.len(), b.len()),
                    fix,
                ))
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

/// A UNet with what controls add to it, for one run.
#[derive(Debug)]
pub struct ControlledUNet<'a> {
    unet: &'a UNet2DConditionModel,
    controls: Vec<Control<'a>>,
}

impl<'a> ControlledUNet<'a> {
    /// Without controls it is the UNet.
    pub fn new(unet: &'a UNet2DConditionModel, controls: Vec<Control<'a>>) -> Self {
        Self { unet, controls }
    }

    /// What all controls that act at a call's position add together, if any does.
    ///
    /// # Errors
    /// If a control model does not fit the UNet.
    pub fn residuals(&self, call: &Call<'_>) -> Result<Option<ControlResiduals>> {
        let mut sum: Option<ControlResiduals> = None;
        for control in self.controls.iter().filter(|control| control.acts(call.position)) {
            let more = control.residuals(call)?;
            sum = Some(match sum {
                Some(sum) => sum.plus(more)?,
                None => more,
            });
        }
        Ok(sum)
    }
}

impl Network for ControlledUNet<'_> {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        // What controls add is among what was kept.
        let control = if self.unet.reuses(call)? { None } else { self.residuals(call)? };
        self.unet.forward_controlled(call, control.as_ref())
    }
}
