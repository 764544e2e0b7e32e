//! Adaptive projected guidance.

use super::{BothBranches, GuidanceSchedule};
use crate::Result;
use crate::conditioning::Conditioning;
use crate::denoising::Network;
use candle_core::{D, DType, Device, Tensor};
use std::cell::RefCell;

/// What adaptive projected guidance does to the difference of the two branches.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Projection {
    /// The share of the part that is parallel to the conditional output, which saturates colours.
    pub eta: f64,
    /// The longest norm of the difference over an image; infinite for no limit.
    pub norm_threshold: f64,
    /// The factor of the earlier differences that are added; negative values dampen.
    pub momentum: f64,
}

impl Default for Projection {
    /// The paper's values for Stable Diffusion.
    fn default() -> Self {
        Self { eta: 0.0, norm_threshold: 15.0, momentum: -0.5 }
    }
}

/// Guidance without oversaturation (Sadat, Hilliges and Weber 2024, algorithm 1), on the network's raw output.
///
/// One lives for one batch of images, since it remembers the differences of earlier steps.
pub struct AdaptiveProjectedGuidance<'a> {
    branches: BothBranches<'a>,
    scale: GuidanceSchedule,
    projection: Projection,
    running: RefCell<Option<Tensor>>,
}

impl<'a> AdaptiveProjectedGuidance<'a> {
    /// Guides `network` away from `negative` and towards the conditioning that it is called with.
    pub fn new(
        network: &'a dyn Network,
        negative: &'a Conditioning,
        scale: impl Into<GuidanceSchedule>,
        projection: Projection,
    ) -> Self {
        Self {
            branches: BothBranches::new(network, negative),
            scale: scale.into(),
            projection,
            running: RefCell::default(),
        }
    }
}

impl Network for AdaptiveProjectedGuidance<'_> {
    fn forward(&self, x: &Tensor, timestep: f64, conditioning: &Conditioning) -> Result<Tensor> {
        let scale = self.scale.at(timestep);
        if scale == 1.0 {
            return self.branches.network.forward(x, timestep, conditioning);
        }
        let (negative, positive) = self.branches.forward(x, timestep, conditioning)?;
        let mut difference = (&positive - negative)?;
        if let Some(running) = self.running.borrow().as_ref() {
            difference = (difference + (running * self.projection.momentum)?)?;
        }
        self.running.replace(Some(difference.clone()));
        let update = project(&difference, &positive, self.projection)?;
        Ok((&positive + (update * (scale - 1.0))?)?)
    }
}

/// The difference limited in length, its part along `direction` scaled by `eta`; in f64, for each image, on the CPU
/// since Metal has no f64.
fn project(difference: &Tensor, direction: &Tensor, projection: Projection) -> Result<Tensor> {
    let rows = |x: &Tensor| x.flatten_from(1)?.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let norm = |x: &Tensor| x.sqr()?.sum_keepdim(D::Minus1)?.sqrt();
    let (difference_rows, direction_rows) = (rows(difference)?, rows(direction)?);
    let factor = (norm(&difference_rows)?.clamp(1e-12, f64::MAX)?.recip()? * projection.norm_threshold)?;
    let limited = difference_rows.broadcast_mul(&factor.clamp(0.0, 1.0)?)?;
    let unit = direction_rows.broadcast_div(&norm(&direction_rows)?.clamp(1e-12, f64::MAX)?)?;
    let parallel = unit.broadcast_mul(&(&limited * &unit)?.sum_keepdim(D::Minus1)?)?;
    let update = (&limited + (parallel * (projection.eta - 1.0))?)?;
    Ok(update.to_dtype(difference.dtype())?.reshape(difference.shape())?.to_device(difference.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::denoising::ClassifierFreeGuidance;
    use crate::noise::{NoiseSource, TorchNoise};

    /// Each row is shifted by its conditioning.
    struct Shift;

    impl Network for Shift {
        fn forward(&self, x: &Tensor, _: f64, conditioning: &Conditioning) -> Result<Tensor> {
            let text = conditioning.text.as_ref().ok_or_else(|| Error::invalid("text", "missing", "give one"))?;
            Ok((x + text.reshape(x.shape())?)?)
        }
    }

    fn random(seed: u64) -> Result<Tensor> {
        Ok(TorchNoise::per_image(&[seed, seed + 1]).normal(&[2, 3, 4, 4])?.to_dtype(DType::F64)?)
    }

    fn close(a: &Tensor, b: &Tensor) -> Result<bool> {
        Ok((a - b)?.abs()?.max_all()?.to_scalar::<f64>()? < 1e-10)
    }

    #[test]
    fn without_its_three_changes_it_is_classifier_free_guidance() -> Result<()> {
        let (x, negative, positive) = (random(1)?, Conditioning::text(random(5)?), Conditioning::text(random(9)?));
        let nothing = Projection { eta: 1.0, norm_threshold: f64::INFINITY, momentum: 0.0 };
        let guided = AdaptiveProjectedGuidance::new(&Shift, &negative, 4.0, nothing);
        let expected = ClassifierFreeGuidance::new(&Shift, &negative, 4.0, 0.0).forward(&x, 0.0, &positive)?;
        for _ in 0..2 {
            assert!(close(&guided.forward(&x, 0.0, &positive)?, &expected)?);
        }
        Ok(())
    }

    #[test]
    fn the_update_is_orthogonal_short_and_remembers() -> Result<()> {
        let (x, negative, positive) = (random(1)?, Conditioning::text(random(5)?), Conditioning::text(random(9)?));
        let projection = Projection { eta: 0.0, norm_threshold: 2.0, momentum: 0.5 };
        let guided = AdaptiveProjectedGuidance::new(&Shift, &negative, 3.0, projection);
        let raw = Shift.forward(&x, 0.0, &positive)?;
        let first = (guided.forward(&x, 0.0, &positive)? - &raw)?;
        let dot = (&first * &raw)?.flatten_from(1)?.sum(1)?.to_vec1::<f64>()?;
        let length = first.sqr()?.flatten_from(1)?.sum(1)?.sqrt()?.to_vec1::<f64>()?;
        assert!(
            dot.iter().all(|d| d.abs() < 1e-9) && length.iter().all(|l| *l <= 2.0 * 2.0 + 1e-9),
            "{dot:?} {length:?}"
        );
        // The same difference again, with half of itself added, has the same direction and is limited alike.
        let second = (guided.forward(&x, 0.0, &positive)? - &raw)?;
        assert!(close(&first, &second)?);
        let free = Projection { norm_threshold: f64::INFINITY, ..projection };
        let guided = AdaptiveProjectedGuidance::new(&Shift, &negative, 3.0, free);
        let first = (guided.forward(&x, 0.0, &positive)? - &raw)?;
        let second = (guided.forward(&x, 0.0, &positive)? - &raw)?;
        assert!(close(&(first * 1.5)?, &second)?);
        Ok(())
    }
}
