//! T2I-Adapter (Mou et al. 2023), as diffusers' `T2IAdapter` has it: a small network that makes features of a picture once,
//! which are added to the UNet's at each resolution in every step.

use super::unet::UNet2DConditionConfig;
use crate::config::{ConfigFields, Flaw, MOST_RESOLUTIONS, are_widths};
use crate::layers::{Activation, Backend, Conv2d, FeatureMap, Weights};
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// Which of the published shapes an adapter has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum T2iAdapterKind {
    /// Half the resolution at each but the first block.
    Full,
    /// For Stable Diffusion XL: half the resolution at the third block alone.
    FullXl,
    /// Half the resolution at each but the first block, in a quarter of the channels.
    Light,
}

/// The configuration of a [`T2iAdapter`], in diffusers' terms.
#[derive(Debug, Clone, PartialEq)]
pub struct T2iAdapterConfig {
    /// Channels of the picture: 3, or 1 for a grey one.
    pub in_channels: usize,
    /// Channels at each resolution.
    pub channels: Vec<usize>,
    /// Residual blocks at each resolution.
    pub num_res_blocks: usize,
    /// So many pixels along a side become one place with as many more channels.
    pub downscale_factor: usize,
    /// Its shape.
    pub kind: T2iAdapterKind,
}

impl T2iAdapterConfig {
    /// From the fields of a `config.json`, with diffusers' defaults for those that are absent.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_fields(fields: &ConfigFields) -> Result<Self> {
        let kinds = [
            ("full_adapter", T2iAdapterKind::Full),
            ("full_adapter_xl", T2iAdapterKind::FullXl),
            ("light_adapter", T2iAdapterKind::Light),
        ];
        let config = Self {
            in_channels: fields.usize("in_channels", 3)?,
            channels: fields.usize_list("channels", &[320, 640, 1280, 1280])?,
            num_res_blocks: fields.usize("num_res_blocks", 2)?,
            downscale_factor: fields.usize("downscale_factor", 8)?,
            kind: fields.choice("adapter_type", &kinds, T2iAdapterKind::Full)?,
        };
        fields.reject_unread()?;
        config.check().map_err(|(field, expected)| fields.wrong(field, expected))?;
        Ok(config)
    }

    /// Whether it can be used.
    pub(crate) fn check(&self) -> Result<(), Flaw> {
        if ![1, 3].contains(&self.in_channels) {
            return Err(("in_channels", "it must be 3, or 1 for grey pictures".into()));
        }
        if self.num_res_blocks > 100 {
            return Err(("num_res_blocks", "at most 100 blocks at each resolution".into()));
        }
        // The light one computes in a quarter of them.
        let least = if self.kind == T2iAdapterKind::Light { 4 } else { 1 };
        let too_few = self.channels.iter().any(|&channels| channels < least);
        if !(1..=MOST_RESOLUTIONS).contains(&self.channels.len()) || too_few || !are_widths(&self.channels) {
            return Err(("channels", format!("it must be those of 1 to 16 resolutions, each {least} or more")));
        }
        if !(1..=64).contains(&self.downscale_factor) {
            return Err(("downscale_factor", "it must be 1 to 64".into()));
        }
        Ok(())
    }

    /// Whether it has as many channels at each resolution as this UNet.
    pub fn fits(&self, unet: &UNet2DConditionConfig) -> bool {
        let blocks = &unet.block_out_channels;
        self.channels.len() >= blocks.len() && self.channels.iter().zip(blocks).all(|(a, b)| a == b)
    }
}

/// The network.
#[derive(Debug)]
pub struct T2iAdapter {
    conv_in: Option<Conv2d>,
    blocks: Vec<Block>,
    config: T2iAdapterConfig,
    backend: Backend,
    dtype: DType,
}

impl T2iAdapter {
    /// Builds the network. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: T2iAdapterConfig, dtype: DType) -> Result<Self> {
        let weights = weights.at("adapter");
        let (channels, count) = (&config.channels, config.num_res_blocks);
        let pixels = config.in_channels * config.downscale_factor * config.downscale_factor;
        let body = |i: usize| weights.at("body").at(i);
        let before = |i: usize| channels[i.saturating_sub(1)];
        let full = |i: usize, inputs, halved| Block::full(&body(i), (inputs, channels[i]), count, halved);
        let light = |i: usize, inputs, outputs| Block::light(&body(i), (inputs, outputs), count, i > 0);
        let blocks: Vec<Block> = match config.kind {
            T2iAdapterKind::Full => (0..channels.len()).map(|i| full(i, before(i), i > 0)).collect::<Result<_>>()?,
            T2iAdapterKind::FullXl => {
                let inputs = |i| if i == 1 || i == 2 { before(i) } else { channels[i] };
                (0..channels.len()).map(|i| full(i, inputs(i), i == 2)).collect::<Result<_>>()?
            }
            // One more block, of the last one's channels.
            T2iAdapterKind::Light => (0..=channels.len())
                .map(|i| {
                    let inputs = if i == 0 { pixels } else { channels[i - 1] };
                    light(i, inputs, channels[i.min(channels.len() - 1)])
                })
                .collect::<Result<_>>()?,
        };
        let conv_in = (config.kind != T2iAdapterKind::Light)
            .then(|| Conv2d::new(&weights.at("conv_in"), pixels, channels[0], 3))
            .transpose()?;
        Ok(Self { conv_in, blocks, backend: weights.backend(), config, dtype })
    }

    /// The features of a picture, from the highest resolution on.
    ///
    /// # Shapes
    /// `picture`: `[batch, 3, height, width]`, red first, 0 to 1; each of the result is
    /// `[batch, channels, height / f, width / f]` with a larger `f` after each halving.
    ///
    /// # Errors
    /// If a side is no multiple of the downscale factor.
    pub fn features(&self, picture: &Tensor) -> Result<Vec<Tensor>> {
        let picture = if self.config.in_channels == 1 { grey(picture)? } else { picture.clone() };
        let places = unshuffled(&picture.to_dtype(self.dtype)?, self.config.downscale_factor)?;
        let mut h = FeatureMap::from_nchw(&places, self.backend)?;
        if let Some(conv_in) = &self.conv_in {
            h = conv_in.forward(&h)?;
        }
        let mut features = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            h = block.forward(&h)?;
            features.push(h.to_nchw()?);
        }
        Ok(features)
    }
}

/// The luma that a colour picture has as a grey one (ITU-R BT.601).
fn grey(picture: &Tensor) -> Result<Tensor> {
    let weights = Tensor::new(&[0.299f32, 0.587, 0.114], picture.device())?.reshape((1, 3, 1, 1))?;
    Ok(picture.broadcast_mul(&weights.to_dtype(picture.dtype())?)?.sum_keepdim(1)?)
}

/// Squares of `factor` by `factor` pixels as channels of one place, as `torch.nn.PixelUnshuffle` orders them.
fn unshuffled(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = x.dims4()?;
    if height % factor + width % factor != 0 {
        let fix = format!("the T2I-Adapter takes multiples of {factor}; choose such a `width` and `height`");
        return Err(Error::invalid("the size of the control picture", format!("{width}x{height}"), fix));
    }
    let (h, w) = (height / factor, width / factor);
    let squares = x.reshape((batch * channels, h, factor, w, factor))?.permute((0, 2, 4, 1, 3))?.contiguous()?;
    Ok(squares.reshape((batch, channels * factor * factor, h, w))?)
}

/// The blocks of one resolution.
#[derive(Debug)]
struct Block {
    halved: bool,
    in_conv: Option<Conv2d>,
    resnets: Vec<[Conv2d; 2]>,
    out_conv: Option<Conv2d>,
}

impl Block {
    fn full(weights: &Weights<'_>, (inputs, outputs): (usize, usize), count: usize, halved: bool) -> Result<Self> {
        let in_conv = (inputs != outputs).then(|| Conv2d::new(&weights.at("in_conv"), inputs, outputs, 1));
        Ok(Self {
            halved,
            in_conv: in_conv.transpose()?,
            resnets: resnets(weights, outputs, count, 1)?,
            out_conv: None,
        })
    }

    fn light(weights: &Weights<'_>, (inputs, outputs): (usize, usize), count: usize, halved: bool) -> Result<Self> {
        let inner = outputs / 4;
        Ok(Self {
            halved,
            in_conv: Some(Conv2d::new(&weights.at("in_conv"), inputs, inner, 1)?),
            resnets: resnets(weights, inner, count, 3)?,
            out_conv: Some(Conv2d::new(&weights.at("out_conv"), inner, outputs, 1)?),
        })
    }

    fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        let mut h = if self.halved { halved(x)? } else { x.clone() };
        if let Some(conv) = &self.in_conv {
            h = conv.forward(&h)?;
        }
        for [first, second] in &self.resnets {
            h = second.forward(&first.forward(&h)?.activate(Activation::Relu)?)?.add(&h)?;
        }
        match &self.out_conv {
            Some(conv) => conv.forward(&h),
            None => Ok(h),
        }
    }
}

/// Convolution, ReLU, convolution, and the input added; `kernel` is the second convolution's.
fn resnets(weights: &Weights<'_>, channels: usize, count: usize, kernel: usize) -> Result<Vec<[Conv2d; 2]>> {
    let resnet = |j: usize| {
        let weights = weights.at("resnets").at(j);
        Ok([
            Conv2d::new(&weights.at("block1"), channels, channels, 3)?,
            Conv2d::new(&weights.at("block2"), channels, channels, kernel)?,
        ])
    };
    (0..count).map(resnet).collect()
}

/// The mean of each 2x2 pixels, at an odd edge of those that are there.
fn halved(x: &FeatureMap) -> Result<FeatureMap> {
    let (_, _, height, width) = x.dims();
    // With the edge repeated, the mean of two pixels twice is their mean.
    let even = x.to_nchw()?.pad_with_same(2, 0, height % 2)?.pad_with_same(3, 0, width % 2)?;
    FeatureMap::from_nchw(&even.avg_pool2d(2)?, x.backend())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn pixels_become_channels_in_torch_s_order() -> Result<()> {
        let x = Tensor::arange(0f32, 16.0, &Device::Cpu)?.reshape((1, 1, 4, 4))?;
        let places = unshuffled(&x, 2)?;
        assert_eq!(places.dims(), [1, 4, 2, 2]);
        let first: Vec<f32> = places.flatten_all()?.to_vec1()?;
        assert_eq!(first[..8], [0.0, 2.0, 8.0, 10.0, 1.0, 3.0, 9.0, 11.0]);
        assert!(unshuffled(&x, 3).is_err());
        Ok(())
    }

    #[test]
    fn an_odd_edge_is_the_mean_of_what_is_there() -> Result<()> {
        let x = Tensor::arange(0f32, 9.0, &Device::Cpu)?.reshape((1, 1, 3, 3))?;
        let half = halved(&FeatureMap::from_nchw(&x, Backend::Candle)?)?.to_nchw()?;
        assert_eq!(half.flatten_all()?.to_vec1::<f32>()?, [2.0, 3.5, 6.5, 8.0]);
        Ok(())
    }
}
