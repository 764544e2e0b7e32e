//! The same values in another shape.

use super::{contiguous, copy_to, for_real, on_cpu, tape, to_storage, written};
use candle_core::{Result, Tensor};

/// Values that one task copies.
const TASK_LEN: usize = 1 << 16;

/// `x` in another shape of as many values. On a tape it is a copy: through a view, candle would have to walk back.
///
/// # Errors
/// If the numbers of values differ.
pub fn reshape(x: &Tensor, shape: impl Into<Vec<usize>>) -> Result<Tensor> {
    let (x, shape) = (&x.contiguous()?, shape.into());
    let view = x.reshape(shape.as_slice())?;
    let forward = || {
        let (storage, layout) = x.storage_and_layout();
        for_real!(on_cpu(&storage, "reshape")?, "reshape", T => {
            let values = contiguous::<T>(on_cpu(&storage, "reshape")?, layout, "reshape")?;
            // SAFETY: `copy_to` sets all that it is given.
            to_storage(unsafe { written(values.len(), TASK_LEN, |at, copy| copy_to(copy, &values[at])) }, shape)
        })
    };
    let backward =
        || -> tape::Backward { Box::new(|x, _, grad| Ok(vec![Some(grad.contiguous()?.reshape(x[0].shape())?)])) };
    tape::record(&[x], forward, backward, || Ok(view))
}
