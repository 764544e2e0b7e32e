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
pub use schedule::{GuidanceSchedule, GuidanceShape};

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
    struct Listener(RefCell<Vec<(TensorId, Vec<f32>, Vec<Branch>)>>);

    impl Network for Listener {
        fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
            if let Some(text) = &call.conditioning.text {
                let kept = (text.id(), text.flatten_all()?.to_vec1()?, call.branches.to_vec());
                self.0.borrow_mut().push(kept);
            }
            Ok(call.x.clone())
        }
    }

    #[test]
    fn a_network_sees_the_same_tensors_until_the_conditioning_changes() -> Result<()> {
        use Branch::{Perturbed, Prompted, Unprompted};
        let text = |value: f32| -> Result<Conditioning> {
            Ok(Conditioning::text(Tensor::full(value, (1, 1, 1), &Device::Cpu)?))
        };
        let (x, negative) = (Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu)?, text(0.0)?);
        let (first, second) = (text(1.0)?, text(2.0)?);
        let listener = Listener::default();
        let free = ClassifierFreeGuidance::new(&listener, &negative, 4.0, 0.0);
        let perturbed = PerturbedAttentionGuidance::new(&listener, Some(&negative), 4.0, 2.0);
        let networks: [(&dyn Network, [Vec<f32>; 2], &[Branch]); 2] = [
            (&free, [vec![0.0, 1.0], vec![0.0, 2.0]], &[Unprompted, Prompted]),
            (&perturbed, [vec![1.0, 1.0, 0.0], vec![2.0, 2.0, 0.0]], &[Perturbed, Prompted, Unprompted]),
        ];
        let (level, cache) = (NoiseLevel::from_sigma(10.0, 1.0), Cache::default());
        for (network, values, branches) in networks {
            listener.0.borrow_mut().clear();
            for conditioning in [&first, &first, &second] {
                network.forward(&Call::new(&x, level, conditioning, &cache))?;
            }
            let seen = listener.0.borrow();
            assert!(seen[0].0 == seen[1].0 && seen[1].0 != seen[2].0);
            assert_eq!([&seen[0].1, &seen[2].1], [&values[0], &values[1]]);
            assert!(seen.iter().all(|(_, _, asked)| asked == branches));
        }
        Ok(())
    }
}
