//! Seeded random weights, for benchmarks and tests of a model without a checkpoint.

use crate::Result;
use crate::layers::WeightSource;
use crate::noise::TorchGenerator;
use candle_core::{DType, Device, Tensor};

/// Random weights of any shape: normal, scaled by the square root of what each output sums over; norms are
/// one, biases zero. The same name and seed give the same values.
#[derive(Debug, Clone)]
pub struct RandomWeights {
    seed: u64,
    dtype: DType,
    device: Device,
}

impl RandomWeights {
    /// A source with a seed, an element type and a device.
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        Self { seed, dtype, device: device.clone() }
    }
}

impl WeightSource for RandomWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let values = match shape {
            [len] => vec![if name.ends_with("weight") { 1.0f32 } else { 0.0 }; *len],
            _ => {
                let inputs: usize = shape[1..].iter().product();
                let scale = 1.0 / (inputs as f32).sqrt();
                let mut generator = TorchGenerator::new(self.seed ^ fnv1a(name));
                let mut values = generator.normal(shape.iter().product());
                values.iter_mut().for_each(|value| *value *= scale);
                values
            }
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)?)
    }

    fn contains(&self, _: &str) -> bool {
        true
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

/// The Fowler-Noll-Vo hash, which is the same everywhere.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
