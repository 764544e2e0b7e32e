//! A network that tells pictures from their reconstructions, patch by patch (Isola et al. 2017, section 3.2.2), against which an
//! autoencoder can be trained (Esser et al. 2021).

use crate::Result;
use crate::layers::{Activation, Backend, Conv2d, ConvGeometry, FeatureMap, GroupNorm, Weights};
use candle_core::Tensor;

/// Groups of the norms: a picture's logits depend on that picture alone, which those of a norm over the batch would not.
const GROUPS: usize = 8;
const EPSILON: f64 = 1e-5;

/// The sizes of a [`PatchDiscriminator`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatchDiscriminatorConfig {
    /// Channels of pictures.
    pub in_channels: usize,
    /// Channels after the first convolution, a multiple of 8; doubled by each that follows, up to eight times as many.
    pub channels: usize,
    /// Strided convolutions, at least 1: with 3 a logit sees 70x70 pixels.
    pub layers: usize,
}

/// Convolutions of 4x4, the first ones with stride 2, each but the first and the last followed by a norm; all but the last by
/// SiLU (the paper has a leaky ReLU).
#[derive(Debug)]
pub struct PatchDiscriminator {
    convolutions: Vec<(Conv2d, Option<GroupNorm>)>,
    last: Conv2d,
    backend: Backend,
}

impl PatchDiscriminator {
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: PatchDiscriminatorConfig) -> Result<Self> {
        let geometry = |stride: usize| ConvGeometry::square(4, stride, 1);
        let mut inputs = config.in_channels;
        let mut convolutions = Vec::with_capacity(config.layers + 1);
        for layer in 0..=config.layers {
            let outputs = config.channels << layer.min(3);
            let stride = if layer < config.layers { 2 } else { 1 };
            let weights = weights.at("layers").at(layer);
            let convolution = Conv2d::with_geometry(&weights.at("conv"), inputs, outputs, geometry(stride))?;
            let norm =
                (layer > 0).then(|| GroupNorm::new(&weights.at("norm"), GROUPS, outputs, EPSILON)).transpose()?;
            convolutions.push((convolution, norm.map(GroupNorm::with_silu)));
            inputs = outputs;
        }
        let last = Conv2d::with_geometry(&weights.at("conv_out"), inputs, 1, geometry(1))?;
        Ok(Self { convolutions, last, backend: weights.backend() })
    }

    /// Logits: above 0 for what it takes for a picture.
    ///
    /// # Shapes
    /// `pictures`: `[batch, in_channels, height, width]`; the result: `[batch, 1, rows, columns]`, a logit for each patch.
    ///
    /// # Errors
    /// If the channels do not fit, or pictures are too small for so many layers.
    pub fn forward(&self, pictures: &Tensor) -> Result<Tensor> {
        let mut h = FeatureMap::from_nchw(pictures, self.backend)?;
        for (convolution, norm) in &self.convolutions {
            h = convolution.forward(&h)?;
            h = match norm {
                Some(norm) => norm.forward(&h)?,
                None => h.activate(Activation::Silu)?,
            };
        }
        self.last.forward(&h)?.to_nchw()
    }
}
