//! Stable Diffusion 2.x: OpenCLIP's text encoder without its last layer, linear layers around the UNet's transformers, and
//! models that predict v; and latent diffusion models that are built like it.

use super::clip_encoders::ClipStates;
use super::original_file::{self, UNetSize, Unsaid};
use super::original_layout::OriginalLayout;
use super::unet_architecture::{Build, TEXT_ENCODER_IN_LORAS, UNET_IN_LORAS, recognise};
use super::{Architecture, Component, Family, UNetArchitecture, Variant};
use crate::Result;
use crate::checkpoints::{FileLayout, ModelFiles, TensorFile};

/// See the module.
#[derive(Debug)]
pub struct StableDiffusion2;

/// Stable Diffusion 2.x.
pub static SD2: StableDiffusion2 = StableDiffusion2;

const SIZE: UNetSize = UNetSize { channels: 320, text: 1024 };

const COMPONENTS: [Component; 3] = [
    Component::text_encoder("text_encoder", "tokenizer").in_loras(&TEXT_ENCODER_IN_LORAS),
    Component::network("unet").in_loras(&UNET_IN_LORAS),
    Component::autoencoder("vae"),
];

static LAYOUT: OriginalLayout = OriginalLayout { text_encoders: &super::sd1::TEXT_ENCODER };

impl Family for StableDiffusion2 {
    fn id(&self) -> &'static str {
        "sd2"
    }

    fn name(&self) -> &'static str {
        "Stable Diffusion 2.x"
    }

    fn components(&self) -> &'static [Component] {
        &COMPONENTS
    }

    fn recognise(&self, files: &ModelFiles) -> Result<Option<Variant>> {
        recognise(files, Build::Two)
    }

    fn recognise_file(&self, file: &TensorFile) -> Result<Option<Variant>> {
        original_file::recognise(file, SIZE, Unsaid::Guessed)
    }

    fn file_layout(&self) -> Option<&'static dyn FileLayout> {
        Some(&LAYOUT)
    }

    fn built_in(&self, variant: &Variant) -> Option<&'static str> {
        Some(match (variant.inpainting, variant.prediction.kind.is_v()) {
            (true, _) => "sd2-inpainting",
            (false, false) => "sd2",
            (false, true) => "sd2-v",
        })
    }

    fn text_width(&self) -> Option<usize> {
        Some(SIZE.text)
    }

    fn architecture(&self, files: &ModelFiles) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(UNetArchitecture::read(files, &COMPONENTS, ClipStates::Last)?))
    }
}
