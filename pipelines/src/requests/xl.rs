//! What a request says for Stable Diffusion XL alone: a second prompt, and the sizes of the pictures that it was trained on
//! (Podell et al. 2023, sections 2.2 and 2.3).

use crate::requests::kind::OptionKind;
use crate::requests::options::{OptionInfo, json, option, options, serde_by_options};

/// Height and width, or a position as y and x, in pixels.
pub type Pixels = (usize, usize);

options! {
    /// What a request says for models of this family; other models pass over it.
    #[derive(Debug, Clone, PartialEq)]
    pub struct XlRequest {
        options {
            /// What the second text encoder reads.
            prompt_2: Option<String> = None => of_xl(OptionKind::Text, "TEXT").default("the prompt");
            /// What the second text encoder reads to stay away from.
            negative_prompt_2: Option<String> = None => of_xl(OptionKind::Text, "TEXT").default("the negative prompt");
        }
        groups {
            /// Of the picture that is wanted.
            sizes: SizeRequest;
            /// Of the picture to stay away from.
            negative_sizes: NegativeSizeRequest;
        }
    }
}

options! {
    /// Sizes of the picture that is wanted, where a request states them.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct SizeRequest {
        options {
            /// The size that the model takes the picture to have had before it was made smaller.
            original: Option<Pixels> = None =>
                of_xl(OptionKind::Size, "HxW").named("original_size").default("the picture's");
            /// The size that the model takes the picture to have.
            target: Option<Pixels> = None =>
                of_xl(OptionKind::Size, "HxW").named("target_size").default("the picture's");
            /// Where the model takes the picture to have been cut out.
            crop_top_left: Option<Pixels> = None => of_xl(OptionKind::Corner, "Y,X").default("0,0");
            /// How well people like the picture, of 10: what the refiner is told in place of a target size.
            aesthetic_score: Option<f64> = None => json().default("6");
        }
    }
}

options! {
    /// Sizes of the picture to stay away from, where a request states them.
    #[derive(Debug, Clone, Copy, PartialEq)]
    pub struct NegativeSizeRequest {
        options {
            /// The original size of what to stay away from.
            original: Option<Pixels> = None =>
                of_xl(OptionKind::Size, "HxW").named("negative_original_size").default("that of the prompt");
            /// The target size of what to stay away from.
            target: Option<Pixels> = None =>
                of_xl(OptionKind::Size, "HxW").named("negative_target_size").default("that of the prompt");
            /// The corner of what to stay away from.
            crop_top_left: Option<Pixels> = None =>
                of_xl(OptionKind::Corner, "Y,X").named("negative_crop_top_left").default("0,0");
            /// The score of what to stay away from, for the refiner.
            aesthetic_score: Option<f64> = None => json().named("negative_aesthetic_score").default("2.5");
        }
    }
}

impl Default for XlRequest {
    fn default() -> Self {
        Self::of()
    }
}

impl Default for SizeRequest {
    fn default() -> Self {
        Self::of()
    }
}

impl Default for NegativeSizeRequest {
    fn default() -> Self {
        Self::of()
    }
}

serde_by_options!(XlRequest, SizeRequest, NegativeSizeRequest);

fn of_xl(kind: OptionKind, value_name: &'static str) -> OptionInfo {
    option(kind, value_name).under("Stable Diffusion XL").rarely()
}
