//! What linear layers and convolutions multiply with.
//!
//! A [`Weight`] is a [`WeightForm`], which it shares with whoever else holds it, and adapters beside it. Layers ask it for
//! products and never what it is made of: another way to store weights is another form, given out by a
//! [`WeightSource`](super::WeightSource).

mod adapter;
mod dense;
mod form;
mod packed;
mod store;

pub use adapter::{Adapter, WeightDelta};
pub use dense::Dense;
pub use form::WeightForm;
pub use packed::Packed;
pub use store::{WeightRecorder, WeightStore};

use super::{Backend, Computation, geglu};
use crate::kernels::{ConvGeometry, MatmulPrecision};
use crate::{Error, ErrorKind, Result};
use candle_core::Tensor;
use std::sync::Arc;

/// A weight as a layer holds it, `[out, in]` or `[out, in, height, width]`, with adapters beside it. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Weight {
    form: Arc<dyn WeightForm>,
    adapters: Vec<Adapter>,
}

impl Weight {
    /// A weight of this form.
    pub fn new(form: Arc<dyn WeightForm>) -> Self {
        Self { form, adapters: Vec::new() }
    }

    /// A tensor as a weight. One that the kernels compute with and no gradient is asked for is laid out for them here, once:
    /// then it is frozen, and gradients still go through it to the layer's input.
    ///
    /// # Errors
    /// If the kernels cannot lay it out: they take floats on the CPU.
    pub fn from_tensor(tensor: &Tensor, computation: Computation) -> Result<Self> {
        Ok(Self::new(form_of(tensor, computation)?))
    }

    /// The same weight with one adapter more. One whose scale is 0 is left out, so that it changes no bit.
    ///
    /// # Errors
    /// If the adapter is for weights of another shape.
    pub fn with_adapter(mut self, adapter: Adapter) -> Result<Self> {
        let shape = self.shape();
        if !adapter.delta.fits(shape) {
            let fix = format!("the weight has shape {shape:?}; take an adapter that was made for this model");
            return Err(Error::unusable(ErrorKind::Model, "the shape of an adapter", adapter.delta.shapes(), fix));
        }
        if adapter.scale != 0.0 {
            self.adapters.push(adapter);
        }
        Ok(self)
    }

    /// What it is stored in, without adapters.
    pub fn form(&self) -> &Arc<dyn WeightForm> {
        &self.form
    }

    /// What stands beside it.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// `[out, in]` or `[out, in, height, width]`.
    pub fn shape(&self) -> &[usize] {
        self.form.shape()
    }

    /// How products with it are taken.
    pub fn products(&self) -> MatmulPrecision {
        self.form.products()
    }

    /// `y = x W^T + b`, and what the adapters add.
    ///
    /// # Shapes
    /// `x`: `[..., in]`; `bias`: `[out]`, of `x`'s type; the result is `[..., out]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn linear(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        self.adapted(self.form.linear(x, bias)?, |adapter, y| adapter.add_to_linear(x, y))
    }

    /// The same plus a residual.
    ///
    /// # Shapes
    /// As [`Self::linear`]; `residual` is as the result.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn linear_plus_residual(&self, x: &Tensor, bias: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        let y = self.form.linear_plus_residual(x, bias, residual)?;
        self.adapted(y, |adapter, y| adapter.add_to_linear(x, y))
    }

    /// GEGLU (Shazeer 2020) of what [`Self::linear`] gives: the first half of the outputs times GELU of the second.
    ///
    /// # Shapes
    /// As [`Self::linear`]; the result is `[..., out / 2]`.
    ///
    /// # Errors
    /// If the shapes do not fit, or the outputs are an odd number.
    pub fn linear_geglu(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        // An adapter changes what goes through the gate.
        if self.adapters.is_empty() { self.form.linear_geglu(x, bias) } else { geglu(&self.linear(x, bias)?) }
    }

    /// A convolution, and what the adapters add.
    ///
    /// # Shapes
    /// `x`: `[batch, height, width, in]` for the kernels, `[batch, in, height, width]` for candle; `bias`: `[out]`, or
    /// `[batch, out]` for one per image, of `x`'s type; the result lies as `x` does.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn conv2d(&self, x: &Tensor, bias: Option<&Tensor>, geometry: ConvGeometry) -> Result<Tensor> {
        self.adapted(self.form.conv2d(x, bias, geometry)?, |adapter, y| adapter.add_to_conv2d(x, y, geometry))
    }

    /// The same plus a residual.
    ///
    /// # Shapes
    /// As [`Self::conv2d`]; `residual` is as the result.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn conv2d_plus_residual(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: &Tensor,
        geometry: ConvGeometry,
    ) -> Result<Tensor> {
        let y = self.form.conv2d_plus_residual(x, bias, residual, geometry)?;
        self.adapted(y, |adapter, y| adapter.add_to_conv2d(x, y, geometry))
    }

    fn adapted(&self, y: Tensor, add: impl Fn(&Adapter, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        self.adapters.iter().try_fold(y, |y, adapter| add(adapter, &y))
    }
}

/// The form in which a tensor is multiplied with.
fn form_of(tensor: &Tensor, computation: Computation) -> Result<Arc<dyn WeightForm>> {
    let Computation { backend, products } = computation;
    if backend != Backend::Kernels || tensor.track_op() {
        return Ok(Arc::new(Dense::new(tensor.clone(), backend, products)));
    }
    Ok(Arc::new(Packed::new(tensor, products)?))
}
