//! Where many layers are best run.

use crate::kernels;
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

/// Runs work that is made of many layers: for the CPU on a thread of the kernels' pool ([`kernels::in_pool`]), else here.
pub fn on_device<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    if device.is_cpu() { kernels::in_pool(work) } else { work() }
}

/// Computes a loss, and its gradients with respect to all variables that it depends on: on the CPU with the kernels' own walk
/// back ([`kernels::with_gradients`]), else with candle's.
///
/// `compute` gives the loss and whatever else the caller wants to know.
///
/// # Errors
/// Whatever `compute` reports, or if an operation on the way has no derivative.
pub fn with_gradients<R: Send, E: From<candle_core::Error> + Send>(
    device: &Device,
    compute: impl FnOnce() -> Result<(Tensor, R), E> + Send,
) -> Result<(Tensor, R, GradStore), E> {
    on_device(device, || kernels::with_gradients(compute))
}
