//! Activations with height and width, which own their memory layout.

use super::{Activation, Backend, ConvGeometry, Pooling, add_residual};
use crate::{Error, Result, kernels};
use candle_core::{DType, Tensor};
use std::ops::Range;

/// A batch of images of features.
///
/// In memory it is `[batch, height, width, channels]` for the kernels and `[batch, channels, height, width]`
/// for candle's operations; whoever uses it need not know.
#[derive(Debug, Clone)]
pub struct FeatureMap {
    tensor: Tensor,
    backend: Backend,
}

impl FeatureMap {
    /// From `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// If the tensor has another rank.
    pub fn from_nchw(x: &Tensor, backend: Backend) -> Result<Self> {
        x.dims4()?;
        let tensor = match backend {
            Backend::Kernels => x.permute((0, 2, 3, 1))?.contiguous()?,
            Backend::Candle => x.contiguous()?,
        };
        Ok(Self { tensor, backend })
    }

    /// To `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_nchw(&self) -> Result<Tensor> {
        match self.backend {
            Backend::Kernels => Ok(self.tensor.permute((0, 3, 1, 2))?.contiguous()?),
            Backend::Candle => Ok(self.tensor.clone()),
        }
    }

    /// From tokens `[batch, height * width, channels]`, row by row.
    ///
    /// # Errors
    /// If their number is not `height * width`.
    pub fn from_tokens(tokens: &Tensor, height: usize, width: usize, backend: Backend) -> Result<Self> {
        let (batch, _, channels) = tokens.dims3()?;
        let tensor = match backend {
            Backend::Kernels => kernels::reshape(tokens, [batch, height, width, channels])?,
            Backend::Candle => tokens.transpose(1, 2)?.contiguous()?.reshape((batch, channels, height, width))?,
        };
        Ok(Self { tensor, backend })
    }

    /// To tokens `[batch, height * width, channels]`; on the CPU without a copy, but for one on a tape of gradients.
    ///
    /// # Errors
    /// If the device fails.
    pub fn tokens(&self) -> Result<Tensor> {
        match self.backend {
            Backend::Kernels => {
                let (batch, channels, height, width) = self.dims();
                Ok(kernels::reshape(&self.tensor, [batch, height * width, channels])?)
            }
            Backend::Candle => Ok(self.tensor.flatten_from(2)?.transpose(1, 2)?.contiguous()?),
        }
    }

    /// Batch, channels, height and width, in this order whatever the layout.
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        let d = self.tensor.dims();
        match self.backend {
            Backend::Kernels => (d[0], d[3], d[1], d[2]),
            Backend::Candle => (d[0], d[1], d[2], d[3]),
        }
    }

    /// Channels, height and width.
    pub(crate) fn chw(&self) -> (usize, usize, usize) {
        let (_, channels, height, width) = self.dims();
        (channels, height, width)
    }

    /// How layers compute on this map.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// What its values take in memory.
    pub(crate) fn bytes(&self) -> u64 {
        (self.tensor.elem_count() * self.dtype().size_in_bytes()) as u64
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    /// Some of the rows; of a batch of 1 for the kernels without a copy.
    ///
    /// # Errors
    /// If there are not so many.
    pub(crate) fn rows(&self, rows: Range<usize>) -> Result<Self> {
        self.map(|x| Ok(x.narrow(self.row_axis(), rows.start, rows.len())?))
    }

    /// Some of the batch's images, in memory of their own.
    ///
    /// # Errors
    /// If there are not so many.
    pub(crate) fn images(&self, images: Range<usize>) -> Result<Self> {
        self.map(|x| Ok(x.narrow(0, images.start, images.len())?.copy()?))
    }

    /// Maps of the same width and channels, one below the other.
    ///
    /// # Errors
    /// If there is none, or they do not fit.
    pub(crate) fn stacked(maps: &[Self]) -> Result<Self> {
        let [first, ..] = maps else {
            return Err(Error::invalid("the number of maps to stack", 0, "take one at least"));
        };
        if maps.len() == 1 {
            return Ok(first.clone());
        }
        let tensors: Vec<&Tensor> = maps.iter().map(|map| &map.tensor).collect();
        first.map(|_| joined(&tensors, first.row_axis()))
    }

    /// Adds the pixels of one image's next rows to the sums for a norm.
    ///
    /// # Errors
    /// If the channels do not fit, or it is more than one image.
    pub(crate) fn add_to(&self, sums: &mut kernels::ChannelSums) -> Result<()> {
        Ok(sums.add(&self.tensor)?)
    }

    fn row_axis(&self) -> usize {
        match self.backend {
            Backend::Kernels => 1,
            Backend::Candle => 2,
        }
    }

    /// Another map from the tensor in its own layout, for layers.
    pub(super) fn map(&self, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { tensor: f(&self.tensor)?, backend: self.backend })
    }

    /// The same from the tensors of two maps.
    pub(super) fn map_with(&self, other: &Self, f: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Self> {
        self.map(|x| f(x, &other.tensor))
    }

    /// The sum of two maps of the same dimensions.
    ///
    /// # Errors
    /// If the dimensions differ.
    pub fn add(&self, other: &Self) -> Result<Self> {
        self.map_with(other, add_residual)
    }

    /// Adds a value per image and channel, `[batch, channels]`, to every pixel.
    ///
    /// # Errors
    /// If the dimensions do not fit.
    pub fn add_per_channel(&self, values: &Tensor) -> Result<Self> {
        let (batch, channels) = values.dims2()?;
        let values = match self.backend {
            Backend::Kernels => values.reshape((batch, 1, 1, channels))?,
            Backend::Candle => values.reshape((batch, channels, 1, 1))?,
        };
        self.map(|x| Ok(x.broadcast_add(&values)?))
    }

    /// An activation function of every value.
    ///
    /// # Errors
    /// If the element type has no such operation.
    pub fn activate(&self, activation: Activation) -> Result<Self> {
        self.map(|x| activation.forward(x))
    }

    /// Every value times `factor`.
    ///
    /// # Errors
    /// If the element type has no such operation.
    pub fn scale(&self, factor: f64) -> Result<Self> {
        self.map(|x| if factor == 1.0 { Ok(x.clone()) } else { Ok((x * factor)?) })
    }

    /// The largest value or the mean of the pixels under a window that moves as a convolution's kernel does; rows and columns
    /// that are left over are dropped. Equal largest values share the gradient.
    ///
    /// # Errors
    /// If the map is smaller than the window, or the padding as large as it.
    pub fn pool(&self, pooling: Pooling, window: ConvGeometry) -> Result<Self> {
        self.map(|x| match self.backend {
            Backend::Kernels => Ok(kernels::pool2d(x, pooling, window)?),
            Backend::Candle => Ok(kernels::pool2d_definition(x, pooling, window, [2, 3])?),
        })
    }

    /// The mean over all pixels of each channel, `[batch, channels]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn mean(&self) -> Result<Tensor> {
        Ok(match self.backend {
            Backend::Kernels => self.tokens()?.mean(1)?,
            Backend::Candle => self.tensor.flatten_from(2)?.mean(2)?,
        })
    }

    /// The channels of both, this map's first.
    ///
    /// # Errors
    /// If batch, height or width differ.
    pub fn concat(&self, other: &Self) -> Result<Self> {
        self.map_with(other, |x, other| match self.backend {
            Backend::Kernels => Ok(kernels::concat_channels(x, other)?),
            Backend::Candle => Ok(Tensor::cat(&[x, other], 1)?),
        })
    }

    /// The nearest neighbour's value at every pixel of a new size, as `torch.nn.functional.interpolate`
    /// chooses it: source index `floor(i * source / target)`.
    ///
    /// # Errors
    /// If a side is zero, or the element type has no such operation.
    pub fn resize_nearest(&self, height: usize, width: usize) -> Result<Self> {
        let (_, _, from_height, from_width) = self.dims();
        self.map(|x| match self.backend {
            Backend::Kernels => Ok(kernels::resize_nearest(x, height, width)?),
            Backend::Candle => repeat_nearest(&repeat_nearest(x, 2, from_height, height)?, 3, from_width, width),
        })
    }
}

/// Tensors one after the other along an axis; in a dry run without their values.
pub(super) fn joined(tensors: &[&Tensor], axis: usize) -> Result<Tensor> {
    let [first, ..] = tensors else { return Ok(Tensor::cat(tensors, axis)?) };
    if !kernels::is_dry_run() {
        return Ok(Tensor::cat(tensors, axis)?);
    }
    let mut shape = first.dims().to_vec();
    shape[axis] = tensors.iter().map(|tensor| tensor.dim(axis)).sum::<candle_core::Result<usize>>()?;
    Ok(Tensor::zeros(shape, first.dtype(), first.device())?)
}

/// Nearest-neighbour resampling along one axis. Broadcasting for whole factors, since candle's own
/// upsampling is wrong in its gradient where its result is used twice.
fn repeat_nearest(x: &Tensor, axis: usize, from: usize, to: usize) -> Result<Tensor> {
    if from == to {
        return Ok(x.clone());
    }
    if to.is_multiple_of(from) {
        let mut dims = x.dims().to_vec();
        dims.insert(axis + 1, to / from);
        let repeated = x.unsqueeze(axis + 1)?.broadcast_as(dims)?;
        return Ok(repeated.flatten(axis, axis + 1)?);
    }
    let sources: Vec<u32> = (0..to).map(|i| (i * from / to) as u32).collect();
    Ok(x.index_select(&Tensor::from_vec(sources, to, x.device())?, axis)?)
}
