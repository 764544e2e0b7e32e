//! Inpainting and outpainting.

use crate::canvas::Canvas;
use crate::request::{ModelFacts, Settings, TextToImageRequest};
use crate::task::{Task, check_strength};
use tweedie::images::{Margins, Mask, MaskResize, Photo};
use tweedie::schedulers::Resampling;
use tweedie::{Error, Result};

/// A request to repaint a part of a picture.
///
/// What happens depends on the model's network. One that takes nine channels is shown the mask and the masked picture
/// (Rombach et al. 2022). Any other is held to the picture by putting the known part back after every step, at
/// the level that the state has reached.
///
/// Sizes are as in [`crate::ImageToImageRequest`]. Where the mask is zero the result has the picture's own bytes,
/// unless [`Composite::Decoded`] is asked for.
#[derive(Debug, Clone)]
pub struct InpaintRequest {
    /// What to draw, and how.
    pub text: TextToImageRequest,
    /// The picture.
    pub image: Photo,
    /// Where to paint: 255 (white). Another size than the picture's is stretched to it. Without a mask only
    /// [`Self::outpaint`] is painted.
    pub mask: Option<Mask>,
    /// What is done to the mask before it is used.
    pub shaping: MaskShaping,
    /// How far to go from what is under the mask, 0 to 1; at 1 it starts from pure noise. By default the model's,
    /// else 1.
    pub strength: Option<f64>,
    /// How often the steps are repeated, so that what is painted comes to agree with what is known.
    pub resampling: Resampling,
    /// Work on the mask's surroundings alone, so many pixels around it, at full resolution, and paste the result back.
    pub crop_to_mask: Option<usize>,
    /// New pixels around the picture, to be painted.
    pub outpaint: Margins,
    /// What becomes of the decoder's picture.
    pub composite: Composite,
}

/// What is done to a mask before it is used, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MaskShaping {
    /// Paint where the mask is black.
    pub invert: bool,
    /// Grow the mask by so many pixels.
    pub grow: usize,
    /// Soften its edge by a Gaussian of so many pixels.
    pub blur: usize,
    /// How it comes to another size.
    pub resize: MaskResize,
}

/// What becomes of the decoder's picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Composite {
    /// It is the result: what diffusers gives. Unmasked pixels are near the picture's, not equal.
    Decoded,
    /// Its masked part is put into the picture; over so many pixels inside the mask the two are mixed.
    Blend(usize),
}

impl Default for Composite {
    fn default() -> Self {
        Self::Blend(0)
    }
}

impl InpaintRequest {
    /// A request with every option at its default.
    pub fn new(prompt: impl Into<String>, image: Photo, mask: Option<Mask>) -> Self {
        Self {
            text: TextToImageRequest { prompt: prompt.into(), ..TextToImageRequest::default() },
            image,
            mask,
            shaping: MaskShaping::default(),
            strength: None,
            resampling: Resampling::default(),
            crop_to_mask: None,
            outpaint: Margins::default(),
            composite: Composite::default(),
        }
    }

    /// Checks the request against a model and fills in what it leaves to it.
    pub(crate) fn settle(&self, facts: &ModelFacts) -> Result<Settings> {
        let strength = check_strength(self.strength.or(facts.defaults.strength).unwrap_or(1.0))?;
        let Resampling { times, jump_length } = self.resampling;
        for (what, count) in [("resample", times), ("the jump length", jump_length)] {
            if !(1..=1000).contains(&count) {
                return Err(Error::invalid(what, count, "take 1 (no repetition) to 1000"));
            }
        }
        let canvas = Canvas::for_inpainting(self, facts.native_size())?;
        self.text.settle(facts, Task::Inpaint { canvas, strength, resampling: self.resampling })
    }
}
