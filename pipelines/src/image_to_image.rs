//! Image to image.

use crate::builder::{Builder, Pipeline};
use crate::canvas::Canvas;
use crate::latent_diffusion::LatentDiffusion;
use crate::requests::image_to_image::ImageToImageRequest;
use crate::settings::Settings;
use crate::task::{Task, check_strength};
use tweedie::Result;
use tweedie::images::Photo;
use tweedie::models::Halves;

/// A pipeline from a text and a picture to pictures, loaded and ready (SDEdit, Meng et al. 2022).
#[derive(Debug)]
pub struct ImageToImage(LatentDiffusion);

impl ImageToImage {
    /// Starts from the embedded model on the best device.
    pub fn builder() -> Builder<Self> {
        Builder::default()
    }

    /// Checks a request and fills in what it leaves to the model.
    ///
    /// # Errors
    /// If the request cannot be carried out; the message says what can.
    pub fn settle(&self, request: &ImageToImageRequest) -> Result<Settings> {
        let facts = self.0.facts();
        let strength = check_strength(request.strength.or(facts.defaults.strength).unwrap_or(0.8))?;
        let size = (request.text.width, request.text.height);
        let canvas = Canvas::for_image(&request.image, size, facts.native_size())?;
        request.text.settle(&facts, Task::ImageToImage { canvas, strength })
    }

    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// If the request cannot be carried out.
    pub fn generate(&self, request: &ImageToImageRequest) -> Result<Vec<Photo>> {
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

impl Pipeline for ImageToImage {
    const SHOWS_KNOWN: bool = false;
    const HALVES: Halves = Halves::Both;

    fn over(model: LatentDiffusion) -> Self {
        Self(model)
    }
}
