//! Inpainting and outpainting.

use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{flag, option, options, serde_by_options};
use crate::requests::text_to_image::TextToImageRequest;
use tweedie::images::{Margins, Mask, MaskResize, Photo};

options! {
    /// A request to repaint a part of a picture.
    ///
    /// What happens depends on the model's network. One that takes nine channels is shown the mask and the masked picture
    /// (Rombach et al. 2022). Any other is held to the picture by putting the known part back after every step, at
    /// the level that the state has reached.
    ///
    /// Sizes are as in [`crate::ImageToImageRequest`]. Where the mask is zero the result has the picture's own bytes,
    /// unless [`InpaintOptions::composite`] is turned off.
    #[derive(Debug, Clone)]
    pub struct InpaintRequest {
        given {
            /// The picture.
            image: Photo;
            /// Where to paint: 255 (white). Another size than the picture's is stretched to it. Without a mask it is what
            /// [`InpaintOptions::outpaint`] adds, else what is transparent in the picture.
            mask: Option<Mask>;
        }
        flat {
            /// What to draw, and how.
            text: TextToImageRequest;
        }
        options {
            /// How far to go from what is under the mask, from 0 (leave it) to 1 (start from noise).
            strength: Option<f64> = None => option(OptionKind::Number, "F").default("the model's, else 1").always_recorded();
        }
        groups {
            /// What is done to the mask, and what becomes of what is painted.
            inpaint: InpaintOptions;
        }
    }
}

/// What drawing starts from under a mask, before noise is added to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskFill {
    /// What is there.
    #[default]
    Original,
    /// Colours that grow into it from around it ([`tweedie::images::Picture::filled_from_surroundings`]).
    Surroundings,
    /// Latents that are noise, the same that is then added.
    Noise,
    /// Latents of zero.
    Nothing,
}

options! {
    /// What is done to the mask, in this order, and what becomes of what is painted.
    #[derive(Debug, Clone, PartialEq)]
    pub struct InpaintOptions {
        options {
            /// Repaint where the mask is black.
            invert_mask: bool = false => flag(FlagValue::On).always_recorded();
            /// Grow the mask by so many pixels.
            mask_grow: usize = 0 => option(OptionKind::Count, "N").default("").always_recorded();
            /// Soften the mask's edge, to both sides, by so many pixels.
            ///
            /// It is the standard deviation of a Gaussian.
            mask_blur: usize = 0 => option(OptionKind::Count, "N").default("").always_recorded();
            /// How the mask comes to another size: lanczos as diffusers does, or max, which keeps thin lines.
            mask_resize: MaskResize = MaskResize::Lanczos =>
                option(OptionKind::Choice(&["lanczos", "max"]), "NAME").always_recorded().rarely();
            /// What drawing starts from under the mask: original (what is there), surroundings (colours that grow into it from around
            /// it), noise (twice as much of it) or nothing (noise alone); as in A1111's web UI, and for a strength below 1.
            mask_fill: MaskFill = MaskFill::Original =>
                option(OptionKind::Choice(&["original", "surroundings", "noise", "nothing"]), "NAME").rarely();
            /// Work at full resolution on the mask's surroundings alone, so many pixels around it, and paste the result
            /// back.
            crop_to_mask: Option<usize> = None => option(OptionKind::Count, "PADDING");
            /// Extend the picture and fill what is new, such as left=64,right=64,top=0,bottom=32.
            outpaint: Margins = Margins::default() => option(OptionKind::Margins, "SIDE=N,...");
            /// Mix old and new over so many pixels inside the mask.
            blend: Option<usize> = None => option(OptionKind::Count, "N").excluded_by("no_composite").rarely();
            /// Save the decoder's raw picture instead of putting its masked part into the input.
            ///
            /// That is what diffusers gives, and turned off here: unmasked pixels are then near the picture's, not equal.
            composite: bool = true => flag(FlagValue::Off).named("no_composite").rarely();
            /// Run each step so often, going back in time in between, so that new parts agree with old ones (RePaint).
            resample: Option<usize> = None => option(OptionKind::Count, "N").rarely();
            /// How many steps each jump of `resample` goes back.
            jump_length: Option<usize> = None => option(OptionKind::Count, "N").rarely();
        }
    }
}

impl Default for InpaintOptions {
    fn default() -> Self {
        Self::of()
    }
}

serde_by_options!(InpaintOptions);
