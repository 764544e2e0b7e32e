//! Seeded normal noise, one stream per image.
//!
//! All randomness of a request is drawn on the host by a [`NoiseSource`] and uploaded, so a seed gives the
//! same numbers on every device. [`TorchNoise`] gives the numbers of PyTorch's CPU generator, and because
//! each image of a batch has a stream of its own, the batch size never changes a picture.
//!
//! # Examples
//!
//! ```
//! use tweedie::noise::{NoiseSource, TorchNoise};
//!
//! // The second image of two has the noise that it has alone: that of its own seed.
//! let together = TorchNoise::per_image(&[7, 8]).normal(&[2, 4])?;
//! let alone = TorchNoise::per_image(&[8]).normal(&[1, 4])?;
//! assert_eq!(together.get(1)?.to_vec1::<f32>()?, alone.get(0)?.to_vec1::<f32>()?);
//! # Ok::<_, tweedie::Error>(())
//! ```

mod torch;

pub use torch::TorchGenerator;

use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// Where a request's random numbers come from.
pub trait NoiseSource {
    /// Draws independent standard normal values.
    ///
    /// # Shapes
    /// `shape` is the whole batch's, `[batch, ...]`; the result is an f32 tensor of that shape on the CPU.
    ///
    /// # Errors
    /// If the source has streams for another number of images.
    fn normal(&mut self, shape: &[usize]) -> Result<Tensor>;
}

/// The values of `torch.randn` from `torch.Generator("cpu")`.
///
/// In diffusers' terms [`TorchNoise::per_image`] is a list of generators and [`TorchNoise::shared`] is one
/// generator for the whole batch.
#[derive(Debug, Clone)]
pub struct TorchNoise {
    streams: Vec<TorchGenerator>,
    shared: bool,
}

impl TorchNoise {
    /// One stream per image: image `i` draws from `seeds[i]` alone.
    pub fn per_image(seeds: &[u64]) -> Self {
        Self { streams: seeds.iter().map(|&s| TorchGenerator::new(s)).collect(), shared: false }
    }

    /// One stream from which every draw takes the values of the whole batch.
    pub fn shared(seed: u64) -> Self {
        Self { streams: vec![TorchGenerator::new(seed)], shared: true }
    }
}

impl NoiseSource for TorchNoise {
    fn normal(&mut self, shape: &[usize]) -> Result<Tensor> {
        let count: usize = shape.iter().product();
        let values = if self.shared {
            self.streams[0].normal(count)
        } else {
            if shape.first() != Some(&self.streams.len()) {
                return Err(Error::invalid(
                    "the shape of the noise",
                    format!("{shape:?}"),
                    format!("its first dimension must be the number of seeds, {}", self.streams.len()),
                ));
            }
            let each = count / self.streams.len().max(1);
            self.streams.iter_mut().flat_map(|stream| stream.normal(each)).collect()
        };
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}
