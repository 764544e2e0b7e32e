//! What a pipeline tells its caller while it runs.

use std::ops::ControlFlow;
use tweedie::images::Picture;

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
    },
    /// The autoencoder starts on a picture.
    Decoding,
    /// A picture is finished.
    Picture {
        /// Which of the request, from 0.
        index: usize,
        /// The seed that makes it alone.
        seed: u64,
        /// The picture.
        picture: &'a Picture,
    },
}

/// Is told of every [`Event`]; breaking stops the run.
pub type Observer<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;
