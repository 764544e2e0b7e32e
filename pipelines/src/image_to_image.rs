//! Image to image.

use crate::canvas::Canvas;
use crate::request::{ModelFacts, Settings, TextToImageRequest};
use crate::task::{Task, check_strength};
use tweedie::Result;
use tweedie::images::Photo;

/// A request for pictures from a text and a picture (SDEdit, Meng et al. 2022).
///
/// With a width or a height the picture is resized first, and the result has that size. Otherwise the program works
/// at the picture's aspect ratio with about as many pixels as the model is made for, and the result has the
/// picture's size.
#[derive(Debug, Clone)]
pub struct ImageToImageRequest {
    /// What to draw, and how.
    pub text: TextToImageRequest,
    /// The picture to start from.
    pub image: Photo,
    /// How far to go from it, 0 to 1: that share of the steps is done. By default the model's, else 0.8.
    pub strength: Option<f64>,
}

impl ImageToImageRequest {
    /// A request with every option at its default.
    pub fn new(prompt: impl Into<String>, image: Photo) -> Self {
        let text = TextToImageRequest { prompt: prompt.into(), ..TextToImageRequest::default() };
        Self { text, image, strength: None }
    }

    /// Checks the request against a model and fills in what it leaves to it.
    pub(crate) fn settle(&self, facts: &ModelFacts) -> Result<Settings> {
        let strength = check_strength(self.strength.or(facts.defaults.strength).unwrap_or(0.8))?;
        let size = (self.text.width, self.text.height);
        let canvas = Canvas::for_image(&self.image, size, facts.native_size())?;
        self.text.settle(facts, Task::ImageToImage { canvas, strength })
    }
}
