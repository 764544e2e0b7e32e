//! Latent consistency models: jump to the data, noise back up (Luo et al. 2023).

use super::{Configured, DistilledSteps, NoiseSchedule, Run, ScheduleDefaults, Scheduler};
use super::{SchedulerEntry, Solver, Stochastic};
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use crate::{NoiseLevel, Result};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "lcm",
    label: "LCM",
    class_name: "LCMScheduler",
    order: 1,
    evaluations: 1,
    stochastic: Stochastic::Yes,
    reference: "Luo et al. 2023, algorithm 2, arXiv:2310.04378; Song et al. 2023, arXiv:2303.01469",
    suffixes: &[],
    request_fields: &[],
    preset: &[],
    build,
};

/// As diffusers' `LCMScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let defaults = ScheduleDefaults::LATENT.with_zero_terminal_snr();
    let schedule = NoiseSchedule::from_config_or(config, defaults)?;
    let limits = LimitFields::ThresholdOrClip { by_default: false };
    let parameterization = Parameterization::from_config_with(config, limits)?;
    let discretization =
        DistilledSteps::from_config(config, &schedule, NoiseLevel { timestep: 0.0, alpha: 1.0, sigma: 0.0 })?;
    let solver = LcmSolver { timestep_scaling: config.f64("timestep_scaling", 10.0)? };
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver }))
}

/// The standard deviation of the data that the skip connection assumes.
const SIGMA_DATA: f64 = 0.5;

/// The consistency function `c_skip x + c_out x0` (Luo et al. 2023, equation 9), noised to the next level.
#[derive(Debug, Clone)]
pub struct LcmSolver {
    /// The factor of the timestep in the skip connection's weights.
    pub timestep_scaling: f64,
}

impl Solver for LcmSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let scaled = from.timestep * self.timestep_scaling;
        let spread = scaled.hypot(SIGMA_DATA);
        let (skip, out) = ((SIGMA_DATA / spread).powi(2), scaled / spread);
        let clean = ((run.predict(x, &from)?.x0 * out)? + (x * skip)?)?;
        if to.sigma == 0.0 {
            return Ok((clean * to.alpha)?);
        }
        to.add_noise(&clean, &run.noise_like(x)?)
    }
}
