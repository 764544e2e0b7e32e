//! A weight as the kernels read it.

use super::WeightForm;
use crate::Result;
use crate::kernels::{self, ConvGeometry, MatmulPrecision, PackedWeight};
use crate::layers::Backend;
use candle_core::{DType, Device, Tensor};

/// A frozen weight, laid out for the kernels, in the element type of storage.
///
/// The CPU's activations are f32; it widens what is stored in half precision while it multiplies, or rounds the activations
/// too ([`MatmulPrecision`]). Residuals are added, and gates applied, while sums are in the cache.
#[derive(Debug, Clone)]
pub struct Packed {
    weight: PackedWeight,
    /// Stands in for a bias, which the kernels take always.
    zeros: Tensor,
}

impl Packed {
    /// Lays out `[out, in]` or `[out, in, height, width]`. Values of half precision must be finite.
    ///
    /// # Errors
    /// If the tensor has another rank, is not on the CPU, or not of floats.
    pub fn new(tensor: &Tensor, products: MatmulPrecision) -> Result<Self> {
        let weight = PackedWeight::with_products(tensor, products)?;
        let dtype = if tensor.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let zeros = Tensor::zeros(weight.shape()[0], dtype, &Device::Cpu)?;
        Ok(Self { weight, zeros })
    }

    fn bias_or_zeros(&self, bias: Option<&Tensor>, x: &Tensor) -> Result<Tensor> {
        Ok(match bias {
            Some(bias) => bias.clone(),
            None => self.zeros.to_dtype(x.dtype())?,
        })
    }
}

impl WeightForm for Packed {
    fn shape(&self) -> &[usize] {
        self.weight.shape()
    }

    fn dtype(&self) -> DType {
        self.weight.dtype()
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn backend(&self) -> Backend {
        Backend::Kernels
    }

    fn products(&self) -> MatmulPrecision {
        self.weight.products()
    }

    fn to_dense(&self) -> Result<Tensor> {
        Ok(self.weight.to_tensor()?)
    }

    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        Ok(kernels::linear_packed(x, &self.weight, &self.bias_or_zeros(bias, x)?)?)
    }

    fn linear_plus_residual(&self, x: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        Ok(kernels::linear_packed_plus(x, &self.weight, &self.bias_or_zeros(bias, x)?, residual)?)
    }

    fn linear_geglu(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        Ok(kernels::linear_geglu_packed(x, &self.weight, &self.bias_or_zeros(bias, x)?)?)
    }

    fn conv2d(&self, x: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry) -> Result<Tensor> {
        Ok(kernels::conv2d_packed(x, &self.weight, &self.bias_or_zeros(bias, x)?, geometry)?)
    }

    fn conv2d_plus_residual(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: &Tensor,
        geometry: ConvGeometry,
    ) -> Result<Tensor> {
        Ok(kernels::conv2d_packed_plus(x, &self.weight, &self.bias_or_zeros(bias, x)?, residual, geometry)?)
    }
}
