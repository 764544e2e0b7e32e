//! What a pipeline tells its caller while it runs.

use candle_core::Tensor;
use std::ops::ControlFlow;
use tweedie::images::{Photo, Picture};

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Something that the user should know.
    Warning(String),
    /// A denoising step was done.
    Step {
        /// Steps done in this batch.
        done: usize,
        /// Steps of each batch.
        steps: usize,
        /// Which batch, from 0.
        batch: usize,
        /// The number of batches.
        batches: usize,
        /// The clean latents that the network predicted last, `[batch, latent_channels, height, width]`.
        x0: Option<&'a Tensor>,
    },
    /// What a picture would be after a step, by the pipeline's autoencoder for previews; without one there are none.
    Preview {
        /// Which picture of the request, from 0.
        index: usize,
        /// Steps done in this batch.
        done: usize,
        /// The clean latents that the network predicted last, decoded.
        picture: &'a Picture,
    },
    /// The autoencoder starts on a picture, or is done with a part of its decoder.
    Decoding {
        /// Which picture of the request, from 0.
        index: usize,
        /// Parts of the decoder that are done; 0 at the start.
        done: usize,
        /// How many it has.
        parts: usize,
    },
    /// A picture is finished.
    Picture {
        /// Which of the request, from 0.
        index: usize,
        /// The seed that makes it alone.
        seed: u64,
        /// The picture.
        picture: &'a Photo,
        /// The latents that were decoded for it, `[1, latent_channels, height, width]`, and what the decoder made
        /// of them; nothing if the given picture was left as it was.
        decoded: Option<(&'a Tensor, &'a Picture)>,
    },
}

/// Is told of every [`Event`]; breaking stops the run.
pub type Observer<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;
