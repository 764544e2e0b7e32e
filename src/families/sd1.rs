//! Stable Diffusion 1.x (Rombach et al. 2022), and latent diffusion models that are built like it.

use super::original_file::{self, UNetSize, Unsaid};
use super::original_layout::{OriginalLayout, TextPlace};
use super::unet_architecture::{Build, TEXT_ENCODER_IN_LORAS, UNET_IN_LORAS, recognise};
use super::{Architecture, Component, Family, UNetArchitecture, Variant};
use crate::Result;
use crate::checkpoints::{FileLayout, ModelFiles, TensorFile};
use crate::families::clip_encoders::ClipStates;

/// See the module.
#[derive(Debug)]
pub struct StableDiffusion1;

/// Stable Diffusion 1.x.
pub static SD1: StableDiffusion1 = StableDiffusion1;

const SIZE: UNetSize = UNetSize { channels: 320, text: 768 };

const COMPONENTS: [Component; 3] = [
    Component::text_encoder("text_encoder", "tokenizer").in_loras(&TEXT_ENCODER_IN_LORAS),
    Component::network("unet").in_loras(&UNET_IN_LORAS),
    Component::autoencoder("vae"),
];

/// Where the original code has the one text encoder, whichever it is.
pub(super) const TEXT_ENCODER: [TextPlace; 2] = [
    TextPlace::clip("text_encoder", "cond_stage_model.transformer."),
    TextPlace::open_clip("text_encoder", "cond_stage_model.model."),
];

pub(super) static LAYOUT: OriginalLayout = OriginalLayout { text_encoders: &TEXT_ENCODER };

impl Family for StableDiffusion1 {
    fn id(&self) -> &'static str {
        "sd1"
    }

    fn name(&self) -> &'static str {
        "Stable Diffusion 1.x"
    }

    fn components(&self) -> &'static [Component] {
        &COMPONENTS
    }

    fn recognise(&self, files: &ModelFiles) -> Result<Option<Variant>> {
        recognise(files, Build::One)
    }

    fn recognise_file(&self, file: &TensorFile) -> Result<Option<Variant>> {
        original_file::recognise(file, SIZE, Unsaid::Epsilon)
    }

    fn file_layout(&self) -> Option<&'static dyn FileLayout> {
        Some(&LAYOUT)
    }

    fn built_in(&self, variant: &Variant) -> Option<&'static str> {
        Some(if variant.inpainting { "sd1-inpainting" } else { "sd1" })
    }

    fn text_width(&self) -> Option<usize> {
        Some(SIZE.text)
    }

    fn architecture(&self, files: &ModelFiles) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(UNetArchitecture::read(files, &COMPONENTS, ClipStates::Last)?))
    }
}
