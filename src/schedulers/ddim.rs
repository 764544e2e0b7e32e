//! DDIM: denoising diffusion implicit models (Song, Meng and Ermon 2021).

use super::{Levels, NoiseSchedule, Run, Scheduler, SchedulerEntry, Solver, Stochastic};
use super::{TimestepSpacing, spacing};
use crate::config::ConfigFields;
use crate::denoising::Parameterization;
use crate::{NoiseLevel, Result};
use candle_core::Tensor;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "ddim",
    label: "DDIM",
    class_name: "DDIMScheduler",
    order: 1,
    evaluations: 1,
    stochastic: Stochastic::Optional,
    reference: "Song, Meng and Ermon 2021, arXiv:2010.02502",
    suffixes: &[],
    request_fields: &["eta", "use_clipped_model_output"],
    preset: &[],
    build: |config| Ok(Box::new(Ddim::from_config(config)?)),
};

/// DDIM as diffusers' `DDIMScheduler` has it.
#[derive(Debug, Clone)]
pub struct Ddim {
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    spacing: TimestepSpacing,
    steps_offset: usize,
    /// `abar` of the state after the last step.
    final_alpha_cumprod: f64,
    solver: DdimSolver,
}

impl Ddim {
    /// From the fields of a scheduler's file and of a request.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config(config: &ConfigFields) -> Result<Self> {
        let schedule = NoiseSchedule::from_config(config)?;
        let set_alpha_to_one = config.bool("set_alpha_to_one", true)?;
        Ok(Self {
            final_alpha_cumprod: if set_alpha_to_one { 1.0 } else { schedule.alphas_cumprod()[0] },
            parameterization: Parameterization::from_config(config, true)?,
            spacing: TimestepSpacing::from_config(config, TimestepSpacing::Leading)?,
            steps_offset: config.usize("steps_offset", 0)?,
            solver: DdimSolver {
                eta: config.f64("eta", 0.0)?,
                use_clipped_model_output: config.bool("use_clipped_model_output", false)?,
            },
            schedule,
        })
    }
}

impl Scheduler for Ddim {
    fn schedule(&self) -> Option<&NoiseSchedule> {
        Some(&self.schedule)
    }

    fn parameterization(&self) -> &Parameterization {
        &self.parameterization
    }

    /// A step from timestep `t` lands at `t - train / steps`, which rounding may set beside the next one.
    fn levels(&self, steps: usize) -> Result<Levels> {
        let train = self.schedule.num_train_timesteps();
        spacing::check_steps(train, steps)?;
        let stride = train / steps;
        let pairs = self.spacing.timesteps(train, steps, self.steps_offset)?.into_iter().map(|t| {
            let to = match t.checked_sub(stride) {
                Some(previous) => self.schedule.level(previous)?,
                None => NoiseLevel::variance_preserving(0.0, self.final_alpha_cumprod),
            };
            Ok((self.schedule.level(t)?, to))
        });
        Ok(Levels::steps(&pairs.collect::<Result<Vec<_>>>()?, 1.0))
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(self.solver.clone())
    }
}

/// The update of equation 12; `eta` of equation 16 goes from 0 (deterministic) to 1 (DDPM).
#[derive(Debug, Clone, Default)]
pub struct DdimSolver {
    /// The share of fresh noise.
    pub eta: f64,
    /// Whether epsilon is derived anew from the limited `x0`.
    pub use_clipped_model_output: bool,
}

impl Solver for DdimSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (from, to) = (run.levels().from(i), run.levels().to(i));
        let prediction = run.predict(x, &from)?;
        let epsilon = if self.use_clipped_model_output { prediction.noise_left(x, &from)? } else { prediction.epsilon };
        let variance = (to.sigma / from.sigma).powi(2) * (1.0 - (from.alpha / to.alpha).powi(2));
        let std = self.eta * variance.max(0.0).sqrt();
        let direction = (to.sigma * to.sigma - std * std).max(0.0).sqrt();
        let next = ((prediction.x0 * to.alpha)? + (epsilon * direction)?)?;
        if self.eta > 0.0 { Ok((next + (run.noise_like(x)? * std)?)?) } else { Ok(next) }
    }
}
