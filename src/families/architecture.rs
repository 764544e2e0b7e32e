//! What families make: networks without weights, and what pipelines see of those with them.

use super::Loader;
use crate::checkpoints::{ModelFiles, SingleFile};
use crate::denoising::Network;
use crate::layers::Weights;
use crate::models::{Autoencoder, Control, ControlModel, ControlledUNet, Halves, LatentSpace};
use crate::text::TextEncoder;
use crate::{DType, Error, ErrorKind, Result};
use std::fmt;

/// A model's configurations, read: what is built of its weights.
///
/// Whatever it builds is a function of configurations and weights alone, so a component can be built again from other weights,
/// such as the same ones with another adapter on top.
pub trait Architecture: fmt::Debug + Send + Sync {
    /// What is known of the denoising network before it is built.
    fn network_facts(&self) -> NetworkFacts;

    /// What the network is conditioned on.
    fn conditioning_facts(&self) -> ConditioningFacts;

    /// The denoising network. Activations have element type `activations`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    fn network(&self, weights: &Weights<'_>, activations: DType) -> Result<Box<dyn DenoisingNetwork>>;

    /// The text encoder, however many networks that are, with the names of the files that its weights came from.
    ///
    /// # Errors
    /// If tokenizers or weights cannot be had.
    fn text_encoder(&self, loader: &Loader<'_>) -> Result<(Box<dyn TextEncoder>, Vec<String>)>;

    /// Whether the network looks at what the text encoder says, once all tokens are added.
    ///
    /// # Errors
    /// If it does not.
    fn check_text(&self, _text: &dyn TextEncoder) -> Result<()> {
        Ok(())
    }

    /// The autoencoder whose files these are, in the folder `component`: the model's, or another one in its place.
    ///
    /// # Errors
    /// If its configuration cannot be used.
    fn autoencoder(&self, files: &ModelFiles, component: &str) -> Result<Box<dyn AutoencoderArchitecture>>;

    /// What the model is told as Stable Diffusion XL is, beside one text.
    ///
    /// # Errors
    /// If text encoder and network do not belong together.
    fn xl(&self, _files: &ModelFiles, _text: &dyn TextEncoder) -> Result<Option<XlFacts>> {
        Ok(None)
    }

    /// Steps and guidance where neither request nor model say them.
    fn usual_settings(&self) -> UsualSettings {
        UsualSettings::default()
    }

    /// Layers at each resolution of a UNet, by which adapters' files number its blocks.
    fn layers_per_block(&self) -> usize {
        2
    }

    /// A model that steers the network by a picture, with the names of the files that its weights came from; by default there
    /// are none.
    ///
    /// # Errors
    /// If it was made for another network.
    fn control(&self, source: ControlSource<'_>, _loader: &Loader<'_>) -> Result<(ControlModel, Vec<String>)> {
        let fix = "models of this family take none; leave it away";
        Err(Error::unusable(ErrorKind::Model, "the control model", source.place(), fix))
    }
}

/// An autoencoder's configuration, read.
pub trait AutoencoderArchitecture: fmt::Debug + Send + Sync {
    /// Channels of the pictures.
    fn picture_channels(&self) -> usize {
        3
    }

    /// What it encodes pictures to.
    fn latent_space(&self) -> LatentSpace;

    /// The autoencoder, or its decoder alone, from the files of a loader, in the folder `component`; and the names of the files.
    ///
    /// # Errors
    /// If the weights cannot be had.
    fn load(&self, loader: &Loader<'_>, component: &str, halves: Halves)
    -> Result<(Box<dyn Autoencoder>, Vec<String>)>;
}

/// The denoising network of a model, with its weights.
pub trait DenoisingNetwork: Network + fmt::Debug + Send + Sync {
    /// What is known of it.
    fn facts(&self) -> NetworkFacts;

    /// Bytes that a call holds at once at the very least, beside the weights, for `rows` latents of this size; 0 if that is not
    /// known.
    fn least_memory(&self, _rows: usize, _height: usize, _width: usize) -> u64 {
        0
    }

    /// The network under the control of pictures, for one run; by default it takes none, as all but UNets do.
    ///
    /// # Errors
    /// If it takes no control.
    fn controlled<'a>(&'a self, _controls: Vec<Control<'a>>) -> Result<ControlledUNet<'a>> {
        let fix = "models of this family take none; leave it away";
        Err(Error::unusable(ErrorKind::Model, "the control model", "loaded", fix))
    }
}

/// What requests are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkFacts {
    /// Channels that it takes: those of the latents, or with those of mask and masked picture if it is shown them.
    pub in_channels: usize,
    /// Channels that it gives: those of the latents at least.
    pub out_channels: usize,
    /// Height and width of the latents that it was trained on.
    pub sample_size: (usize, usize),
    /// Whether it takes the strength of guidance as an input, so that no second evaluation is needed.
    pub takes_guidance: bool,
    /// Whether it merges tokens where it is asked to.
    pub merges_tokens: bool,
}

/// The sizes of what a network is conditioned on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConditioningFacts {
    /// Width of the text's states.
    pub text_width: usize,
    /// Width of the pooled text; 0 if the network is told none.
    pub pooled_width: usize,
    /// How many numbers it is told of the picture, which are six as Stable Diffusion XL has them, its size, the crop and the size
    /// that is wanted, or five with a score in place of the last; 0 for none.
    pub picture_numbers: usize,
}

/// Settings of a run that neither a request nor a model's own defaults say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UsualSettings {
    /// Number of denoising steps.
    pub steps: usize,
    /// Scale of classifier-free guidance.
    pub guidance_scale: f64,
}

impl Default for UsualSettings {
    fn default() -> Self {
        Self { steps: 30, guidance_scale: 7.5 }
    }
}

/// How a model is told what Stable Diffusion XL is told: a second text, and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XlFacts {
    /// Whether no negative prompt means a conditioning of zeros instead of an empty text.
    pub zeros_for_no_prompt: bool,
    /// Whether the network takes an aesthetic score in place of the target size, as the refiner does.
    pub scored: bool,
}

/// Where a control model is.
#[derive(Debug, Clone, Copy)]
pub enum ControlSource<'a> {
    /// One file without a configuration.
    File(&'a SingleFile),
    /// A folder in diffusers layout.
    Folder {
        /// The folder around it.
        files: &'a ModelFiles,
        /// Its name.
        component: &'a str,
    },
}

impl ControlSource<'_> {
    /// Where it is, for messages.
    pub fn place(&self) -> String {
        match self {
            Self::File(file) => file.path().display().to_string(),
            Self::Folder { files, component } => files.path(component).display().to_string(),
        }
    }
}
