//! Attention with its projections.

use super::feature_map::joined;
use super::{Backend, Cache, LayerId, Linear, Weights, scaled_dot_product_attention};
use crate::{Error, Result};
use candle_core::Tensor;
use std::ops::Range;

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
    /// Under which a run keeps the keys and values of a context.
    id: LayerId,
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
            id: LayerId::unique(),
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

    /// [`Self::forward`] without a residual.
    ///
    /// # Shapes
    /// As [`Self::forward`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_alone(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        self.to_out.forward(&self.mix(x, self.keys_and_values(context)?)?)
    }

    /// The same for a context that is the same tensor in every step of a run: what depends on it alone is computed in the
    /// first of them, and kept in the run's `cache`.
    ///
    /// # Shapes
    /// As [`Self::forward`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_to_fixed(&self, x: &Tensor, context: &Tensor, residual: &Tensor, cache: &Cache) -> Result<Tensor> {
        let kept = cache.of(self.id, context, || Ok(self.keys_and_values(context)?.into()))?;
        let [keys, values] = &kept[..] else {
            return Err(Error::invalid("the cache of an attention layer", kept.len(), "it holds keys and values"));
        };
        self.attend(x, [keys.clone(), values.clone()], residual)
    }

    /// Self-attention as [`Self::forward`] plus `x`, of tokens that `normed` makes of so many of `x` as it is given: by the kernels, a part of
    /// them at a time, so that only keys, values and the result are held whole. A token's bits are those of the whole.
    ///
    /// # Shapes
    /// As [`Self::forward`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub(crate) fn forward_in_parts(
        &self,
        x: &Tensor,
        normed: impl Fn(&Tensor) -> Result<Tensor>,
        tokens: usize,
    ) -> Result<Tensor> {
        let count = x.dim(1)?;
        let parts =
            || (0..count).step_by(tokens.max(1)).map(|first| x.narrow(1, first, tokens.max(1).min(count - first)));
        let of_all = |layer: &Linear| -> Result<Tensor> {
            let of_parts = parts().map(|part| layer.forward(&normed(&part?)?)).collect::<Result<Vec<_>>>()?;
            joined(&of_parts.iter().collect::<Vec<_>>(), 1)
        };
        let (keys, values) = (of_all(&self.to_k)?, of_all(&self.to_v)?);
        let attend = |part: &Tensor| self.attend(&normed(part)?, [keys.clone(), values.clone()], part);
        let mixed = parts().map(|part| attend(&part?)).collect::<Result<Vec<_>>>()?;
        drop((keys, values));
        joined(&mixed.iter().collect::<Vec<_>>(), 1)
    }

    fn keys_and_values(&self, context: &Tensor) -> Result<[Tensor; 2]> {
        Ok([self.to_k.forward(context)?, self.to_v.forward(context)?])
    }

    fn attend(&self, x: &Tensor, keys_and_values: [Tensor; 2], residual: &Tensor) -> Result<Tensor> {
        self.to_out.forward_plus_residual(&self.mix(x, keys_and_values)?, residual)
    }

    /// What the heads see, before the output's projection.
    fn mix(&self, x: &Tensor, [k, v]: [Tensor; 2]) -> Result<Tensor> {
        let (q, products) = (self.to_q.forward(x)?, self.to_q.products());
        scaled_dot_product_attention(&q, &k, &v, self.heads, false, products, self.backend)
    }

    /// Self-attention in which every token of the `perturbed` rows of the batch looks at itself alone, for
    /// perturbed-attention guidance.
    ///
    /// # Shapes
    /// As [`Self::forward`].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_perturbed(&self, x: &Tensor, perturbed: Range<usize>, residual: &Tensor) -> Result<Tensor> {
        let mut parts = Vec::new();
        for rows in [0..perturbed.start, perturbed.clone(), perturbed.end..x.dim(0)?] {
            if rows.is_empty() {
                continue;
            }
            let part = |x: &Tensor| x.narrow(0, rows.start, rows.len());
            let (x, residual) = (part(x)?, part(residual)?);
            parts.push(if rows == perturbed {
                self.to_out.forward_plus_residual(&self.to_v.forward(&x)?, &residual)?
            } else {
                self.forward(&x, &x, &residual)?
            });
        }
        if parts.len() == 1 { Ok(parts.swap_remove(0)) } else { joined(&parts.iter().collect::<Vec<_>>(), 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::RandomWeights;
    use crate::noise::{NoiseSource, TorchNoise};
    use candle_core::{DType, Device};

    fn layer() -> Result<Attention> {
        let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
        let config = AttentionConfig { width: 8, context_width: 6, heads: 2, bias: false };
        Attention::new(&Weights::new(&source), config)
    }

    #[test]
    fn a_fixed_context_is_told_from_the_next() -> Result<()> {
        let (layer, cache, mut noise) = (layer()?, Cache::default(), TorchNoise::shared(2));
        let x = noise.normal(&[1, 5, 8])?;
        let contexts = [noise.normal(&[1, 3, 6])?, noise.normal(&[1, 4, 6])?];
        for i in [0, 0, 1, 1, 0] {
            let fixed = layer.forward_to_fixed(&x, &contexts[i], &x, &cache)?;
            let fresh = layer.forward(&x, &contexts[i], &x)?;
            assert_eq!(fixed.to_vec3::<f32>()?, fresh.to_vec3::<f32>()?);
        }
        Ok(())
    }

    /// Wherever the perturbed rows stand, they and the others are what they are alone.
    #[test]
    fn perturbed_rows_leave_the_others_alone() -> Result<()> {
        let source = RandomWeights::new(1, DType::F32, &Device::Cpu);
        let config = AttentionConfig { width: 8, context_width: 8, heads: 2, bias: false };
        let layer = Attention::new(&Weights::new(&source), config)?;
        let x = TorchNoise::shared(3).normal(&[3, 5, 8])?;
        let alone = |i: usize, perturbed: bool| -> Result<Vec<Vec<Vec<f32>>>> {
            let row = x.narrow(0, i, 1)?;
            let out =
                if perturbed { layer.forward_perturbed(&row, 0..1, &row) } else { layer.forward(&row, &row, &row) };
            Ok(out?.to_vec3()?)
        };
        for rows in [0..1, 1..2, 2..3, 0..2, 0..3] {
            let together = layer.forward_perturbed(&x, rows.clone(), &x)?;
            for i in 0..3 {
                let row = together.narrow(0, i, 1)?.to_vec3::<f32>()?;
                assert_eq!(row, alone(i, rows.contains(&i))?, "row {i} of {rows:?}");
                assert_ne!(row, alone(i, !rows.contains(&i))?, "row {i} of {rows:?}");
            }
        }
        Ok(())
    }
}
