//! Pseudo numerical methods for diffusion models (Liu et al. 2022).

use super::{Clock, Configured, Discretization, Levels, NoiseSchedule, Run, ScheduleDefaults};
use super::{Scheduler, SchedulerEntry, SigmaTable, Solver, Stochastic, TimestepSpacing};
use crate::config::ConfigFields;
use crate::denoising::{LimitFields, Parameterization};
use crate::{Error, NoiseLevel, Result};
use candle_core::Tensor;
use std::collections::VecDeque;

pub(super) const ENTRY: SchedulerEntry = SchedulerEntry {
    name: "pndm",
    label: "PNDM",
    class_name: "PNDMScheduler",
    order: 2,
    evaluations: 1,
    stochastic: Stochastic::No,
    reference: "Liu et al. 2022, algorithm 2, arXiv:2202.09778",
    suffixes: &[],
    request_fields: &[],
    preset: &[],
    build,
};

/// As diffusers' `PNDMScheduler`.
fn build(config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
    let schedule = NoiseSchedule::from_config_or(config, ScheduleDefaults::LINEAR)?;
    let parameterization = Parameterization::from_config_with(config, LimitFields::None)?;
    let discretization = PndmEvaluations {
        spacing: TimestepSpacing::from_config(config, TimestepSpacing::Leading)?,
        steps_offset: config.usize("steps_offset", 0)?,
        skip_prk_steps: config.bool("skip_prk_steps", false)?,
        final_alpha_cumprod: match config.bool("set_alpha_to_one", false)? {
            true => 1.0,
            false => schedule.alphas_cumprod()[0],
        },
        schedule: schedule.clone(),
    };
    let runge_kutta = if discretization.skip_prk_steps { 0 } else { RUNGE_KUTTA_EVALUATIONS };
    Ok(Box::new(Configured { schedule, parameterization, discretization, solver: PndmSolver::new(runge_kutta) }))
}

/// Three Runge-Kutta steps of four evaluations give the multistep method its history.
const RUNGE_KUTTA_EVALUATIONS: usize = 12;

/// The evaluations of a run. Each is a step of its own, as in the reference, so that a run in the middle of the
/// levels and the known part of an inpainted picture fall where they do there.
#[derive(Debug, Clone)]
struct PndmEvaluations {
    schedule: NoiseSchedule,
    spacing: TimestepSpacing,
    steps_offset: usize,
    skip_prk_steps: bool,
    final_alpha_cumprod: f64,
}

impl PndmEvaluations {
    fn level(&self, timestep: Option<usize>) -> Result<NoiseLevel> {
        timestep.map_or_else(
            || Ok(NoiseLevel::variance_preserving(0.0, self.final_alpha_cumprod)),
            |timestep| self.schedule.level(timestep),
        )
    }
}

impl Discretization for PndmEvaluations {
    fn levels(&self, steps: usize) -> Result<Levels> {
        let train = self.schedule.num_train_timesteps();
        let mut timesteps = self.spacing.timesteps(train, steps, self.steps_offset)?;
        let stride = train / steps;
        // Where an evaluation is made, and where the state after it is.
        let mut pairs: Vec<(usize, Option<usize>)> = Vec::with_capacity(steps + RUNGE_KUTTA_EVALUATIONS);
        if self.skip_prk_steps {
            // The second timestep is visited twice: the first visit is the second half of the first step.
            if steps > 1 {
                timesteps.insert(1, timesteps[1]);
            }
        } else {
            if steps < 4 {
                let fix = "its Runge-Kutta start needs at least 4; or set skip_prk_steps to true";
                return Err(Error::invalid("the number of steps", steps, fix));
            }
            let half = stride / 2;
            for ends in timesteps[..4].windows(2) {
                let (start, middle, end) = (ends[0], ends[1] + half, ends[1]);
                let evaluations = [(start, start - half), (middle, middle), (middle, end), (end, end)];
                pairs.extend(evaluations.map(|(at, to)| (at, Some(to))));
            }
            timesteps.drain(..3);
        }
        pairs.extend(timesteps.into_iter().map(|t| (t, t.checked_sub(stride))));
        let levels = pairs.into_iter().map(|(at, to)| Ok((self.schedule.level(at)?, self.level(to)?)));
        let levels = Levels::steps(&levels.collect::<Result<Vec<_>>>()?, 1.0);
        Ok(levels.with_clock(Clock::Table(SigmaTable::new(&self.schedule))))
    }
}

/// Linear multistep on the network's raw output, with DDIM's step as the transfer between levels.
///
/// Raw outputs are averaged, then read as a prediction for the state that the step starts from (equations 9
/// and 12). The first steps are classical Runge-Kutta (equation 13), or, without those, one corrected Euler
/// step: its second evaluation, where the first landed, does the step anew with the mean of both.
///
/// The levels have a clock, unless the solver starts with Runge-Kutta steps.
#[derive(Debug, Clone)]
pub struct PndmSolver {
    /// The first so many evaluations of a run are in fours.
    runge_kutta_evaluations: usize,
    /// How many this run has made.
    evaluations: usize,
    /// Raw outputs at the starts of past steps, the newest first.
    outputs: VecDeque<Tensor>,
    /// The state and level that the step in progress started from, and the sum of its weighted outputs.
    start: Option<(Tensor, NoiseLevel, Tensor)>,
}

/// The weights of Adams and Bashforth, the newest output first, by how many there are.
const ADAMS_BASHFORTH: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

impl PndmSolver {
    /// A solver whose first `runge_kutta_evaluations`, 0 or 12, are those of Runge-Kutta steps.
    pub fn new(runge_kutta_evaluations: usize) -> Self {
        Self { runge_kutta_evaluations, evaluations: 0, outputs: VecDeque::new(), start: None }
    }

    fn remember(&mut self, raw: &Tensor) {
        self.outputs.push_front(raw.clone());
        self.outputs.truncate(ADAMS_BASHFORTH.len());
    }

    /// The four evaluations of a Runge-Kutta step: each but the last leads to where the next is made.
    fn runge_kutta(&mut self, x: &Tensor, i: usize, raw: Tensor, run: &Run<'_>) -> Result<Tensor> {
        let (at, to) = (run.levels().from(i), run.levels().to(i));
        let place = i % 4;
        let weight = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0][place];
        let weighted = (&raw * weight)?;
        let (start, from, sum) = match self.start.take() {
            Some((start, from, sum)) if place > 0 => (start, from, (sum + weighted)?),
            _ => {
                self.remember(&raw);
                (x.clone(), at, weighted)
            }
        };
        let slope = if place == 3 { sum.clone() } else { raw };
        let next = transfer(slope, &start, &from, &to, run)?;
        self.start = Some((start, from, sum));
        Ok(next)
    }

    /// The second evaluation of a run without Runge-Kutta steps.
    fn correct(&mut self, i: usize, raw: &Tensor, run: &Run<'_>) -> Result<Option<Tensor>> {
        let Some((start, _, first)) = self.start.take() else { return Ok(None) };
        let levels = run.levels();
        let stride = levels.from(i - 1).timestep - levels.to(i - 1).timestep;
        let at = levels.from(i);
        let from = levels.at_timestep(at.timestep + stride)?;
        transfer(((first + raw)? / 2.0)?, &start, &from, &at, run).map(Some)
    }
}

impl Solver for PndmSolver {
    fn step(&mut self, x: &Tensor, i: usize, run: &mut Run<'_>) -> Result<Tensor> {
        let (at, to) = (run.levels().from(i), run.levels().to(i));
        let raw = run.predict(x, &at)?.raw;
        self.evaluations += 1;
        if i < self.runge_kutta_evaluations {
            return self.runge_kutta(x, i, raw, run);
        }
        if self.evaluations == 2
            && self.runge_kutta_evaluations == 0
            && let Some(corrected) = self.correct(i, &raw, run)?
        {
            return Ok(corrected);
        }
        self.remember(&raw);
        if self.evaluations == 1 {
            self.start = Some((x.clone(), at, raw));
        }
        let weights = ADAMS_BASHFORTH[self.outputs.len() - 1];
        let mut slope = (&self.outputs[0] * weights[0])?;
        for (output, weight) in self.outputs.iter().zip(weights).skip(1) {
            slope = (slope + (output * *weight)?)?;
        }
        transfer(slope, x, &at, &to, run)
    }
}

/// DDIM's step (equation 11).
fn transfer(raw: Tensor, x: &Tensor, from: &NoiseLevel, to: &NoiseLevel, run: &Run<'_>) -> Result<Tensor> {
    let prediction = run.interpret(raw, x, from)?;
    to.add_noise(&prediction.x0, &prediction.epsilon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weights_of_every_order_sum_to_one() {
        for (i, weights) in ADAMS_BASHFORTH.iter().enumerate() {
            assert_eq!(weights.len(), i + 1);
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn evaluations_are_listed_as_the_paper_orders_them() -> Result<()> {
        let config = ConfigFields::from_fields("scheduler", serde_json::Map::new());
        let timesteps =
            |config: &ConfigFields, steps: usize| -> Result<Vec<f64>> { Ok(build(config)?.levels(steps)?.timesteps()) };
        let runge_kutta = [900.0, 850.0, 850.0, 800.0, 800.0, 750.0, 750.0, 700.0, 700.0, 650.0, 650.0, 600.0];
        assert_eq!(timesteps(&config, 10)?[..12], runge_kutta);
        assert_eq!(timesteps(&config, 10)?[12..14], [600.0, 500.0]);
        assert!(timesteps(&config, 3).is_err());
        let skip = config.with("skip_prk_steps", true);
        assert_eq!(timesteps(&skip, 4)?, [750.0, 500.0, 500.0, 250.0, 0.0]);
        assert_eq!(timesteps(&skip, 1)?, [0.0]);
        Ok(())
    }
}
