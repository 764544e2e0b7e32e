//! The configuration of whichever autoencoder a model has.

use super::{Autoencoder, AutoencoderConfig, AutoencoderKl, AutoencoderTiny, AutoencoderTinyConfig, Halves};
use crate::Result;
use crate::config::ConfigFields;
use crate::layers::Weights;
use candle_core::DType;

/// The configuration of an [`Autoencoder`] of diffusers, by the class that its file names.
#[derive(Debug, Clone, PartialEq)]
pub enum EitherAutoencoderConfig {
    /// `AutoencoderKL`.
    Kl(AutoencoderConfig),
    /// `AutoencoderTiny`.
    Tiny(AutoencoderTinyConfig),
}

impl EitherAutoencoderConfig {
    /// From the fields of a `config.json`, with diffusers' defaults for those that are absent.
    ///
    /// # Errors
    /// If a field has an unusable value, or the class is another one.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        match fields.class_name() {
            None | Some("AutoencoderKL") => Ok(Self::Kl(AutoencoderConfig::from_fields(fields)?)),
            Some("AutoencoderTiny") => Ok(Self::Tiny(AutoencoderTinyConfig::from_fields(fields)?)),
            Some(_) => Err(fields.wrong("_class_name", "autoencoders are AutoencoderKL and AutoencoderTiny")),
        }
    }

    /// What both have: channels, resolutions and the latents' scale.
    pub fn common(&self) -> &AutoencoderConfig {
        match self {
            Self::Kl(config) => config,
            Self::Tiny(config) => &config.common,
        }
    }

    /// Builds the autoencoder. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn build(self, weights: &Weights<'_>, halves: Halves, dtype: DType) -> Result<Box<dyn Autoencoder>> {
        Ok(match self {
            Self::Kl(config) => Box::new(AutoencoderKl::new(weights, config, halves, dtype)?),
            Self::Tiny(config) => Box::new(AutoencoderTiny::new(weights, config, halves, dtype)?),
        })
    }
}
