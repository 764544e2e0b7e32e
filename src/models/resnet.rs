//! Residual blocks and changes of resolution, which the UNet and the autoencoder share.

use crate::Result;
use crate::layers::{Activation, Conv2d, ConvGeometry, FeatureMap, GroupNorm, Linear, Weights};
use candle_core::Tensor;

/// The sizes of a [`ResnetBlock`].
#[derive(Debug, Clone, Copy)]
pub(super) struct ResnetConfig {
    pub inputs: usize,
    pub outputs: usize,
    /// Width of the time embedding; the autoencoder has none.
    pub time_width: Option<usize>,
    /// Whether the time embedding scales and shifts what the second norm gives, instead of being added before it.
    pub time_scale_shift: bool,
    pub groups: usize,
    pub epsilon: f64,
    /// The output is divided by this.
    pub output_scale: f64,
}

/// Norm, SiLU, convolution, twice, the time embedding added between; and the input added at the end.
#[derive(Debug)]
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    time_scale_shift: bool,
    output_scale: f64,
}

impl ResnetBlock {
    pub fn new(weights: &Weights<'_>, config: ResnetConfig) -> Result<Self> {
        let ResnetConfig { inputs, outputs, time_width, time_scale_shift, groups, epsilon, output_scale } = config;
        let time_outputs = if time_scale_shift { 2 * outputs } else { outputs };
        let time_emb_proj = time_width.map(|width| Linear::new(&weights.at("time_emb_proj"), width, time_outputs));
        let shortcut = (inputs != outputs).then(|| Conv2d::new(&weights.at("conv_shortcut"), inputs, outputs, 1));
        Ok(Self {
            norm1: GroupNorm::new(&weights.at("norm1"), groups, inputs, epsilon)?.with_silu(),
            conv1: Conv2d::new(&weights.at("conv1"), inputs, outputs, 3)?,
            time_emb_proj: time_emb_proj.transpose()?,
            norm2: GroupNorm::new(&weights.at("norm2"), groups, outputs, epsilon)?.with_silu(),
            conv2: Conv2d::new(&weights.at("conv2"), outputs, outputs, 3)?,
            conv_shortcut: shortcut.transpose()?,
            time_scale_shift,
            output_scale,
        })
    }

    /// `x`: a map with the block's input channels; `time`: `[batch, time_width]`.
    pub fn forward(&self, x: &FeatureMap, time: Option<&Tensor>) -> Result<FeatureMap> {
        self.sum(&self.conv2, x, self.conditioned(x, time)?)
    }

    /// What the second convolution makes of the conditioned map, and the input added. In strips it has their padding.
    pub fn sum(&self, conv2: &Conv2d, x: &FeatureMap, conditioned: FeatureMap) -> Result<FeatureMap> {
        let sum = match &self.conv_shortcut {
            Some(shortcut) => {
                let h = conv2.forward(&conditioned)?;
                drop(conditioned);
                shortcut.forward_plus_residual(x, &h)?
            }
            None => conv2.forward_plus_residual(&conditioned, x)?,
        };
        sum.scale(1.0 / self.output_scale)
    }

    pub fn norms(&self) -> [&GroupNorm; 2] {
        [&self.norm1, &self.norm2]
    }

    pub fn convs(&self) -> [&Conv2d; 2] {
        [&self.conv1, &self.conv2]
    }

    /// All that comes before the second convolution. With time, the projected embedding is `[batch, outputs]`, added
    /// between, or twice as many for scale and shift (Dhariwal and Nichol 2021, section 3.1).
    ///
    /// Each intermediate result is let go of as soon as it was used: at the autoencoder's last resolution they are what
    /// takes the memory.
    fn conditioned(&self, x: &FeatureMap, time: Option<&Tensor>) -> Result<FeatureMap> {
        let time = match (&self.time_emb_proj, time) {
            (Some(projection), Some(time)) => Some(projection.forward(&Activation::Silu.forward(time)?)?),
            _ => None,
        };
        let normed = self.norm1.forward(x)?;
        let h = match &time {
            Some(time) if !self.time_scale_shift => self.conv1.forward_plus(&normed, time)?,
            _ => self.conv1.forward(&normed)?,
        };
        drop(normed);
        match &time {
            Some(time) if self.time_scale_shift => {
                let parts = time.chunk(2, 1)?;
                self.norm2.forward_adapted(&h, &parts[0], &parts[1])
            }
            _ => self.norm2.forward(&h),
        }
    }
}

/// Half the resolution by a strided convolution. With `padding` 0 the input is padded on the right and at
/// the bottom only.
pub(super) fn downsample(weights: &Weights<'_>, channels: usize, padding: usize) -> Result<Conv2d> {
    let geometry = ConvGeometry { pad_after: [padding.max(1); 2], ..ConvGeometry::square(3, 2, padding) };
    Conv2d::with_geometry(&weights.at("downsamplers.0.conv"), channels, channels, geometry)
}

/// A higher resolution by nearest neighbours and a convolution.
#[derive(Debug)]
pub(super) struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    pub fn new(weights: &Weights<'_>, channels: usize) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(&weights.at("upsamplers.0.conv"), channels, channels, 3)? })
    }

    pub fn conv(&self) -> &Conv2d {
        &self.conv
    }

    pub fn forward(&self, x: &FeatureMap, height: usize, width: usize) -> Result<FeatureMap> {
        self.conv.forward(&x.resize_nearest(height, width)?)
    }
}
