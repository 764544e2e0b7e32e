//! Gradients of a loss, back along the tape of the kernels that ran.
//!
//! candle's own walk back clears memory for the gradient of every result and adds to it what each use of the result contributes,
//! on a pool of threads of its own that spin in between; in a training step of a small network that took a quarter of the time.
//! Here the first contribution is taken as it is. What candle's operations do between kernels stays candle's: to it, a kernel's
//! result is a variable, and each of its walks ends there.

use super::tape::{Entry, recorded};
use super::{add, compute_with};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};
use std::collections::HashMap;

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
    let (computed, entries) = recorded(compute);
    let (loss, rest) = computed?;
    let gradients = walk_back(entries, &loss)?;
    Ok((loss.detach(), rest, gradients))
}

/// From the loss to the variables, kernel by kernel, the last one first.
pub(super) fn walk_back(mut entries: Vec<Entry>, loss: &Tensor) -> Result<GradStore> {
    // What candle's operations made has its whole gradient as soon as the first kernel that reads it has given its part.
    let mut first_reader = HashMap::<TensorId, usize>::new();
    for (i, entry) in entries.iter().enumerate() {
        for argument in entry.arguments.iter().filter(|argument| argument.track_op() && !argument.is_variable()) {
            first_reader.entry(argument.id()).or_insert(i);
        }
    }
    let mut gradients = loss.backward()?;
    while let Some(entry) = entries.pop() {
        let parts = match gradients.remove(&entry.result) {
            Some(gradient) => entry.contributions(&gradient)?,
            None => Vec::new(),
        };
        let arguments = entry.arguments;
        drop(entry.result);
        for (id, part) in parts {
            accumulate(&mut gradients, id, part)?;
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
