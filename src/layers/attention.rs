//! Attention with its projections.

use super::{Backend, Linear, Weights, scaled_dot_product_attention};
use crate::Result;
use candle_core::{Tensor, TensorId};
use std::sync::{Arc, Mutex, PoisonError};

/// The sizes of an [`Attention`] layer.
#[derive(Debug, Clone, Copy)]
pub struct AttentionConfig {
    /// Width of the queries' input and of the output.
    pub width: usize,
    /// Width of the keys' and values' input.
    pub context_width: usize,
    /// Number of heads.
    pub heads: usize,
    /// Whether the projections to queries, keys and values have a bias; the output's has one always.
    pub bias: bool,
}

/// Attention with its four projections, under diffusers' names `to_q`, `to_k`, `to_v`, `to_out.0`.
#[derive(Debug, Clone)]
pub struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
    backend: Backend,
    last: Arc<LastContext>,
}

/// Keys and values of the context that was seen last: a request's text is the same in every step.
#[derive(Debug, Default)]
struct LastContext(Mutex<Option<(TensorId, [Tensor; 2])>>);

impl LastContext {
    fn keys_and_values(&self, context: &Tensor, make: impl FnOnce() -> Result<[Tensor; 2]>) -> Result<[Tensor; 2]> {
        // A panic elsewhere leaves a whole value or none.
        let last = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, made)) = &*last()
            && *id == context.id()
        {
            return Ok(made.clone());
        }
        // Not under the lock: while it waits for its own tasks, this thread may be given another caller's.
        let made = make()?;
        // What gradients go through changes from step to step.
        *last() = if made.iter().any(Tensor::track_op) { None } else { Some((context.id(), made.clone())) };
        Ok(made)
    }
}

impl Attention {
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: AttentionConfig) -> Result<Self> {
        let AttentionConfig { width, context_width, heads, bias } = config;
        Ok(Self {
            to_q: Linear::with_bias(&weights.at("to_q"), width, width, bias)?,
            to_k: Linear::with_bias(&weights.at("to_k"), context_width, width, bias)?,
            to_v: Linear::with_bias(&weights.at("to_v"), context_width, width, bias)?,
            to_out: Linear::new(&weights.at("to_out.0"), width, width)?,
            heads,
            backend: weights.backend(),
            last: Arc::default(),
        })
    }

    /// Attention plus a residual, which every network adds to it: the output's projection does it on the way.
    ///
    /// # Shapes
    /// `x`: `[batch, n, width]`; `context`: `[batch, m, context_width]`, `x` itself for self-attention; `residual` and the
    /// result are as `x`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, x: &Tensor, context: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.attend(x, self.keys_and_values(context)?, residual)
    }

    /// The same for a context that is the same tensor in many calls: what depends on it alone is computed in the first.
    ///
    /// # Shapes
    /// As [`Self::forward`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_to_fixed(&self, x: &Tensor, context: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.attend(x, self.last.keys_and_values(context, || self.keys_and_values(context))?, residual)
    }

    fn keys_and_values(&self, context: &Tensor) -> Result<[Tensor; 2]> {
        Ok([self.to_k.forward(context)?, self.to_v.forward(context)?])
    }

    fn attend(&self, x: &Tensor, [k, v]: [Tensor; 2], residual: &Tensor) -> Result<Tensor> {
        let (q, products) = (self.to_q.forward(x)?, self.to_q.products());
        let mixed = scaled_dot_product_attention(&q, &k, &v, self.heads, false, products, self.backend)?;
        self.to_out.forward_plus_residual(&mixed, residual)
    }

    /// Self-attention in which every token of the first `perturbed` rows of the batch looks at itself alone, for
    /// perturbed-attention guidance.
    ///
    /// # Shapes
    /// As [`Self::forward`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_perturbed(&self, x: &Tensor, perturbed: usize, residual: &Tensor) -> Result<Tensor> {
        let rest = x.dim(0)? - perturbed;
        let values = self.to_v.forward(&x.narrow(0, 0, perturbed)?)?;
        let alone = self.to_out.forward_plus_residual(&values, &residual.narrow(0, 0, perturbed)?)?;
        if rest == 0 {
            return Ok(alone);
        }
        let others = x.narrow(0, perturbed, rest)?;
        let others = self.forward(&others, &others, &residual.narrow(0, perturbed, rest)?)?;
        Ok(Tensor::cat(&[alone, others], 0)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::RandomWeights;
    use crate::noise::{NoiseSource, TorchNoise};
    use candle_core::{DType, Device};

    #[test]
    fn a_fixed_context_is_told_from_the_next() -> Result<()> {
        let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
        let config = AttentionConfig { width: 8, context_width: 6, heads: 2, bias: false };
        let layer = Attention::new(&Weights::new(&source), config)?;
        let mut noise = TorchNoise::shared(2);
        let x = noise.normal(&[1, 5, 8])?;
        let contexts = [noise.normal(&[1, 3, 6])?, noise.normal(&[1, 4, 6])?];
        for i in [0, 0, 1, 1, 0] {
            let [fixed, fresh] = [layer.forward_to_fixed(&x, &contexts[i], &x)?, layer.forward(&x, &contexts[i], &x)?];
            assert_eq!(fixed.to_vec3::<f32>()?, fresh.to_vec3::<f32>()?);
        }
        let seen = layer.last.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(id, _)| *id);
        assert_eq!(seen, Some(contexts[0].id()));
        Ok(())
    }
}
