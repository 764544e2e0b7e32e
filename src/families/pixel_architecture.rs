//! What families of models in pixel space make: a network that draws pictures themselves, from noise or of a class.

use crate::checkpoints::ModelFiles;
use crate::denoising::Network;
use crate::layers::Weights;
use crate::models::unet2d::ClassEmbedding;
use crate::models::{UNet2DConfig, UNet2DModel};
use crate::{DType, Error, ErrorKind, Result};
use serde_json::Value;
use std::fmt;

/// The denoising network of a model in pixel space, with its weights.
pub trait PixelNetwork: Network + fmt::Debug + Send + Sync {}

impl<N: Network + fmt::Debug + Send + Sync> PixelNetwork for N {}

/// The configurations of a model in pixel space, read.
pub trait PixelArchitecture: fmt::Debug + Send + Sync {
    /// What is known of the network before it is built.
    fn facts(&self) -> PixelFacts;

    /// The network. Activations have element type `activations`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    fn network(&self, weights: &Weights<'_>, activations: DType) -> Result<Box<dyn PixelNetwork>>;
}

/// What requests for pictures of a model in pixel space are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelFacts {
    /// Channels of the pictures: 1 or 3.
    pub channels: usize,
    /// Whether the network gives as many channels again, for the variance of the reverse step.
    pub learned_variance: bool,
    /// Height and width of the pictures that it was trained on.
    pub sample_size: (usize, usize),
    /// Classes of pictures that it can be asked for; 0 if there are none.
    pub classes: usize,
    /// The class that stands for none, which guidance needs.
    pub null_class: Option<usize>,
}

/// A UNet with classes or without.
#[derive(Debug)]
pub(super) struct UNet2DArchitecture {
    config: UNet2DConfig,
    facts: PixelFacts,
}

impl UNet2DArchitecture {
    /// From a model's files, if pictures can be made of what the network gives.
    pub fn read(files: &ModelFiles) -> Result<Self> {
        let config = UNet2DConfig::from_fields(&files.config("unet", "config.json")?)?;
        if files.exists("vae/config.json") || files.exists("vqvae/config.json") {
            let fix =
                "the model works on an autoencoder's latents, which `sample` does not decode; give one in pixel space";
            return Err(Error::unusable(ErrorKind::Model, "the model", files.path("").display(), fix));
        }
        let facts = pixel_facts(&config).map_err(|(field, value, expected)| {
            let path = files.path("unet/config.json");
            Error::unusable(ErrorKind::Model, format!("{field} in {}", path.display()), value, expected)
        })?;
        Ok(Self { config, facts })
    }
}

impl PixelArchitecture for UNet2DArchitecture {
    fn facts(&self) -> PixelFacts {
        self.facts
    }

    fn network(&self, weights: &Weights<'_>, activations: DType) -> Result<Box<dyn PixelNetwork>> {
        Ok(Box::new(UNet2DModel::new(weights, self.config.clone(), activations)?))
    }
}

/// What is known of a network; if it does not give pictures, which field says so, its value, and what it should be.
fn pixel_facts(config: &UNet2DConfig) -> Result<PixelFacts, (&'static str, Value, &'static str)> {
    let UNet2DConfig { in_channels: channels, out_channels, null_class, .. } = *config;
    if channels != 1 && channels != 3 {
        let expected = "pictures have 1 or 3 channels; give a model in pixel space";
        return Err(("in_channels", channels.into(), expected));
    }
    if out_channels != channels && out_channels != 2 * channels {
        let expected = "it must be in_channels, or twice that if the variance is learned";
        return Err(("out_channels", out_channels.into(), expected));
    }
    let Some(sample_size) = config.sample_size else {
        return Err(("sample_size", Value::Null, "set the side of the pictures that the model was trained on"));
    };
    let unnumbered = match config.class_embedding {
        ClassEmbedding::None | ClassEmbedding::Table(_) => None,
        ClassEmbedding::Timestep => Some("timestep"),
        ClassEmbedding::Identity => Some("identity"),
    };
    if let Some(kind) = unnumbered {
        return Err(("class_embed_type", kind.into(), "`sample` takes numbered classes"));
    }
    let learned_variance = out_channels == 2 * channels;
    Ok(PixelFacts { channels, learned_variance, sample_size, classes: config.num_classes(), null_class })
}
