//! The random numbers of training: each is a function of the run's seed and of where it is used.
//!
//! No generator lives longer than one use, so there is no state to save, and a run that is resumed at step `n`
//! draws what it would have drawn.

use super::data::SplitMix64;
use crate::noise::TorchGenerator;

/// What random numbers are used for. Each use has a stream of its own, so that an option that needs more of one
/// changes none of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The weights before the first step.
    Weights,
    /// Timesteps.
    Timesteps,
    /// The noise of the forward process.
    Noise,
    /// Which classes or captions are dropped.
    ClassDropout,
    /// The noise that sample grids start from.
    Samples,
    /// Which latents are drawn from an encoder's distribution.
    Latents,
}

/// A run's source of random numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streams {
    seed: u64,
}

impl Streams {
    /// The streams of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The generator of a stream for its `index`-th use: the Mersenne Twister seeded with
    /// `mix(mix(mix(seed) + stream) + index)`, of which it takes the low 32 bits.
    pub fn generator(&self, stream: Stream, index: u64) -> TorchGenerator {
        let of_stream = mix(mix(self.seed).wrapping_add(stream as u64));
        TorchGenerator::new(mix(of_stream.wrapping_add(index)))
    }
}

/// The first output of SplitMix64 with a seed.
fn mix(seed: u64) -> u64 {
    SplitMix64::new(seed).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_do_not_share_numbers() {
        let first = |seed, stream, index| Streams::new(seed).generator(stream, index).next_u32();
        let drawn = [
            first(1, Stream::Noise, 0),
            first(1, Stream::Noise, 1),
            first(1, Stream::Timesteps, 0),
            first(2, Stream::Noise, 0),
            first(0, Stream::Noise, 1),
        ];
        assert!((0..drawn.len()).all(|i| !drawn[..i].contains(&drawn[i])), "{drawn:?}");
        assert_eq!(first(1, Stream::Noise, 7), first(1, Stream::Noise, 7));
    }
}
