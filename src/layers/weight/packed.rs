//! A weight as the kernels read it.

use super::WeightForm;
use crate::Result;
use crate::kernels::{self, ConvGeometry, EightBitSums, EightBits, MatmulPrecision, PackedWeight, RoundedTo};
use crate::layers::Backend;
use candle_core::{DType, Device, Storage, Tensor};

/// A weight of fewer outputs is not rounded.
const FEWEST_OUTPUTS: usize = 16;

/// A frozen weight, laid out for the kernels, in the element type of storage.
///
/// The CPU's activations are f32; it widens what is stored in half precision or eight bits while it multiplies, or rounds the activations
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

    /// A weight in eight bits, as [`PackedWeight::of_eight_bits`] takes it.
    ///
    /// # Errors
    /// If matrix and shape do not fit each other.
    pub fn of_eight_bits(weight: &EightBits, shape: &[usize], sums: EightBitSums) -> Result<Self> {
        let zeros = Tensor::zeros(shape.first().copied().unwrap_or(0), DType::F32, &Device::Cpu)?;
        Ok(Self { weight: PackedWeight::of_eight_bits(weight, shape, sums)?, zeros })
    }

    /// A weight that is rounded, and with it the activations where that is faster. `None` where that cannot be or is not worth it:
    /// its rows are no whole parts, or so few that they are the values of pixels.
    ///
    /// # Errors
    /// If the tensor is not of floats on the CPU.
    pub fn rounded(tensor: &Tensor, to: RoundedTo) -> Result<Option<Self>> {
        if !Self::can_be_rounded(tensor.dims()) {
            return Ok(None);
        }
        let wide = tensor.to_dtype(DType::F32)?.contiguous()?;
        let (storage, layout) = wide.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { return Ok(None) };
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..][..layout.shape().elem_count()];
        // Parts are of one tap of a kernel.
        let values = kernels::taps_first(values, tensor.dims()[2..].iter().product(), tensor.dims()[1]);
        let rounded = match to {
            RoundedTo::EightBits => EightBits::round(&values),
            RoundedTo::FourBits => EightBits::round_to_four_bits(&values),
        };
        Self::of_eight_bits(&rounded, tensor.dims(), EightBitSums::Whole).map(Some)
    }

    /// Whether [`Self::rounded`] takes weights of a shape.
    pub fn can_be_rounded(shape: &[usize]) -> bool {
        let depth: usize = shape.iter().skip(1).product();
        matches!(shape.len(), 2 | 4) && depth.is_multiple_of(EightBits::PART) && shape[0] >= FEWEST_OUTPUTS
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
