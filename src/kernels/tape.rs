//! A record of the kernels that ran, along which gradients go back.
//!
//! candle's own walk back clears memory for the gradient of every result and adds to it what each use of the result contributes,
//! on a pool of threads of its own that spin in between; in a training step of a small network that took a quarter of the time.
//! Here the first contribution is taken as it is. What candle's operations do between kernels stays candle's: to it, a kernel's
//! result is a variable, and each of its walks ends there.

use super::{add, compute_with};
use candle_core::backprop::GradStore;
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, Result, Shape, Storage, Tensor, TensorId};
use std::cell::Cell;
use std::collections::HashMap;

/// The gradients of a kernel's arguments, from its arguments, its result and the result's gradient.
pub(super) type Backward = Box<dyn Fn(&[Tensor], &Tensor, &Tensor) -> Result<Vec<Option<Tensor>>>>;

/// A kernel that ran.
struct Entry {
    arguments: Vec<Tensor>,
    result: Tensor,
    backward: Backward,
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

/// Computes a loss, and the gradients of its sum with respect to all variables that it depends on.
///
/// `compute` gives the loss and whatever else the caller wants to know, which is a constant to whoever takes gradients later. It
/// has to run on one thread; kernels that run on another one are differentiated by candle.
///
/// # Errors
/// Whatever `compute` reports, or if an operation on the way has no derivative.
pub fn with_gradients<R, E: From<candle_core::Error>>(
    compute: impl FnOnce() -> std::result::Result<(Tensor, R), E>,
) -> std::result::Result<(Tensor, R, GradStore), E> {
    let outer = Suspended(TAPE.replace(Some(Vec::new())));
    let computed = compute();
    let entries = TAPE.take().unwrap_or_default();
    drop(outer);
    let (loss, rest) = computed?;
    let gradients = walk_back(entries, &loss)?;
    Ok((loss.detach(), rest, gradients))
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
    entries.push(Entry { arguments, result: result.clone(), backward: backward() });
    Ok(result)
}

/// From the loss to the variables, kernel by kernel, the last one first.
fn walk_back(mut entries: Vec<Entry>, loss: &Tensor) -> Result<GradStore> {
    // What candle's operations made has its whole gradient as soon as the first kernel that reads it has given its part.
    let mut first_reader = HashMap::<TensorId, usize>::new();
    for (i, entry) in entries.iter().enumerate() {
        for argument in entry.arguments.iter().filter(|argument| argument.track_op() && !argument.is_variable()) {
            first_reader.entry(argument.id()).or_insert(i);
        }
    }
    let mut gradients = loss.backward()?;
    while let Some(Entry { arguments, result, backward }) = entries.pop() {
        if let Some(gradient) = gradients.remove(&result) {
            let parts = backward(&arguments, &result, &gradient)?;
            drop((result, gradient));
            for (argument, part) in arguments.iter().zip(parts) {
                if let Some(part) = part {
                    accumulate(&mut gradients, argument.id(), part)?;
                }
            }
        }
        for argument in &arguments {
            if first_reader.get(&argument.id()) == Some(&entries.len())
                && let Some(gradient) = gradients.remove(argument)
            {
                let gradient = gradient.detach();
                let beyond = (argument * &gradient)?.sum_all()?.backward()?;
                // To candle, the gradient is a factor like any other, and has one too.
                for &id in beyond.get_ids().filter(|&&id| id != gradient.id()) {
                    if let Some(part) = beyond.get_id(id) {
                        accumulate(&mut gradients, id, part.clone())?;
                    }
                }
            }
        }
    }
    Ok(gradients)
}

/// Adds to a gradient. candle's know of the operations that they came from, which nobody asks for.
fn accumulate(gradients: &mut GradStore, id: TensorId, part: Tensor) -> Result<()> {
    let part = part.detach();
    let sum = match gradients.get_id(id).map(Tensor::detach) {
        // candle's part of a network may be in half precision, or on another device.
        Some(before) if compute_with(&part) => add(&before, &part)?,
        Some(before) => (before + part)?,
        None => part,
    };
    gradients.insert_id(id, sum);
    Ok(())
}
