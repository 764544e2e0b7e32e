//! Euler's method on the straight paths of rectified flow (Liu et al. 2023).

use super::{Levels, NoiseSchedule, Run, Scheduler, SchedulerEntry, Solver, Stochastic};
use crate::config::ConfigFields;
use crate::denoising::{Parameterization, PredictionType};
use crate::{Error, NoiseLevel, Result};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "flow-euler",
    label: "Flow Euler",
    class_name: "FlowMatchEulerDiscreteScheduler",
    order: 1,
    evaluations: 1,
    stochastic: Stochastic::No,
    reference: "Liu, Gong and Liu 2023, equation 1, arXiv:2209.03003; shift: Esser et al. 2024, equation 23",
    suffixes: &[],
    request_fields: &[],
    preset: &[],
    build,
};

/// As diffusers' `FlowMatchEulerDiscreteScheduler` without its respaced sigmas.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    for field in ["use_dynamic_shifting", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"] {
        config.only(field, &[false.into()])?;
    }
    config.only("invert_sigmas", &[false.into()])?;
    config.only("stochastic_sampling", &[false.into()])?;
    config.only("shift_terminal", &[])?;
    let shift = config.f64("shift", 1.0)?;
    let timesteps = config.usize("num_train_timesteps", 1000)?;
    if !(shift > 0.0 && shift.is_finite()) {
        return Err(config.wrong("shift", "it must be above 0"));
    }
    if timesteps == 0 {
        return Err(config.wrong("num_train_timesteps", "it must be above 0"));
    }
    Ok(Box::new(FlowEuler::new(timesteps, shift)))
}

/// Rectified flow: `x_t = (1 - t) x0 + t epsilon`, so alpha is `1 - t` and sigma is `t`; the network is told
/// `t` times the number of training timesteps.
#[derive(Debug, Clone)]
pub struct FlowEuler {
    parameterization: Parameterization,
    timesteps: usize,
    shift: f64,
}

impl FlowEuler {
    /// With the number of training timesteps, and a shift of the levels towards noise, 1 for none.
    pub fn new(timesteps: usize, shift: f64) -> Self {
        Self { parameterization: Parameterization::new(PredictionType::Flow), timesteps, shift }
    }

    /// The level at time `t`, 0 for data and 1 for noise, in a process of `timesteps` training timesteps.
    pub fn level(t: f64, timesteps: usize) -> NoiseLevel {
        NoiseLevel { timestep: t * timesteps as f64, alpha: 1.0 - t, sigma: t }
    }

    /// `s t / (1 + (s - 1) t)` (Esser et al. 2024, equation 23).
    fn shifted(&self, t: f64) -> f64 {
        self.shift * t / (1.0 + (self.shift - 1.0) * t)
    }
}

impl Scheduler for FlowEuler {
    fn schedule(&self) -> Option<&NoiseSchedule> {
        None
    }

    /// Evenly spaced times from 1 to that of the first training timestep, shifted, then the data. diffusers
    /// shifts the last of them twice.
    fn levels(&self, steps: usize) -> Result<Levels> {
        if steps == 0 || steps > self.timesteps {
            let fix = format!("take 1 to {}, the number of training timesteps", self.timesteps);
            return Err(Error::invalid("the number of steps", steps, fix));
        }
        let least = self.shifted(1.0 / self.timesteps as f64);
        let last = (steps - 1).max(1) as f64;
        let time = |i: usize| self.shifted(1.0 + (least - 1.0) * i as f64 / last);
        let mut levels: Vec<NoiseLevel> = (0..steps).map(|i| Self::level(time(i), self.timesteps)).collect();
        levels.push(Self::level(0.0, self.timesteps));
        Ok(Levels::chain(&levels, 1.0))
    }

    fn parameterization(&self) -> &Parameterization {
        &self.parameterization
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(FlowEulerSolver)
    }
}

/// One step along `dx/dt = epsilon - x0`.
#[derive(Debug, Clone)]
pub struct FlowEulerSolver;

impl Solver for FlowEulerSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let prediction = run.predict(x, &from)?;
        let velocity = (prediction.epsilon - prediction.x0)?;
        Ok((x + (velocity * (to.sigma - from.sigma))?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditioning::Conditioning;
    use crate::denoising::{Call, Denoiser, Network};
    use crate::noise::{NoiseSource, TorchNoise};
    use crate::schedulers::sample;
    use candle_core::DType;
    use std::ops::ControlFlow;

    /// What diffusers gives for `shift=3.0` and `set_timesteps(4)`.
    #[test]
    fn shifted_levels_are_those_of_diffusers() -> Result<()> {
        let levels = FlowEuler::new(1000, 3.0).levels(4)?;
        let expected = [1000.0, 857.692_321_777_343_8, 602.150_573_730_468_8, 8.928_571_701_049_805];
        for (got, want) in levels.timesteps().iter().zip(expected) {
            // diffusers has them in f32.
            assert!((got - want).abs() < 1e-3, "{got} {want}");
        }
        assert_eq!((levels.to(3).sigma, levels.to(3).alpha), (0.0, 1.0));
        Ok(())
    }

    /// Data that is one point: every path is straight, so a single step lands on it, and so do many.
    #[test]
    fn straight_paths_end_at_the_data() -> Result<()> {
        struct Point;
        impl Network for Point {
            fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
                let (x, timestep) = (call.x, call.level()?.timestep);
                Ok(((x - 0.75)? / (timestep / 1000.0))?)
            }
        }
        let flow = FlowEuler::new(1000, 2.0);
        let conditioning = Conditioning::default();
        let denoiser = Denoiser::new(&Point, &conditioning, flow.parameterization());
        for steps in [1, 3, 20] {
            let (levels, mut noise) = (flow.levels(steps)?, TorchNoise::shared(1));
            let start = noise.normal(&[1, 1, 2, 2])?.to_dtype(DType::F64)?;
            let run = Run::new(&levels, &denoiser, &mut noise);
            let end = sample(flow.solver().as_mut(), start, 0, run, &mut |_| ControlFlow::Continue(()))?;
            assert!(end.flatten_all()?.to_vec1::<f64>()?.iter().all(|v| (v - 0.75).abs() < 1e-9), "{steps}");
        }
        Ok(())
    }

    #[test]
    fn the_first_level_is_noise_and_no_run_is_empty() -> Result<()> {
        let flow = FlowEuler::new(1000, 1.0);
        let levels = flow.levels(5)?;
        assert_eq!((levels.from(0).alpha, levels.from(0).sigma, levels.from(0).timestep), (0.0, 1.0, 1000.0));
        assert!((levels.from(4).timestep - 1.0).abs() < 1e-9);
        assert!(flow.levels(0).is_err() && flow.levels(1001).is_err());
        Ok(())
    }
}
