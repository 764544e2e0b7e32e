//! How often a run evaluates its network.

use super::{Levels, Resampling, Run, Scheduler};
use crate::Result;
use crate::conditioning::Conditioning;
use crate::denoising::{Denoiser, Network};
use crate::noise::NoiseSource;
use candle_core::{DType, Device, Tensor};
use std::cell::Cell;
use std::ops::ControlFlow;

/// Answers with zeros and counts.
struct Counter {
    channels: usize,
    calls: Cell<usize>,
}

impl Network for Counter {
    fn forward(&self, x: &Tensor, _: f64, _: &Conditioning) -> Result<Tensor> {
        self.calls.set(self.calls.get() + 1);
        Ok(Tensor::zeros((x.dim(0)?, self.channels, x.dim(2)?, x.dim(3)?), x.dtype(), x.device())?)
    }
}

struct NoNoise;

impl NoiseSource for NoNoise {
    fn normal(&mut self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?)
    }
}

/// How often a run from step `start` evaluates its network: some solvers do so twice in a step, but not in every one. It
/// is found by running the solver, on a single pixel of `channels` (state and network output), without a network.
///
/// # Errors
/// If the run is impossible.
pub fn evaluations(
    scheduler: &dyn Scheduler,
    levels: &Levels,
    start: usize,
    resampling: Resampling,
    (state, output): (usize, usize),
) -> Result<usize> {
    let counter = Counter { channels: output, calls: Cell::new(0) };
    let nothing = Conditioning::default();
    let denoiser = Denoiser::new(&counter, &nothing, scheduler.parameterization());
    let x = Tensor::zeros((1, state, 1, 1), DType::F32, &Device::Cpu)?;
    let mut noise = NoNoise;
    let run = Run::new(levels, &denoiser, &mut noise);
    resampling.sample(scheduler, x, start, run, &mut |_| ControlFlow::Continue(()))?;
    Ok(counter.calls.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFields;
    use crate::schedulers::by_name;
    use serde_json::Map;

    #[test]
    fn a_solver_is_counted_as_it_runs() -> Result<()> {
        let count = |name: &str, start| -> Result<usize> {
            let choice = by_name(name)?;
            let fields = ConfigFields::from_fields("scheduler", Map::new());
            let scheduler = choice.entry.build(&choice.configure(&fields))?;
            evaluations(scheduler.as_ref(), &scheduler.levels(10)?, start, Resampling::default(), (4, 4))
        };
        // The last step of Heun's method ends at no noise, where there is nothing to evaluate.
        assert_eq!([count("euler", 0)?, count("ddim", 4)?, count("heun", 0)?, count("heun", 5)?], [10, 6, 19, 9]);
        Ok(())
    }
}
