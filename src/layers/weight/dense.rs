//! A weight as one tensor.

use super::WeightForm;
use crate::Result;
use crate::kernels::{self, ConvGeometry, MatmulPrecision};
use crate::layers::Backend;
use candle_core::{DType, Device, Tensor};
use std::borrow::Cow;

/// A weight as it is: for candle's operations, and for the kernels where a gradient is asked for.
///
/// Each product takes it in the type of the activations.
#[derive(Debug, Clone)]
pub struct Dense {
    tensor: Tensor,
    backend: Backend,
    products: MatmulPrecision,
}

impl Dense {
    /// A tensor `[out, in]` or `[out, in, height, width]` of floats, which may be a variable.
    pub fn new(tensor: Tensor, backend: Backend, products: MatmulPrecision) -> Self {
        Self { tensor, backend, products }
    }

    /// The kernels take a bias always.
    fn bias_or_zeros<'a>(&self, bias: Option<&'a Tensor>, x: &Tensor) -> Result<Cow<'a, Tensor>> {
        Ok(match bias {
            Some(bias) => Cow::Borrowed(bias),
            None => Cow::Owned(Tensor::zeros(self.tensor.dim(0)?, x.dtype(), x.device())?),
        })
    }
}

impl WeightForm for Dense {
    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    fn device(&self) -> &Device {
        self.tensor.device()
    }

    fn backend(&self) -> Backend {
        self.backend
    }

    fn products(&self) -> MatmulPrecision {
        self.products
    }

    fn to_dense(&self) -> Result<Tensor> {
        Ok(self.tensor.clone())
    }

    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let matrix = self.tensor.to_dtype(x.dtype())?;
        match self.backend {
            Backend::Kernels => Ok(kernels::linear_with(x, &matrix, &*self.bias_or_zeros(bias, x)?, self.products)?),
            Backend::Candle => {
                let y = x.contiguous()?.broadcast_matmul(&matrix.t()?)?;
                match bias {
                    Some(bias) => Ok(y.broadcast_add(bias)?),
                    None => Ok(y),
                }
            }
        }
    }

    fn conv2d(&self, x: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry) -> Result<Tensor> {
        let weight = self.tensor.to_dtype(x.dtype())?;
        match self.backend {
            Backend::Kernels => {
                Ok(kernels::conv2d_with(x, &weight, &*self.bias_or_zeros(bias, x)?, geometry, self.products)?)
            }
            Backend::Candle => {
                let ConvGeometry { stride, pad_before: [above, left], pad_after: [below, right], .. } = geometry;
                // candle pads every side alike.
                let even = above.min(left).min(below).min(right);
                let padded = x.pad_with_zeros(2, above - even, below - even)?;
                let padded = padded.pad_with_zeros(3, left - even, right - even)?;
                let y = padded.conv2d(&weight, even, stride, 1, 1)?;
                match bias {
                    Some(bias) => Ok(y.broadcast_add(&bias.reshape(((), weight.dim(0)?, 1, 1))?)?),
                    None => Ok(y),
                }
            }
        }
    }
}
