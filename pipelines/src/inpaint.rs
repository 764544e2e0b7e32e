//! Inpainting and outpainting.

use crate::builder::{Builder, Pipeline};
use crate::canvas::Canvas;
use crate::latent_diffusion::LatentDiffusion;
use crate::requests::inpaint::InpaintRequest;
use crate::settings::Settings;
use crate::task::{Task, check_strength};
use tweedie::Result;
use tweedie::images::Photo;
use tweedie::models::Halves;

/// A pipeline that repaints parts of pictures, loaded and ready.
///
/// What it does depends on the model's UNet. One that takes nine channels is shown the mask and the masked picture
/// (Rombach et al. 2022). Any other is held to the picture by putting the known part back after every step, at
/// the level that the state has reached.
#[derive(Debug)]
pub struct Inpaint(LatentDiffusion);

impl Inpaint {
    /// Starts from the embedded model on the best device.
    pub fn builder() -> Builder<Self> {
        Builder::default()
    }

    /// Checks a request and fills in what it leaves to the model.
    ///
    /// # Errors
    /// If the request cannot be carried out; the message says what can.
    pub fn settle(&self, request: &InpaintRequest) -> Result<Settings> {
        let facts = self.0.facts();
        let strength = check_strength(request.strength.or(facts.defaults.strength).unwrap_or(1.0))?;
        let options = request.inpaint.settle()?;
        let canvas = Canvas::for_inpainting(request, facts.native_size())?;
        request.text.settle(&facts, Task::Inpaint { canvas, strength, options })
    }

    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// If the request cannot be carried out.
    pub fn generate(&self, request: &InpaintRequest) -> Result<Vec<Photo>> {
        self.0.generate(&self.settle(request)?)
    }

    /// The loaded model, with its stages.
    pub fn model(&self) -> &LatentDiffusion {
        &self.0
    }

    /// The loaded model, to run once.
    pub fn into_model(self) -> LatentDiffusion {
        self.0
    }
}

impl Pipeline for Inpaint {
    const SHOWS_KNOWN: bool = true;
    const HALVES: Halves = Halves::Both;

    fn over(model: LatentDiffusion) -> Self {
        Self(model)
    }
}
