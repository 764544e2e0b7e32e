//! A record of the kernels that ran, along which [`gradients`](super::with_gradients) go back.

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, Result, Shape, Storage, Tensor, TensorId};
use std::cell::Cell;

/// The gradients of a kernel's arguments, from its arguments, its result and the result's gradient.
pub(super) type Backward = Box<dyn Fn(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>>;

/// The gradients that a part of a network contributes, of its arguments and of the variables in it.
pub(super) type BackwardOfPart = Box<dyn Fn(&[Tensor], &Tensor, &Tensor) -> Result<Vec<(TensorId, Tensor)>>>;

/// A kernel that ran, or a part of a network.
pub(super) struct Entry {
    pub arguments: Vec<Tensor>,
    pub result: Tensor,
    pub step: Step,
}

/// How gradients go back through an entry.
pub(super) enum Step {
    Kernel(Backward),
    Part(BackwardOfPart),
}

impl Entry {
    /// What the gradient of the result contributes to others, by the tensors that those are of.
    pub fn contributions(&self, gradient: &Tensor) -> Result<Vec<(TensorId, Tensor)>> {
        match &self.step {
            Step::Part(backward) => backward(&self.arguments, &self.result, gradient),
            Step::Kernel(backward) => {
                let parts = backward(&self.arguments, &self.result, gradient)?;
                let each = self.arguments.iter().zip(parts);
                Ok(each.filter_map(|(argument, part)| Some((argument.id(), part?))).collect())
            }
        }
    }
}

thread_local! {
    static TAPE: Cell<Option<Vec<Entry>>> = const { Cell::new(None) };
}

/// A tape that was taken from its thread, and goes back when this is dropped: after an error and while a panic unwinds too.
struct Suspended(Option<Vec<Entry>>);

impl Drop for Suspended {
    fn drop(&mut self) {
        TAPE.set(self.0.take());
    }
}

/// Runs work of which a tape of this thread, if there is one, is to know nothing. A thread of a pool that waits for its tasks may
/// be given another caller's work in the meantime.
pub(super) fn without_tape<R>(work: impl FnOnce() -> R) -> R {
    let _tape = Suspended(TAPE.take());
    work()
}

/// Runs work under a new tape, while one that there is already knows nothing of it, and gives what was recorded.
pub(super) fn recorded<R>(work: impl FnOnce() -> R) -> (R, Vec<Entry>) {
    let _outer = Suspended(TAPE.replace(Some(Vec::new())));
    let result = work();
    (result, TAPE.take().unwrap_or_default())
}

/// Runs a kernel under the tape, if there is one and somebody may ask for gradients of the arguments; else `plainly`, as an
/// operation of candle's.
pub(super) fn record(
    arguments: &[&Tensor],
    forward: impl FnOnce() -> Result<(CpuStorage, Shape)>,
    backward: impl FnOnce() -> Backward,
    plainly: impl FnOnce() -> Result<Tensor>,
) -> Result<Tensor> {
    let mut tape = Suspended(TAPE.take());
    let Some(entries) = tape.0.as_mut().filter(|_| arguments.iter().any(|argument| argument.track_op())) else {
        return plainly();
    };
    let (storage, shape) = forward()?;
    let result = Tensor::from_storage(Storage::Cpu(storage), shape, BackpropOp::none(), true);
    let arguments = arguments.iter().map(|&argument| argument.clone()).collect();
    entries.push(Entry { arguments, result: result.clone(), step: Step::Kernel(backward()) });
    Ok(result)
}

/// Puts a part of a network on the tape, if there is one; says whether there is.
pub(super) fn record_part(arguments: Vec<Tensor>, result: &Tensor, backward: BackwardOfPart) -> bool {
    let mut tape = Suspended(TAPE.take());
    let Some(entries) = tape.0.as_mut() else { return false };
    entries.push(Entry { arguments, result: result.clone(), step: Step::Part(backward) });
    true
}
