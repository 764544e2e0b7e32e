//! What stands at each resolution of a UNet (Ronneberger et al. 2015), on the way down and on the way up.
//!
//! The text-conditioned network and the one in pixel space differ in the attention `A` that follows a residual
//! block. Each says how `A` is made and how it is called; which channels meet where is said here, once.

use super::resnet::{ResnetBlock, ResnetConfig, Upsample, downsample};
use crate::layers::{Conv2d, FeatureMap, Weights};
use crate::{Error, ErrorKind, Result};
use candle_core::Tensor;
use std::ops::Range;

/// A residual block and the attention after it, if the block has one.
#[derive(Debug)]
pub(super) struct Layer<A> {
    pub resnet: ResnetBlock,
    pub attention: Option<A>,
}

impl<A> Layer<A> {
    pub fn forward(
        &self,
        x: &FeatureMap,
        time: &Tensor,
        attend: impl Fn(&A, &FeatureMap) -> Result<FeatureMap>,
    ) -> Result<FeatureMap> {
        let h = self.resnet.forward(x, Some(time))?;
        match &self.attention {
            Some(attention) => attend(attention, &h),
            None => Ok(h),
        }
    }
}

/// The sizes of all blocks.
#[derive(Debug)]
pub(super) struct BlockSizes<'a> {
    /// Channels at each resolution, the highest first.
    pub channels: &'a [usize],
    /// Layers at each resolution on the way down; one more on the way up.
    pub layers: &'a [usize],
    /// What all residual blocks have in common; inputs and outputs are filled in.
    pub resnet: ResnetConfig,
    /// Of the strided convolutions.
    pub downsample_padding: usize,
}

impl BlockSizes<'_> {
    fn layer<A>(
        &self,
        weights: &Weights<'_>,
        j: usize,
        (inputs, outputs): (usize, usize),
        attention: impl FnOnce(&Weights<'_>) -> Result<Option<A>>,
    ) -> Result<Layer<A>> {
        let config = ResnetConfig { inputs, outputs, ..self.resnet };
        Ok(Layer {
            resnet: ResnetBlock::new(&weights.at("resnets").at(j), config)?,
            attention: attention(&weights.at("attentions").at(j))?,
        })
    }
}

/// A resolution on the way down.
#[derive(Debug)]
pub(super) struct DownBlock<A> {
    layers: Vec<Layer<A>>,
    downsample: Option<Conv2d>,
}

impl<A> DownBlock<A> {
    /// `i` counts from the highest resolution; `attention` makes what follows a residual block, if anything does.
    pub fn new(
        weights: &Weights<'_>,
        sizes: &BlockSizes<'_>,
        i: usize,
        attention: impl Fn(&Weights<'_>) -> Result<Option<A>>,
    ) -> Result<Self> {
        let (inputs, outputs) = (sizes.channels[i.saturating_sub(1)], sizes.channels[i]);
        let layers = (0..sizes.layers[i]).map(|j| {
            let inputs = if j == 0 { inputs } else { outputs };
            sizes.layer(weights, j, (inputs, outputs), &attention)
        });
        let is_last = i + 1 == sizes.channels.len();
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            downsample: (!is_last).then(|| downsample(weights, outputs, sizes.downsample_padding)).transpose()?,
        })
    }

    /// Every intermediate result is also kept for the way up. What is `added` belongs to the last layer's result if that
    /// has attention, else, as diffusers does it, to the block's.
    pub fn forward(
        &self,
        h: FeatureMap,
        time: &Tensor,
        skips: &mut Vec<FeatureMap>,
        attend: impl Fn(&A, &FeatureMap) -> Result<FeatureMap>,
        added: Option<&FeatureMap>,
    ) -> Result<FeatureMap> {
        let mut h = self.first_layers(self.layers.len(), h, time, skips, attend, added)?;
        if let Some(downsample) = &self.downsample {
            h = plus(downsample.forward(&h)?, added.filter(|_| !self.adds_to_layer()))?;
            skips.push(h.clone());
        }
        Ok(h)
    }

    /// The first `count` layers of it, without what makes the next resolution.
    pub fn first_layers(
        &self,
        count: usize,
        mut h: FeatureMap,
        time: &Tensor,
        skips: &mut Vec<FeatureMap>,
        attend: impl Fn(&A, &FeatureMap) -> Result<FeatureMap>,
        added: Option<&FeatureMap>,
    ) -> Result<FeatureMap> {
        for (i, layer) in self.layers.iter().enumerate().take(count) {
            h = layer.forward(&h, time, &attend)?;
            if i + 1 == self.layers.len() && self.adds_to_layer() {
                h = plus(h, added)?;
            }
            skips.push(h.clone());
        }
        Ok(h)
    }

    /// Whether what is added belongs to the last layer's result.
    fn adds_to_layer(&self) -> bool {
        self.downsample.is_none() || self.layers.last().is_some_and(|layer| layer.attention.is_some())
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }
}

fn plus(h: FeatureMap, added: Option<&FeatureMap>) -> Result<FeatureMap> {
    match added {
        None => Ok(h),
        Some(added) if added.dims() == h.dims() => h.add(added),
        Some(added) => {
            let fix = format!("the UNet's state there is {:?}; take a T2I-Adapter made for this model", h.dims());
            Err(Error::unusable(
                ErrorKind::Model,
                "the shape of a T2I-Adapter's features",
                format!("{:?}", added.dims()),
                fix,
            ))
        }
    }
}

/// A resolution on the way up; each layer takes one skip connection.
#[derive(Debug)]
pub(super) struct UpBlock<A> {
    layers: Vec<Layer<A>>,
    upsample: Option<Upsample>,
}

impl<A> UpBlock<A> {
    /// `i` counts from the lowest resolution.
    pub fn new(
        weights: &Weights<'_>,
        sizes: &BlockSizes<'_>,
        i: usize,
        attention: impl Fn(&Weights<'_>) -> Result<Option<A>>,
    ) -> Result<Self> {
        let channels = sizes.channels;
        let resolution = channels.len() - 1 - i;
        let outputs = channels[resolution];
        let before = channels[(resolution + 1).min(channels.len() - 1)];
        let higher = channels[resolution.saturating_sub(1)];
        let count = sizes.layers[resolution] + 1;
        let layers = (0..count).map(|j| {
            let input = if j == 0 { before } else { outputs };
            let skip = if j + 1 == count { higher } else { outputs };
            sizes.layer(weights, j, (input + skip, outputs), &attention)
        });
        Ok(Self {
            layers: layers.collect::<Result<_>>()?,
            upsample: (resolution > 0).then(|| Upsample::new(weights, outputs)).transpose()?,
        })
    }

    /// Upsamples to the size of the next skip connection, which need not be twice the size.
    pub fn forward(
        &self,
        h: FeatureMap,
        time: &Tensor,
        skips: &mut Vec<FeatureMap>,
        attend: impl Fn(&A, &FeatureMap) -> Result<FeatureMap>,
    ) -> Result<FeatureMap> {
        let h = self.some_layers(0..self.layers.len(), h, time, skips, attend)?;
        match (&self.upsample, skips.last()) {
            (Some(upsample), Some(next)) => {
                let (_, _, height, width) = next.dims();
                upsample.forward(&h, height, width)
            }
            _ => Ok(h),
        }
    }

    /// Some of its layers, at its own size.
    pub fn some_layers(
        &self,
        which: Range<usize>,
        mut h: FeatureMap,
        time: &Tensor,
        skips: &mut Vec<FeatureMap>,
        attend: impl Fn(&A, &FeatureMap) -> Result<FeatureMap>,
    ) -> Result<FeatureMap> {
        for layer in &self.layers[which] {
            let skip = skips.pop().ok_or_else(no_skip)?;
            h = layer.forward(&h.concat(&skip)?, time, &attend)?;
        }
        Ok(h)
    }

    /// How many layers it has.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }
}

fn no_skip() -> Error {
    Error::unusable(
        ErrorKind::Model,
        "layers_per_block",
        "too small",
        "the way up has more layers than the way down has outputs",
    )
}

const _: fn() = || {
    // Blocks are shared between threads by servers; keep them so.
    fn assert_sync<T: Send + Sync>() {}
    assert_sync::<UpBlock<()>>();
};
