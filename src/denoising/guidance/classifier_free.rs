//! Classifier-free guidance.

use super::{BothBranches, GuidanceSchedule};
use crate::Result;
use crate::conditioning::Conditioning;
use crate::denoising::{Call, Network};
use candle_core::{D, Tensor};

/// Classifier-free guidance (Ho and Salimans 2022): a network made of one network asked twice.
///
/// The output is `uncond + scale * (cond - uncond)`, both halves computed in one batch. `uncond` is the
/// negative prompt's, or the empty prompt's.
pub struct ClassifierFreeGuidance<'a> {
    branches: BothBranches<'a>,
    scale: GuidanceSchedule<'a>,
    rescale: f64,
}

impl<'a> ClassifierFreeGuidance<'a> {
    /// Guides `network` away from `negative` and towards the conditioning that it is called with.
    ///
    /// `rescale` in `[0, 1]` pulls the output's standard deviation back to that of the conditional output
    /// (Lin et al. 2024, section 3.4).
    pub fn new(
        network: &'a dyn Network,
        negative: &'a Conditioning,
        scale: impl Into<GuidanceSchedule<'a>>,
        rescale: f64,
    ) -> Self {
        Self { branches: BothBranches::new(network, negative), scale: scale.into(), rescale }
    }
}

impl Network for ClassifierFreeGuidance<'_> {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        let scale = self.scale.at(&call.level()?);
        if scale == 1.0 {
            return self.branches.network.forward(call);
        }
        let (negative, positive) = self.branches.forward(call)?;
        let guided = (&negative + ((&positive - &negative)? * scale)?)?;
        if self.rescale == 0.0 { Ok(guided) } else { rescaled(&guided, &positive, self.rescale) }
    }
}

/// `share * guided * std(positive) / std(guided) + (1 - share) * guided`, deviations over each image.
fn rescaled(guided: &Tensor, positive: &Tensor, share: f64) -> Result<Tensor> {
    let std = |x: &Tensor| -> Result<Tensor> { Ok(x.flatten_from(1)?.var_keepdim(D::Minus1)?.sqrt()?) };
    let factor = (std(positive)? / std(guided)?)?.affine(share, 1.0 - share)?;
    let batch = guided.dim(0)?;
    Ok(guided.broadcast_mul(&factor.reshape((batch, 1, 1, 1))?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoising::Cache;
    use crate::{Error, NoiseLevel};
    use candle_core::{DType, Device};

    /// Answers each row with the mean of its conditioning.
    struct Echo;

    impl Network for Echo {
        fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
            let (x, text) = (call.x, call.conditioning.text.as_ref());
            let text = text.ok_or_else(|| Error::invalid("text", "missing", "give one"))?;
            let mean = text.mean(D::Minus1)?.mean(D::Minus1)?;
            Ok(x.broadcast_mul(&mean.reshape((x.dim(0)?, 1, 1, 1))?)?)
        }
    }

    fn conditioning(value: f64) -> Result<Conditioning> {
        Ok(Conditioning::text((Tensor::ones((1, 3, 4), DType::F64, &Device::Cpu)? * value)?))
    }

    fn level(sigma: f64) -> NoiseLevel {
        NoiseLevel::from_sigma(-1.0, sigma)
    }

    #[test]
    fn extrapolates_from_the_negative_through_the_positive() -> Result<()> {
        let x = Tensor::new(&[1.0f64, -2.0, 3.0, 0.5], &Device::Cpu)?.reshape((1, 1, 2, 2))?;
        let (negative, positive, cache) = (conditioning(2.0)?, conditioning(3.0)?, Cache::default());
        let call = Call::new(&x, level(1.0), &positive, &cache);
        let guided = ClassifierFreeGuidance::new(&Echo, &negative, 4.0, 0.0).forward(&call)?;
        let expected = (&x * 6.0)?; // 2 + 4 * (3 - 2)
        assert!((guided - expected)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-12);
        // Fully rescaled, the output has the standard deviation of the positive branch: 3 x.
        let rescaled = ClassifierFreeGuidance::new(&Echo, &negative, 4.0, 1.0).forward(&call)?;
        assert!((rescaled - (&x * 3.0)?)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-12);
        Ok(())
    }

    #[test]
    fn outside_the_interval_the_positive_branch_is_enough() -> Result<()> {
        let x = Tensor::ones((1, 1, 2, 2), DType::F64, &Device::Cpu)?;
        let (negative, positive, cache) = (conditioning(2.0)?, conditioning(3.0)?, Cache::default());
        let scale = GuidanceSchedule::constant(4.0).between(0.5, 5.0);
        let guided = ClassifierFreeGuidance::new(&Echo, &negative, scale, 0.0);
        let at = |sigma| -> Result<f64> {
            let raw = guided.forward(&Call::new(&x, level(sigma), &positive, &cache))?;
            Ok(raw.mean_all()?.to_scalar::<f64>()?)
        };
        assert_eq!([at(0.49)?, at(0.51)?, at(4.9)?, at(5.1)?], [3.0, 6.0, 6.0, 3.0]);
        Ok(())
    }
}
