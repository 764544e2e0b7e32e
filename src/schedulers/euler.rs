//! Euler's method on the probability-flow ODE (Karras et al. 2022).

use super::churn::CHURN_AND_GIVEN_FIELDS;
use super::{Churn, Configured, FinalSigma, NoiseSchedule, RESPACED, Run, ScheduleDefaults, Scheduler};
use super::{SchedulerEntry, SigmaSpace, Solver, Stochastic};
use crate::Result;
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization, PredictionType};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "euler",
    label: "Euler",
    class_name: "EulerDiscreteScheduler",
    order: 1,
    evaluations: 1,
    stochastic: Stochastic::Optional,
    reference: "Karras et al. 2022, algorithm 2 without its second half, arXiv:2206.00364",
    suffixes: RESPACED,
    request_fields: CHURN_AND_GIVEN_FIELDS,
    preset: &[],
    build,
};

/// As diffusers' `EulerDiscreteScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let defaults = ScheduleDefaults::LINEAR.with_zero_terminal_snr();
    let schedule = NoiseSchedule::from_config_or(config, defaults)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::None)?;
    let continuous = config.choice("timestep_type", &[("discrete", false), ("continuous", true)], false)?;
    let log_linear = config.choice("interpolation_type", &[("linear", false), ("log_linear", true)], false)?;
    let discretization = SigmaSpace {
        final_sigma: FinalSigma::from_config(config)?,
        continuous: continuous && parameterization.prediction_type == PredictionType::VPrediction,
        log_linear,
        ..SigmaSpace::from_config(config, &schedule)?.respaced(config)?
    };
    let solver = EulerSolver { churn: Churn::from_config(config)? };
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver }))
}

/// One step along `dx/dsigma = epsilon(x, sigma)` (equation 3), after any churn.
///
/// The levels have one alpha.
#[derive(Debug, Clone, Default)]
pub struct EulerSolver {
    /// The noise added before each step.
    pub churn: Churn,
}

impl Solver for EulerSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let (x, from) = self.churn.raise(x, &from, run)?;
        let slope = run.predict(&x, &from)?.epsilon;
        Ok((x + (slope * (to.sigma - from.sigma))?)?)
    }
}
