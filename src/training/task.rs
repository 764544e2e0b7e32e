//! What is trained: its data, its losses, and the model that it ends as.

use super::{ParameterSet, Stream, Streams};
use crate::Result;
use crate::images::Picture;
use crate::noise::TorchGenerator;
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// A task of training, of which the [`Trainer`](super::Trainer) knows no more than this.
///
/// A step follows the gradients of one or several losses, one after the other, each of which moves the sets of
/// parameters that name it ([`ParameterSet::for_loss`](super::ParameterSet::for_loss)):
///
/// - one loss, one set: a network;
/// - one loss, several sets: networks that are trained together, each with an optimiser of its own;
/// - several losses: players that move in turn, such as a generator and its discriminator.
///
/// What is frozen is part of the task and in no set. The task holds what its networks are; their parameters, averages and
/// moments are the trainer's. Whatever else a step changes must be in [`Self::state`], and every random number must come from
/// [`Draws`]: then a run that goes on from a checkpoint ends with the bits of one that was never stopped.
pub trait TrainingTask: Send {
    /// What one evaluation of a loss sees.
    type Batch: Send + Sync + 'static;
    /// What is found out about the finished model, `()` if nothing is.
    type Evaluation;

    /// The names of a step's losses, in the order in which their gradients are followed.
    fn losses(&self) -> &'static [&'static str] {
        &["loss"]
    }

    /// Whether step `step`, counted from 0, follows the loss of this number. By default every step follows every loss.
    fn is_due(&self, loss: usize, step: u64) -> bool {
        let _ = (loss, step);
        true
    }

    /// A loss of a batch: a scalar, differentiable in all parameters that it moves.
    ///
    /// # Errors
    /// If the batch does not fit the networks.
    fn loss(&mut self, loss: usize, batch: &Self::Batch, draws: Draws) -> Result<Tensor>;

    /// What a step changes besides the parameters, by names; by default nothing.
    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        BTreeMap::new()
    }

    /// Takes what [`Self::state`] gave.
    ///
    /// # Errors
    /// If it is that of another task.
    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<()> {
        let _ = state;
        Ok(())
    }

    /// Pictures of what the networks can do by now, with what is added to their files' names; by default none.
    ///
    /// # Errors
    /// If the networks cannot be evaluated.
    fn samples(&self, sets: &[ParameterSet]) -> Result<Vec<(&'static str, Picture)>> {
        let _ = sets;
        Ok(Vec::new())
    }

    /// Whether a checkpoint is a model by itself: then the sets are called as the components of the model whose weights they are,
    /// and [`Self::write_rest`] writes all else. By default there is a model only at the end.
    fn checkpoints_are_models(&self) -> bool {
        false
    }

    /// Writes into an empty folder what the finished model has besides the weights of the sets.
    ///
    /// # Errors
    /// If it cannot be written.
    fn write_rest(&self, folder: &Path) -> Result<()> {
        let _ = folder;
        Ok(())
    }

    /// Judges the trained networks when the last step is done.
    ///
    /// # Errors
    /// If the networks cannot be evaluated.
    fn evaluate(&self, sets: &[ParameterSet]) -> Result<Self::Evaluation>;

    /// Writes the finished model into a folder, which is empty and takes its place when it is whole.
    ///
    /// # Errors
    /// If it cannot be written.
    fn write_model(&self, sets: &[ParameterSet], evaluation: &Self::Evaluation, folder: &Path) -> Result<()>;
}

/// The random numbers of one evaluation of a loss: functions of the run's seed and of the batch's number in the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    streams: Streams,
    index: u64,
    step: u64,
    validates: bool,
}

impl Draws {
    /// Those of batch `index` of a run, counted from 0, each of whose batches makes a step.
    pub fn new(seed: u64, index: u64) -> Self {
        Self { streams: Streams::new(seed), index, step: index, validates: false }
    }

    /// The same where several batches make a step.
    pub(super) fn in_step(mut self, step: u64) -> Self {
        self.step = step;
        self
    }

    /// The same of a loss that is taken to see how far training is, and not to train.
    pub(super) fn validating(mut self) -> Self {
        self.validates = true;
        self
    }

    /// Whether the loss is one that nothing is trained by: what differs from one time to the next must be the weights alone.
    pub fn validates(&self) -> bool {
        self.validates
    }

    /// The number of the step that the batch is of, counted from 0.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The generator of a stream, at its first number.
    pub fn generator(&self, stream: Stream) -> TorchGenerator {
        self.streams.generator(stream, self.index)
    }

    /// Standard normal noise of the shape, type and device of `like`, from [`Stream::Noise`].
    ///
    /// # Errors
    /// If the type is none of real numbers.
    pub fn noise(&self, like: &Tensor) -> Result<Tensor> {
        let noise = self.generator(Stream::Noise).normal(like.elem_count());
        Ok(Tensor::from_vec(noise, like.dims(), like.device())?.to_dtype(like.dtype())?)
    }
}
