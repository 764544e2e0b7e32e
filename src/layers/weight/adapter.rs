//! What stands beside a weight and is added to its product.

use super::{WeightForm, form_of};
use crate::kernels::{ConvGeometry, MatmulPrecision};
use crate::layers::Computation;
use crate::{Error, ErrorKind, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// A convolution's second factor sees one pixel at a time.
const POINTWISE: ConvGeometry = ConvGeometry::square(1, 1, 0);

/// A change of a weight, `W + scale * delta`, without touching it: products with the change are taken in full and added to those
/// with the weight.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// The change; shared, so that another scale costs nothing.
    pub delta: Arc<WeightDelta>,
    /// What it is multiplied by.
    pub scale: f64,
}

impl Adapter {
    /// `y` plus the product of `x` with the change.
    pub(super) fn add_to_linear(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        match &*self.delta {
            WeightDelta::LowRank { down, up } => {
                up.linear_plus_residual(&self.scaled(&down.linear(x, None)?)?, None, y)
            }
            WeightDelta::Full(delta) => delta.linear_plus_residual(&self.scaled(x)?, None, y),
        }
    }

    /// `y` plus the convolution of `x` with the change.
    pub(super) fn add_to_conv2d(&self, x: &Tensor, y: &Tensor, geometry: ConvGeometry) -> Result<Tensor> {
        match &*self.delta {
            WeightDelta::LowRank { down, up } => {
                up.conv2d_plus_residual(&self.scaled(&down.conv2d(x, None, geometry)?)?, None, y, POINTWISE)
            }
            WeightDelta::Full(delta) => delta.conv2d_plus_residual(&self.scaled(x)?, None, y, geometry),
        }
    }

    /// Before the last factor: what lies between two factors is the least.
    fn scaled(&self, x: &Tensor) -> Result<Tensor> {
        Ok(if self.scale == 1.0 { x.clone() } else { (x * self.scale)? })
    }
}

/// The difference that an adapter makes to a weight.
#[derive(Debug, Clone)]
pub enum WeightDelta {
    /// `up down` (Hu et al. 2022), in the time and the memory of its factors.
    LowRank {
        /// A in the paper: `[rank, in]`, or `[rank, in, height, width]` of a convolution.
        down: Arc<dyn WeightForm>,
        /// B in the paper: `[out, rank]`, or `[out, rank, 1, 1]` of a convolution.
        up: Arc<dyn WeightForm>,
    },
    /// The difference itself, of the weight's shape: as much memory, in f32, and as much time as the weight takes.
    Full(Arc<dyn WeightForm>),
}

impl WeightDelta {
    /// The product of two factors, beside a weight of `shape`. Factors that gradients are taken of are trained; others are laid
    /// out for the kernels.
    ///
    /// # Shapes
    /// `down`: `[rank, in]` or `[rank, in, height, width]`; `up`: `[out, rank]` or `[out, rank, 1, 1]`; `shape`: `[out, in]` or
    /// `[out, in, height, width]`. Factors are read as matrices, so that those of a linear layer serve a convolution of one pixel.
    ///
    /// # Errors
    /// If the factors have not as many values as `shape` wants, or the rank is 0.
    pub fn low_rank(down: &Tensor, up: &Tensor, shape: &[usize], computation: Computation) -> Result<Self> {
        let computation = in_full(computation);
        let rank = down.dim(0)?;
        if rank == 0 {
            return Err(Error::unusable(
                ErrorKind::Model,
                "the rank of an adapter",
                rank,
                "it is no change; leave it out",
            ));
        }
        let ones = vec![1; shape.len().saturating_sub(2)];
        let (inputs, outputs) = (shape.get(1..).unwrap_or_default(), shape.get(..1).unwrap_or_default());
        Ok(Self::LowRank {
            down: form_of(&of_shape(down, &[&[rank], inputs].concat())?, computation)?,
            up: form_of(&of_shape(up, &[outputs, &[rank], &ones].concat())?, computation)?,
        })
    }

    /// The difference itself, of the weight's shape.
    ///
    /// # Errors
    /// If the kernels cannot lay it out.
    pub fn full(delta: &Tensor, computation: Computation) -> Result<Self> {
        Ok(Self::Full(form_of(delta, in_full(computation))?))
    }

    /// Where it is.
    pub fn device(&self) -> &Device {
        match self {
            Self::LowRank { down, .. } => down.device(),
            Self::Full(delta) => delta.device(),
        }
    }

    /// Its shape or those of its factors, for messages.
    pub(super) fn shapes(&self) -> String {
        match self {
            Self::LowRank { down, up } => format!("{:?} after {:?}", up.shape(), down.shape()),
            Self::Full(delta) => format!("{:?}", delta.shape()),
        }
    }

    /// Whether it is one of weights of this shape.
    pub fn fits(&self, shape: &[usize]) -> bool {
        match self {
            Self::LowRank { down, up } => {
                let (&[outputs, rank, ..], &[same, ref inputs @ ..]) = (up.shape(), down.shape()) else { return false };
                rank == same && shape.first() == Some(&outputs) && shape.get(1..) == Some(inputs)
            }
            Self::Full(delta) => delta.shape() == shape,
        }
    }
}

/// Whatever is done with the weight, the change is exact.
fn in_full(computation: Computation) -> Computation {
    Computation { products: MatmulPrecision::Full, ..computation }
}

/// The tensor itself where it has the shape already: a trained one stays the variable that it is.
fn of_shape(tensor: &Tensor, shape: &[usize]) -> Result<Tensor> {
    Ok(if tensor.dims() == shape { tensor.clone() } else { tensor.reshape(shape)? })
}
