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

use super::{Branch, Call, Network, Reuse};
use crate::Result;
use crate::conditioning::{Conditioning, Derived};
use candle_core::Tensor;
use std::cell::RefCell;

/// A network that is asked for two conditionings in one batch.
struct BothBranches<'a> {
    network: &'a dyn Network,
    negative: &'a Conditioning,
    /// Both after one another.
    joined: Derived,
    /// Positive less negative of the last call that computed both, for those that take it over.
    difference: RefCell<Option<Tensor>>,
}

impl<'a> BothBranches<'a> {
    fn new(network: &'a dyn Network, negative: &'a Conditioning) -> Self {
        Self { network, negative, joined: Derived::default(), difference: RefCell::default() }
    }

    /// The raw outputs for the negative conditioning and for the call's own.
    fn forward(&self, call: &Call<'_>) -> Result<(Tensor, Tensor)> {
        if let Reuse::Take { .. } = call.reuse
            && let Some(difference) = &*self.difference.borrow()
            && difference.dims() == call.x.dims()
        {
            let positive = self.network.forward(call)?;
            return Ok(((&positive - difference)?, positive));
        }
        let positive = call.conditioning;
        let joined = self.joined.of(positive, || Conditioning::cat(&[self.negative, positive]))?;
        let branches = &[Branch::Unprompted, Branch::Prompted];
        let (x, conditioning) = (&Tensor::cat(&[call.x, call.x], 0)?, &joined);
        let raw = self.network.forward(&Call { x, conditioning, branches, ..*call })?;
        let batch = call.x.dim(0)?;
        let (negative, positive) = (raw.narrow(0, 0, batch)?, raw.narrow(0, batch, batch)?);
        if call.reuse != Reuse::Nothing {
            self.difference.replace(Some((&positive - &negative)?));
        }
        Ok((negative, positive))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoiseLevel;
    use crate::denoising::Cache;
    use candle_core::{DType, Device, TensorId};

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

    /// Answers with what it is told.
    struct Echo<'a>(&'a Listener);

    impl Network for Echo<'_> {
        fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
            self.0.forward(call)?;
            let text = call.conditioning.text.as_ref().map(|text| text.reshape(call.x.dims()));
            text.transpose()?.ok_or_else(|| crate::Error::invalid("text", "missing", "give one"))
        }
    }

    /// 3 + (4 - 1) (3 - 1), and then of one branch 5 + (4 - 1) (3 - 1).
    #[test]
    fn the_difference_of_both_branches_is_taken_over() -> Result<()> {
        let (listener, negative, cache) = (Listener::default(), text(1.0)?, Cache::default());
        let echo = Echo(&listener);
        let guided = ClassifierFreeGuidance::new(&echo, &negative, 4.0, 0.0);
        let x = Tensor::zeros((1, 1, 1, 1), DType::F32, &Device::Cpu)?;
        let ask = |told: f32, reuse: Reuse| -> Result<(f32, usize)> {
            let told = text(told)?;
            let call = Call { reuse, ..Call::new(&x, NoiseLevel::from_sigma(10.0, 1.0), &told, &cache) };
            let answer = guided.forward(&call)?.flatten_all()?.to_vec1::<f32>()?;
            Ok((answer[0], listener.0.take()[0].branches.len()))
        };
        assert_eq!(ask(3.0, Reuse::Take { shallow: 0 })?, (9.0, 2), "there is nothing to take");
        assert_eq!(ask(5.0, Reuse::Take { shallow: 0 })?, (11.0, 1));
        assert_eq!(ask(5.0, Reuse::Nothing)?, (17.0, 2));
        assert_eq!(ask(6.0, Reuse::Keep { shallow: 0 })?, (21.0, 2));
        assert_eq!(ask(6.0, Reuse::Take { shallow: 0 })?, (21.0, 1));
        Ok(())
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
