//! Parts of a network whose inner results are not kept for the gradients but computed again: half again as much to compute for a
//! fraction of the memory (Chen et al. 2016, "Training deep nets with sublinear memory cost").

use super::backpropagation::walk_back;
use super::tape::{record_part, recorded, without_tape};
use candle_core::{Error, Result, Tensor, TensorId, Var};
use std::cell::Cell;
use std::fmt;

thread_local! {
    static RECOMPUTES: Cell<bool> = const { Cell::new(false) };
}

/// A setting that goes back to what it was.
struct Before(bool);

impl Drop for Before {
    fn drop(&mut self) {
        RECOMPUTES.set(self.0);
    }
}

/// Runs the computation of a loss whose [`recomputed`] parts keep their arguments alone.
pub fn recomputing<R>(work: impl FnOnce() -> R) -> R {
    let _before = Before(RECOMPUTES.replace(true));
    work()
}

/// Whether gradients are taken so on this thread.
pub fn recomputes() -> bool {
    RECOMPUTES.get()
}

/// A part of a network, a function of its arguments and of variables: where gradients are taken in [`recomputing`], nothing of
/// it is kept but its arguments and its result, and it is computed again on the way back. `compute` must give the same each time.
///
/// # Errors
/// Whatever `compute` reports.
pub fn recomputed<const N: usize, E: From<Error> + fmt::Display>(
    arguments: [&Tensor; N],
    compute: impl Fn([&Tensor; N]) -> std::result::Result<Tensor, E> + 'static,
) -> std::result::Result<Tensor, E> {
    if !RECOMPUTES.get() {
        return compute(arguments);
    }
    // What candle knows of the way to the result goes with it.
    let constants = arguments.map(Tensor::detach);
    let computed = without_tape(|| compute(constants.each_ref()))?;
    let result = Var::from_tensor(&computed.detach().contiguous()?)?.into_inner();
    drop((constants, computed));
    let backward = move |arguments: &[Tensor], _: &Tensor, gradient: &Tensor| {
        again::<N, E>(&compute, std::array::from_fn(|i| &arguments[i]), gradient)
    };
    match record_part(arguments.map(Tensor::clone).into(), &result, Box::new(backward)) {
        true => Ok(result),
        // Nobody takes gradients.
        false => Ok(result.detach()),
    }
}

/// Computes a part once more, and the gradients of its arguments and of the variables in it.
fn again<const N: usize, E: From<Error> + fmt::Display>(
    compute: &dyn Fn([&Tensor; N]) -> std::result::Result<Tensor, E>,
    arguments: [&Tensor; N],
    gradient: &Tensor,
) -> Result<Vec<(TensorId, Tensor)>> {
    let mut variables = arguments.map(Tensor::clone);
    for variable in variables.iter_mut().filter(|argument| argument.track_op()) {
        *variable = Var::from_tensor(&variable.detach())?.into_inner();
    }
    let (computed, entries) = recorded(|| compute(variables.each_ref()));
    let result = computed.map_err(|error| Error::Msg(error.to_string()))?;
    let loss = (&result * gradient)?.sum_all()?;
    let mut gradients = walk_back(entries, &loss)?;
    let mut parts = Vec::with_capacity(arguments.len());
    for (argument, variable) in arguments.iter().zip(&variables) {
        if let Some(part) = gradients.remove(variable).filter(|_| argument.track_op()) {
            parts.push((argument.id(), part));
        }
    }
    // To candle, the gradient is a factor like any other, and has one too.
    for &id in gradients.get_ids().filter(|&&id| id != gradient.id()) {
        parts.extend(gradients.get_id(id).map(|part| (id, part.clone())));
    }
    Ok(parts)
}
