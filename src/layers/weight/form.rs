//! What a stored weight can do.

use super::Dense;
use crate::Result;
use crate::kernels::{ConvGeometry, MatmulPrecision};
use crate::layers::{Backend, add_residual, geglu};
use candle_core::{DType, Device, Tensor};
use std::fmt::Debug;

/// A form in which a weight is stored and multiplied with: `[out, in]` or `[out, in, height, width]`.
///
/// A form has to say what it is and how it looks as a tensor. Every product follows from that, slowly; a form that is in use
/// computes its own. Gradients go through all of them to what they are given, and to the weight if the form holds it as
/// something that gradients are taken of.
pub trait WeightForm: Debug + Send + Sync {
    /// `[out, in]` or `[out, in, height, width]`.
    fn shape(&self) -> &[usize];

    /// The element type of [`Self::to_dense`]; what is stored may be narrower.
    fn dtype(&self) -> DType;

    /// Where it is.
    fn device(&self) -> &Device;

    /// With whose operations it is multiplied, which is how activations lie in memory.
    fn backend(&self) -> Backend;

    /// How the kernels take products with it.
    fn products(&self) -> MatmulPrecision {
        MatmulPrecision::Full
    }

    /// The whole weight as one tensor of its [shape](Self::shape), [type](Self::dtype) and [device](Self::device).
    ///
    /// # Errors
    /// If it cannot be put together.
    fn to_dense(&self) -> Result<Tensor>;

    /// `y = x W^T + b`.
    ///
    /// # Shapes
    /// `x`: `[..., in]`; `bias`: `[out]`, of `x`'s type; the result is `[..., out]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        Dense::new(self.to_dense()?, self.backend(), self.products()).linear(x, bias)
    }

    /// The same plus a residual.
    ///
    /// # Shapes
    /// As [`Self::linear`]; `residual` is as the result.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn linear_plus_residual(&self, x: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        add_residual(residual, &self.linear(x, bias)?)
    }

    /// GEGLU (Shazeer 2020) of what [`Self::linear`] gives: the first half of the outputs times GELU of the second.
    ///
    /// # Shapes
    /// As [`Self::linear`]; the result is `[..., out / 2]`.
    ///
    /// # Errors
    /// If the shapes do not fit, or the outputs are an odd number.
    fn linear_geglu(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        geglu(&self.linear(x, bias)?)
    }

    /// A convolution.
    ///
    /// # Shapes
    /// `x`: `[batch, height, width, in]` for the kernels, `[batch, in, height, width]` for candle; `bias`: `[out]`, or
    /// `[batch, out]` for one per image, of `x`'s type; the result lies as `x` does.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn conv2d(&self, x: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry) -> Result<Tensor> {
        Dense::new(self.to_dense()?, self.backend(), self.products()).conv2d(x, bias, geometry)
    }

    /// The same plus a residual.
    ///
    /// # Shapes
    /// As [`Self::conv2d`]; `residual` is as the result.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn conv2d_plus_residual(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: &Tensor,
        geometry: ConvGeometry,
    ) -> Result<Tensor> {
        add_residual(residual, &self.conv2d(x, bias, geometry)?)
    }
}
