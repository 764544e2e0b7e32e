//! A request of any task.

use crate::requests::image_to_image::ImageToImageRequest;
use crate::requests::inpaint::InpaintRequest;
use crate::requests::text_to_image::TextToImageRequest;

/// What a model is asked for.
#[derive(Debug, Clone, Copy)]
pub enum Request<'a> {
    /// Pictures from a text.
    TextToImage(&'a TextToImageRequest),
    /// Pictures from a text and a picture.
    ImageToImage(&'a ImageToImageRequest),
    /// A part of a picture painted anew.
    Inpaint(&'a InpaintRequest),
}

impl<'a> From<&'a TextToImageRequest> for Request<'a> {
    fn from(request: &'a TextToImageRequest) -> Self {
        Self::TextToImage(request)
    }
}

impl<'a> From<&'a ImageToImageRequest> for Request<'a> {
    fn from(request: &'a ImageToImageRequest) -> Self {
        Self::ImageToImage(request)
    }
}

impl<'a> From<&'a InpaintRequest> for Request<'a> {
    fn from(request: &'a InpaintRequest) -> Self {
        Self::Inpaint(request)
    }
}
