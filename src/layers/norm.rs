//! Normalisations, computed in f32 at least.

use super::weights::vector;
use super::{Backend, FeatureMap, Weights};
use crate::Result;
use crate::kernels::{self, ChannelSums};
use candle_core::{DType, Tensor};

/// Group normalisation (Wu and He 2018), with SiLU after it if asked for.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    epsilon: f64,
    activation: kernels::Activation,
    backend: Backend,
}

impl GroupNorm {
    /// From `weight` and `bias` `[channels]`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, groups: usize, channels: usize, epsilon: f64) -> Result<Self> {
        Ok(Self {
            weight: vector(weights, "weight", channels)?,
            bias: vector(weights, "bias", channels)?,
            groups,
            epsilon,
            activation: kernels::Activation::None,
            backend: weights.backend(),
        })
    }

    /// The same, followed by SiLU.
    #[must_use]
    pub fn with_silu(mut self) -> Self {
        self.activation = kernels::Activation::Silu;
        self
    }

    /// # Errors
    /// If the channels do not fit.
    pub fn forward(&self, x: &FeatureMap) -> Result<FeatureMap> {
        self.apply(x, &self.weight, &self.bias)
    }

    /// The adaptive form (Dhariwal and Nichol 2021, section 3.1): what the norm gives times `1 + scale` plus `shift`, each
    /// `[batch, channels]`, then the activation. It costs no more than the plain one, as both go into weight and bias.
    ///
    /// # Errors
    /// If the channels or the batch do not fit.
    pub fn forward_adapted(&self, x: &FeatureMap, scale: &Tensor, shift: &Tensor) -> Result<FeatureMap> {
        let (factor, shift) = ((widest(scale)? + 1.0)?, widest(shift)?);
        let weight = factor.broadcast_mul(&self.weight.to_dtype(factor.dtype())?)?;
        let bias = factor.broadcast_mul(&self.bias.to_dtype(factor.dtype())?)?.add(&shift)?;
        self.apply(x, &weight, &bias)
    }

    /// What [`Self::forward_part`] has to know of the whole map, when nothing of it was seen yet.
    pub(crate) fn sums(&self) -> ChannelSums {
        ChannelSums::new(self.weight.elem_count())
    }

    /// [`Self::forward`] of some rows of a map whose sums are known, by the kernels and without a gradient: they get the bits
    /// that they have in the whole map.
    ///
    /// # Errors
    /// If the channels do not fit, or it is more than one image.
    pub(crate) fn forward_part(&self, x: &FeatureMap, sums: &ChannelSums) -> Result<FeatureMap> {
        x.map(|x| {
            let [weight, bias] = [self.weight.to_dtype(x.dtype())?, self.bias.to_dtype(x.dtype())?];
            let (groups, epsilon) = (self.groups, self.epsilon);
            Ok(kernels::group_norm_of_part(x, sums, [&weight, &bias], groups, epsilon, self.activation)?)
        })
    }

    fn apply(&self, x: &FeatureMap, weight: &Tensor, bias: &Tensor) -> Result<FeatureMap> {
        let dtype = x.dtype();
        let (_, _, height, width) = x.dims();
        let norm = |x: &Tensor, norm: fn(&_, &_, &_, _, _, _) -> candle_core::Result<Tensor>| -> Result<Tensor> {
            let x = widest(x)?;
            let (weight, bias) = (weight.to_dtype(x.dtype())?, bias.to_dtype(x.dtype())?);
            Ok(norm(&x, &weight, &bias, self.groups, self.epsilon, self.activation)?.to_dtype(dtype)?)
        };
        match self.backend {
            Backend::Kernels => x.map(|x| norm(x, kernels::group_norm)),
            Backend::Candle => {
                let y = norm(&x.tokens()?, kernels::group_norm_definition)?;
                FeatureMap::from_tokens(&y, height, width, x.backend())
            }
        }
    }
}

/// Layer normalisation (Ba et al. 2016) over the last dimension.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
    backend: Backend,
}

impl LayerNorm {
    /// From `weight` and `bias` `[width]`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, width: usize, epsilon: f64) -> Result<Self> {
        Ok(Self {
            weight: vector(weights, "weight", width)?,
            bias: vector(weights, "bias", width)?,
            epsilon,
            backend: weights.backend(),
        })
    }

    /// # Shapes
    /// `x`: `[..., width]`; the result is alike.
    ///
    /// # Errors
    /// If the width does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let wide = widest(x)?;
        let (weight, bias) = (self.weight.to_dtype(wide.dtype())?, self.bias.to_dtype(wide.dtype())?);
        let norm = match self.backend {
            Backend::Kernels => kernels::layer_norm,
            Backend::Candle => kernels::layer_norm_definition,
        };
        Ok(norm(&wide, &weight, &bias, self.epsilon)?.to_dtype(x.dtype())?)
    }
}

fn widest(x: &Tensor) -> Result<Tensor> {
    Ok(if matches!(x.dtype(), DType::F16 | DType::BF16) { x.to_dtype(DType::F32)? } else { x.clone() })
}
