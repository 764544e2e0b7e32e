//! CLIP (Radford et al. 2021): a text encoder and a picture encoder, whose outputs are near each other where they belong together.

mod encoder_layer;
mod text;
mod vision;

pub use text::{ClipTextConfig, ClipTextModel, ClipTextOutput};
pub use vision::{ClipVisionConfig, ClipVisionModel};
