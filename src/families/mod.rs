//! Families of models: what a model is made of, how it is recognised, and how it is built from its files.
//!
//! A [`Family`] knows everything that differs between kinds of models and says it in one file: its components, the tensors and
//! configurations by which it is known, the names in files of its code base, the built-in configurations, the text encoders
//! and how what they say is joined, the usual settings. [`Families`] is the list that is searched, by one detector for folders
//! and one for files; a family from outside this crate joins it with [`Families::with`]. From a model's configurations a
//! family makes an [`Architecture`], and that makes of weights what pipelines run: a
//! [`TextEncoder`](crate::text::TextEncoder), a [`DenoisingNetwork`], an [`Autoencoder`](crate::models::Autoencoder); or, in
//! pixel space, a [`PixelArchitecture`], which makes a [`PixelNetwork`].
//!
//! What a network predicts and whether it is shown a known picture are facts of a model, not families of their own.
//!
//! | family | is in | components |
//! |---|---|---|
//! | Stable Diffusion 1.x | `sd1.rs` | text encoder, UNet, autoencoder |
//! | Stable Diffusion 2.x | `sd2.rs` | text encoder, UNet, autoencoder |
//! | Stable Diffusion XL | `sdxl.rs` | two text encoders, UNet, autoencoder |
//! | Stable Diffusion XL refiner | `sdxl.rs` | the second text encoder, UNet, autoencoder |
//! | pixel space | `pixel.rs` | UNet |
//!
//! # Examples
//!
//! ```
//! use tweedie::families::{Families, Loader};
//! use tweedie::models::Halves;
//! use tweedie::Device;
//! use tweedie_pipelines::Model;
//!
//! let files = Model::Embedded.files()?;
//! let detected = Families::built_in().detect(&files)?;
//! assert_eq!(detected.family.id(), "sd1");
//! let architecture = detected.family.architecture(&files)?;
//! let loader = Loader::new(&files, &Device::Cpu);
//! let (autoencoder, _) = architecture.autoencoder(&files, "vae")?.load(&loader, "vae", Halves::Decoder)?;
//! assert_eq!(autoencoder.latent_space().factor, 8);
//! # Ok::<_, tweedie::Error>(())
//! ```

mod architecture;
mod clip_encoders;
mod control_file;
mod control_model;
mod convert;
mod file_prediction;
mod inferred;
mod loader;
mod original_file;
mod original_layout;
mod original_names;
mod picture_classifier;
mod pixel;
mod pixel_architecture;
mod registry;
mod sd1;
mod sd2;
mod sdxl;
mod unet_architecture;

pub use architecture::{
    Architecture, AutoencoderArchitecture, ConditioningFacts, ControlSource, DenoisingNetwork, NetworkFacts,
    UsualSettings, XlFacts,
};
pub use clip_encoders::text_network;
pub use convert::{FileFormat, convert_to_file, convert_to_folder};
pub use file_prediction::{FilePrediction, PredictionOfFile};
pub use loader::{KeptWeights, Loader};
pub use picture_classifier::{ClassifierFacts, PictureClassifier, load_classifier};
pub use pixel::PIXEL;
pub use pixel_architecture::{PixelArchitecture, PixelFacts, PixelNetwork};
pub use registry::{Detected, Drawn, FAMILIES, Families};
pub use sd1::SD1;
pub use sd2::SD2;
pub use sdxl::{SDXL, SDXL_REFINER};
pub use unet_architecture::{UNetArchitecture, autoencoder_config};

use crate::Result;
use crate::adapters::{LoraComponent, LoraTarget};
use crate::checkpoints::{ComponentKind, FileLayout, ModelFiles, TensorFile};
use std::fmt;

/// A family of models.
pub trait Family: fmt::Debug + Send + Sync {
    /// Its short name, which is not shown to users.
    fn id(&self) -> &'static str;

    /// What messages call it.
    fn name(&self) -> &'static str;

    /// The folders of a model that hold weights, text encoders first, in the order in which they read texts.
    fn components(&self) -> &'static [Component];

    /// What is known of a model from its configurations, if it belongs here.
    ///
    /// # Errors
    /// If it seems to, and a configuration cannot be used.
    fn recognise(&self, files: &ModelFiles) -> Result<Option<Variant>>;

    /// What is known of a model from the tensors of the one file that it comes as, if it belongs here; by default nothing does.
    ///
    /// # Errors
    /// If it belongs here and cannot be used.
    fn recognise_file(&self, _file: &TensorFile) -> Result<Option<Variant>> {
        Ok(None)
    }

    /// Where files with a whole model have its components; nothing if there are no such files.
    fn file_layout(&self) -> Option<&'static dyn FileLayout> {
        None
    }

    /// The name of the configurations that go with a file of this variant without any, if a program has them.
    fn built_in(&self, _variant: &Variant) -> Option<&'static str> {
        None
    }

    /// The width of the text that the network's cross-attention looks at, by which adapters tell what they were made for.
    fn text_width(&self) -> Option<usize> {
        None
    }

    /// What the names in LoRA files mean for a model whose UNet has so many layers at each resolution.
    fn lora_target(&self, layers_per_block: usize) -> LoraTarget {
        let changed = self.components().iter().filter(|component| !component.lora_prefixes.is_empty());
        let components = changed.map(|&Component { folder, kind, lora_prefixes: prefixes, .. }| {
            let is_network = kind == ComponentKind::Network;
            LoraComponent { folder, is_network, prefixes }
        });
        let families = FAMILIES.iter().filter_map(|family| Some((family.text_width()?, family.name()))).collect();
        LoraTarget { components: components.collect(), layers_per_block, families }
    }

    /// What can be built of a model's weights, from its configurations.
    ///
    /// # Errors
    /// If a configuration cannot be used, or models of this family make no pictures from texts.
    fn architecture(&self, files: &ModelFiles) -> Result<Box<dyn Architecture>>;

    /// The same of models that draw pictures themselves, from noise or of a class; by default models of a family do not.
    ///
    /// # Errors
    /// If a configuration cannot be used.
    fn pixel_architecture(&self, _files: &ModelFiles) -> Result<Option<Box<dyn PixelArchitecture>>> {
        Ok(None)
    }
}

/// A folder of a model that holds weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// Its name in diffusers layout.
    pub folder: &'static str,
    /// What it does.
    pub kind: ComponentKind,
    /// The folder of its tokenizer, for text encoders.
    pub tokenizer: Option<&'static str>,
    /// What the names of its tensors begin with in LoRA files of any kind; none if LoRAs do not change it.
    pub lora_prefixes: &'static [&'static str],
}

impl Component {
    /// A text encoder with its tokenizer's folder.
    pub const fn text_encoder(folder: &'static str, tokenizer: &'static str) -> Self {
        Self { folder, kind: ComponentKind::TextEncoder, tokenizer: Some(tokenizer), lora_prefixes: &[] }
    }

    /// The denoising network.
    pub const fn network(folder: &'static str) -> Self {
        Self { folder, kind: ComponentKind::Network, tokenizer: None, lora_prefixes: &[] }
    }

    /// The autoencoder.
    pub const fn autoencoder(folder: &'static str) -> Self {
        Self { folder, kind: ComponentKind::Autoencoder, tokenizer: None, lora_prefixes: &[] }
    }

    /// The same, which LoRAs change.
    #[must_use]
    pub const fn in_loras(self, lora_prefixes: &'static [&'static str]) -> Self {
        Self { lora_prefixes, ..self }
    }
}

/// What is known of a model beside its family.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Variant {
    /// Whether the network is shown the mask and the masked picture.
    pub inpainting: bool,
    /// What its one file says of what it predicts. Of a folder its scheduler's file says it.
    pub prediction: PredictionOfFile,
    /// What messages call it, if not by the family's name.
    pub description: Option<String>,
}
