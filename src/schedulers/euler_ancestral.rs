//! Euler's method with ancestral noise: a step too far down, then noise back up.

use super::GIVEN_FIELDS;
use super::{Configured, NoiseSchedule, Run, ScheduleDefaults, Scheduler, SchedulerEntry, SigmaSpace};
use super::{Solver, Stochastic};
use crate::Result;
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "euler-a",
    label: "Euler a",
    class_name: "EulerAncestralDiscreteScheduler",
    order: 1,
    evaluations: 1,
    stochastic: Stochastic::Yes,
    reference: "k-diffusion's sample_euler_ancestral; the noise is that of Ho et al. 2020, arXiv:2006.11239",
    suffixes: &[],
    request_fields: GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `EulerAncestralDiscreteScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let defaults = ScheduleDefaults::LINEAR.with_zero_terminal_snr();
    let schedule = NoiseSchedule::from_config_or(config, defaults)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::None)?;
    let discretization = SigmaSpace::from_config(config, &schedule)?;
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: EulerAncestralSolver }))
}

/// How a step from `from` to `to` is shared between going down and noise: `(down, up)` with
/// `down^2 + up^2 = to^2`, where `up^2` is the posterior variance of DDPM (Ho et al. 2020, equation 7) in
/// sigma space.
pub(super) fn ancestral_split(from: f64, to: f64) -> (f64, f64) {
    let up = (to * to * (from * from - to * to) / (from * from)).max(0.0).sqrt().min(to);
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// Euler to less noise than the next level has, then noise up to it, with DDPM's posterior variance. Noise is
/// drawn in every step, the last included.
///
/// The levels have one alpha.
#[derive(Debug, Clone, Default)]
pub struct EulerAncestralSolver;

impl Solver for EulerAncestralSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let (down, up) = ancestral_split(from.sigma, to.sigma);
        let slope = run.predict(x, &from)?.epsilon;
        let lower = (x + (slope * (down - from.sigma))?)?;
        Ok((lower + (run.noise_like(x)? * up)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_parts_make_the_whole() {
        for (from, to) in [(14.6, 3.0), (1.0, 0.99), (0.5, 0.0), (0.5, 0.5)] {
            let (down, up) = ancestral_split(from, to);
            assert!((down.hypot(up) - to).abs() < 1e-12);
            assert!((down - to * to / from).abs() < 1e-7, "the step down ends at to^2 / from");
        }
    }
}
