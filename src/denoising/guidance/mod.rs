//! Guidance: networks made of networks.
//!
//! Each kind takes a network and is one, so solvers and pipelines need not know that there is guidance.

mod adaptive_projected;
mod classifier;
mod classifier_free;
mod perturbed_attention;
mod schedule;

pub use adaptive_projected::{AdaptiveProjectedGuidance, Projection};
pub use classifier::{Classifier, ClassifierGuidance};
pub use classifier_free::ClassifierFreeGuidance;
pub use perturbed_attention::PerturbedAttentionGuidance;
pub use schedule::{GuidanceSchedule, GuidanceShape, NoiseShare};

use super::{Branch, Call, Network};
use crate::Result;
use crate::conditioning::{Conditioning, Derived};
use candle_core::Tensor;

/// A network that is asked for two conditionings in one batch.
struct BothBranches<'a> {
    network: &'a dyn Network,
    negative: &'a Conditioning,
    /// Both after one another.
    joined: Derived,
}

impl<'a> BothBranches<'a> {
    fn new(network: &'a dyn Network, negative: &'a Conditioning) -> Self {
        Self { network, negative, joined: Derived::default() }
    }

    /// The raw outputs for the negative conditioning and for the call's own.
    fn forward(&self, call: &Call<'_>) -> Result<(Tensor, Tensor)> {
        let positive = call.conditioning;
        let joined = self.joined.of(positive, || Conditioning::cat(&[self.negative, positive]))?;
        let branches = &[Branch::Unprompted, Branch::Prompted];
        let (x, conditioning) = (&Tensor::cat(&[call.x, call.x], 0)?, &joined);
        let raw = self.network.forward(&Call { x, conditioning, branches, ..*call })?;
        let batch = call.x.dim(0)?;
        Ok((raw.narrow(0, 0, batch)?, raw.narrow(0, batch, batch)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoiseLevel;
    use crate::denoising::Cache;
    use candle_core::{DType, Device, TensorId};
    use std::cell::RefCell;

    /// Keeps which texts it was asked for, and for which branches.
    #[derive(Default)]
    struct Listener(RefCell<Vec<Heard>>);

    struct Heard {
        id: TensorId,
        text: Vec<f32>,
        branches: Vec<Branch>,
    }

    impl Network for Listener {
        fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
            if let Some(text) = &call.conditioning.text {
                let (id, text) = (text.id(), text.flatten_all()?.to_vec1()?);
                self.0.borrow_mut().push(Heard { id, text, branches: call.branches.to_vec() });
            }
            Ok(call.x.clone())
        }
    }

    fn text(value: f32) -> Result<Conditioning> {
        Ok(Conditioning::text(Tensor::full(value, (1, 1, 1), &Device::Cpu)?))
    }

    /// Asks `network` for two texts, 1 twice and then 2, and gives what `listener` heard.
    fn heard(network: &dyn Network, listener: &Listener) -> Result<Vec<Heard>> {
        let x = Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu)?;
        let (level, cache) = (NoiseLevel::from_sigma(10.0, 1.0), Cache::default());
        let (first, second) = (text(1.0)?, text(2.0)?);
        for conditioning in [&first, &first, &second] {
            network.forward(&Call::new(&x, level, conditioning, &cache))?;
        }
        Ok(listener.0.take())
    }

    #[test]
    fn a_network_sees_the_same_tensors_until_the_conditioning_changes() -> Result<()> {
        use Branch::{Perturbed, Prompted, Unprompted};
        let (listener, negative) = (Listener::default(), text(0.0)?);
        let free = heard(&ClassifierFreeGuidance::new(&listener, &negative, 4.0, 0.0), &listener)?;
        let perturbed = PerturbedAttentionGuidance::new(&listener, Some(&negative), 4.0, 2.0);
        let perturbed = heard(&perturbed, &listener)?;
        for seen in [&free, &perturbed] {
            assert!(seen[0].id == seen[1].id && seen[1].id != seen[2].id);
        }
        assert_eq!([&free[0].text[..], &free[2].text], [[0.0, 1.0], [0.0, 2.0]]);
        assert_eq!([&perturbed[0].text[..], &perturbed[2].text], [[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]);
        assert!(free.iter().all(|heard| heard.branches == [Unprompted, Prompted]));
        assert!(perturbed.iter().all(|heard| heard.branches == [Perturbed, Prompted, Unprompted]));
        Ok(())
    }
}
