//! Whichever autoencoder a model has.

use super::{
    AutoencoderConfig, AutoencoderKl, AutoencoderTiny, AutoencoderTinyConfig, DiagonalGaussian, Halves, Watch,
};
use crate::Result;
use crate::config::ConfigFields;
use crate::layers::Weights;
use candle_core::{DType, Tensor};
use std::ops::ControlFlow;

/// The configuration of an [`Autoencoder`], by the class that its file names.
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
}

/// The large autoencoder or the tiny one.
#[derive(Debug)]
pub enum Autoencoder {
    /// Of Kingma and Welling's kind.
    Kl(Box<AutoencoderKl>),
    /// Distilled from one.
    Tiny(Box<AutoencoderTiny>),
}

impl Autoencoder {
    /// Builds the autoencoder. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: EitherAutoencoderConfig, halves: Halves, dtype: DType) -> Result<Self> {
        Ok(match config {
            EitherAutoencoderConfig::Kl(config) => {
                Self::Kl(Box::new(AutoencoderKl::new(weights, config, halves, dtype)?))
            }
            EitherAutoencoderConfig::Tiny(config) => {
                Self::Tiny(Box::new(AutoencoderTiny::new(weights, config, halves, dtype)?))
            }
        })
    }

    /// What both have: channels, resolutions and the latents' scale.
    pub fn config(&self) -> &AutoencoderConfig {
        match self {
            Self::Kl(vae) => vae.config(),
            Self::Tiny(vae) => vae.config(),
        }
    }

    /// See [`AutoencoderKl::encode`].
    ///
    /// # Errors
    /// If the encoder was left out, or the channels do not fit.
    pub fn encode(&self, images: &Tensor) -> Result<DiagonalGaussian> {
        match self {
            Self::Kl(vae) => vae.encode(images),
            Self::Tiny(vae) => vae.encode(images),
        }
    }

    /// See [`AutoencoderKl::decode`].
    ///
    /// # Errors
    /// If the channels do not fit.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_watched(latents, &mut |_, _| ControlFlow::Continue(()))
    }

    /// See [`AutoencoderKl::decode_watched`].
    ///
    /// # Errors
    /// [`crate::Error::Cancelled`] if `watch` breaks; if the channels do not fit.
    pub fn decode_watched(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor> {
        match self {
            Self::Kl(vae) => vae.decode_watched(latents, watch),
            Self::Tiny(vae) => vae.decode_watched(latents, watch),
        }
    }
}
