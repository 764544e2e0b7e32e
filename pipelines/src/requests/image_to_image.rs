//! Image to image.

use crate::requests::kind::OptionKind;
use crate::requests::options::{option, options};
use crate::requests::text_to_image::TextToImageRequest;
use tweedie::images::Photo;

options! {
    /// A request for pictures from a text and a picture (SDEdit, Meng et al. 2022).
    ///
    /// With a width or a height the picture is resized first, and the result has that size. Otherwise the program works
    /// at the picture's aspect ratio with about as many pixels as the model is made for, and the result has the
    /// picture's size.
    #[derive(Debug, Clone)]
    pub struct ImageToImageRequest {
        given {
            /// The picture to start from.
            image: Photo;
        }
        flat {
            /// What to draw, and how.
            text: TextToImageRequest;
        }
        options {
            /// How far to go from it, from 0 (leave it) to 1.
            ///
            /// That share of the steps is done.
            strength: Option<f64> = None => option(OptionKind::Number, "F").default("the model's, else 0.8").always_recorded();
        }
    }
}
