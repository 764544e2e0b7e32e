//! Text to image.

use crate::builder::{Builder, Pipeline};
use crate::latent_diffusion::LatentDiffusion;
use crate::requests::text_to_image::TextToImageRequest;
use crate::settings::Settings;
use crate::task::Task;
use tweedie::Result;
use tweedie::images::{Photo, Picture};
use tweedie::models::Halves;

/// A pipeline from text to pictures, loaded and ready.
#[derive(Debug)]
pub struct TextToImage(LatentDiffusion);

impl TextToImage {
    /// Starts from the embedded model on the best device.
    pub fn builder() -> Builder<Self> {
        Builder::default()
    }

    /// Checks a request and fills in what it leaves to the model.
    ///
    /// # Errors
    /// If the request cannot be carried out; the message says what can.
    pub fn settle(&self, request: &TextToImageRequest) -> Result<Settings> {
        request.settle(&self.0.facts(), Task::TextToImage)
    }

    /// Makes the pictures of a request.
    ///
    /// # Errors
    /// If the request cannot be carried out.
    pub fn generate(&self, request: &TextToImageRequest) -> Result<Vec<Picture>> {
        let pictures = self.0.generate(&self.settle(request)?)?;
        Ok(pictures.iter().map(Photo::to_picture).collect())
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

impl Pipeline for TextToImage {
    const SHOWS_KNOWN: bool = false;
    const HALVES: Halves = Halves::Decoder;

    fn over(model: LatentDiffusion) -> Self {
        Self(model)
    }
}
