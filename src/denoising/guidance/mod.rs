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
pub use perturbed_attention::{PerturbedAttentionGuidance, PerturbedNetwork};
pub use schedule::{GuidanceSchedule, GuidanceShape};

use super::Network;
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

    /// The raw outputs for the negative conditioning and for the positive one.
    fn forward(&self, x: &Tensor, timestep: f64, positive: &Conditioning) -> Result<(Tensor, Tensor)> {
        let joined = self.joined.of(positive, || Conditioning::cat(&[self.negative, positive]))?;
        let raw = self.network.forward(&Tensor::cat(&[x, x], 0)?, timestep, &joined)?;
        let batch = x.dim(0)?;
        Ok((raw.narrow(0, 0, batch)?, raw.narrow(0, batch, batch)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, TensorId};
    use std::cell::RefCell;

    /// Keeps which texts it was asked for.
    #[derive(Default)]
    struct Listener(RefCell<Vec<(TensorId, Vec<f32>)>>);

    impl Network for Listener {
        fn forward(&self, x: &Tensor, _: f64, conditioning: &Conditioning) -> Result<Tensor> {
            if let Some(text) = &conditioning.text {
                self.0.borrow_mut().push((text.id(), text.flatten_all()?.to_vec1()?));
            }
            Ok(x.clone())
        }
    }

    impl PerturbedNetwork for Listener {
        fn forward_perturbed(&self, x: &Tensor, t: f64, conditioning: &Conditioning, _: usize) -> Result<Tensor> {
            self.forward(x, t, conditioning)
        }
    }

    #[test]
    fn a_network_sees_the_same_tensors_until_the_conditioning_changes() -> Result<()> {
        let text = |value: f32| -> Result<Conditioning> {
            Ok(Conditioning::text(Tensor::full(value, (1, 1, 1), &Device::Cpu)?))
        };
        let (x, negative) = (Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu)?, text(0.0)?);
        let (first, second) = (text(1.0)?, text(2.0)?);
        let listener = Listener::default();
        let free = ClassifierFreeGuidance::new(&listener, &negative, 4.0, 0.0);
        let perturbed = PerturbedAttentionGuidance::new(&listener, Some(&negative), 4.0, 2.0);
        let networks: [(&dyn Network, [Vec<f32>; 2]); 2] =
            [(&free, [vec![0.0, 1.0], vec![0.0, 2.0]]), (&perturbed, [vec![1.0, 1.0, 0.0], vec![2.0, 2.0, 0.0]])];
        for (network, values) in networks {
            listener.0.borrow_mut().clear();
            for conditioning in [&first, &first, &second] {
                network.forward(&x, 10.0, conditioning)?;
            }
            let seen = listener.0.borrow();
            assert!(seen[0].0 == seen[1].0 && seen[1].0 != seen[2].0);
            assert_eq!([&seen[0].1, &seen[2].1], [&values[0], &values[1]]);
        }
        Ok(())
    }
}
