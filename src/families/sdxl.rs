//! Stable Diffusion XL (Podell et al. 2023) and its refiner: the last but one states of two text encoders side by side, or of
//! the second alone, the second one's pooled text, and sizes.

use super::clip_encoders::ClipStates;
use super::original_file::{self, UNetSize, Unsaid};
use super::original_layout::{OriginalLayout, TextPlace};
use super::unet_architecture::{Build, TEXT_ENCODER_IN_LORAS, UNET_IN_LORAS, recognise};
use super::{Architecture, Component, Family, UNetArchitecture, Variant};
use crate::Result;
use crate::checkpoints::{FileLayout, ModelFiles, TensorFile};

/// What the second text encoder is called in LoRA files.
const TEXT_ENCODER_2_IN_LORAS: [&str; 3] = ["lora_te2_", "text_encoder_2.", "clip_g."];

/// One of the two.
#[derive(Debug)]
pub struct StableDiffusionXl {
    id: &'static str,
    name: &'static str,
    size: UNetSize,
    build: Build,
    components: &'static [Component],
    layout: &'static OriginalLayout,
    built_in: fn(&Variant) -> Option<&'static str>,
}

/// Stable Diffusion XL.
pub static SDXL: StableDiffusionXl = StableDiffusionXl {
    id: "sdxl",
    name: "Stable Diffusion XL",
    size: UNetSize { channels: 320, text: 2048 },
    build: Build::Xl,
    components: &[
        Component::text_encoder("text_encoder", "tokenizer").in_loras(&TEXT_ENCODER_IN_LORAS),
        Component::text_encoder("text_encoder_2", "tokenizer_2").in_loras(&TEXT_ENCODER_2_IN_LORAS),
        Component::network("unet").in_loras(&UNET_IN_LORAS),
        Component::autoencoder("vae"),
    ],
    layout: &OriginalLayout {
        text_encoders: &[
            TextPlace::clip("text_encoder", "conditioner.embedders.0.transformer."),
            TextPlace::projecting("text_encoder_2", "conditioner.embedders.1.model."),
        ],
    },
    built_in: |variant| Some(if variant.inpainting { "sdxl-inpainting" } else { "sdxl" }),
};

/// The refiner of Stable Diffusion XL.
pub static SDXL_REFINER: StableDiffusionXl = StableDiffusionXl {
    id: "sdxl-refiner",
    name: "Stable Diffusion XL refiner",
    size: UNetSize { channels: 384, text: 1280 },
    build: Build::XlRefiner,
    components: &[
        Component::text_encoder("text_encoder_2", "tokenizer_2").in_loras(&TEXT_ENCODER_2_IN_LORAS),
        Component::network("unet").in_loras(&UNET_IN_LORAS),
        Component::autoencoder("vae"),
    ],
    layout: &OriginalLayout {
        text_encoders: &[TextPlace::projecting("text_encoder_2", "conditioner.embedders.0.model.")],
    },
    built_in: |variant| (!variant.inpainting).then_some("sdxl-refiner"),
};

impl Family for StableDiffusionXl {
    fn id(&self) -> &'static str {
        self.id
    }

    fn name(&self) -> &'static str {
        self.name
    }

    fn components(&self) -> &'static [Component] {
        self.components
    }

    fn recognise(&self, files: &ModelFiles) -> Result<Option<Variant>> {
        recognise(files, self.build)
    }

    fn recognise_file(&self, file: &TensorFile) -> Result<Option<Variant>> {
        original_file::recognise(file, self.size, Unsaid::Epsilon)
    }

    fn file_layout(&self) -> Option<&'static dyn FileLayout> {
        Some(self.layout)
    }

    fn built_in(&self, variant: &Variant) -> Option<&'static str> {
        (self.built_in)(variant)
    }

    fn text_width(&self) -> Option<usize> {
        Some(self.size.text)
    }

    fn architecture(&self, files: &ModelFiles) -> Result<Box<dyn Architecture>> {
        Ok(Box::new(UNetArchitecture::read(files, self.components, ClipStates::LastButOne)?))
    }
}
