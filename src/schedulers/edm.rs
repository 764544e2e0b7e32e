//! EDM: the design of Karras et al. (2022), in which levels are sigmas and there are no training timesteps.

use super::churn::CHURN_FIELDS;
use super::{Churn, Clock, EulerSolver, FinalSigma, HeunSolver, Levels, NoiseSchedule, Scheduler};
use super::{SchedulerEntry, Solver, Stochastic};
use crate::config::ConfigFields;
use crate::denoising::{Parameterization, PredictionType};
use crate::{Error, NoiseLevel, Result};

/// More than any run takes; other schedulers end at the timesteps of training.
const MOST_STEPS: usize = 10_000;

pub(super) const ENTRY_EULER: SchedulerEntry = SchedulerEntry {
    name: "edm-euler",
    label: "EDM Euler",
    class_name: "EDMEulerScheduler",
    order: 1,
    evaluations: 1,
    stochastic: Stochastic::Optional,
    reference: "Karras et al. 2022, algorithm 2 without lines 9 to 11, arXiv:2206.00364",
    suffixes: &[],
    request_fields: CHURN_FIELDS,
    preset: &[],
    build: |config| {
        let solver = EulerSolver { churn: Churn::from_config(config)? };
        Ok(Box::new(Edm::from_config(config, solver)?))
    },
};

pub(super) const ENTRY_HEUN: SchedulerEntry = SchedulerEntry {
    name: "edm-heun",
    label: "EDM Heun",
    order: 2,
    evaluations: 2,
    reference: "Karras et al. 2022, algorithm 2, arXiv:2206.00364",
    build: |config| {
        let solver = HeunSolver { churn: Churn::from_config(config)? };
        Ok(Box::new(Edm::from_config(config, solver)?))
    },
    ..ENTRY_EULER
};

/// The least and the most noise where a file does not say them.
pub(crate) const USUAL_SIGMAS: (f64, f64) = (0.002, 80.0);

/// A run over the sigmas of equation 5, for a network inside EDM's preconditioning (table 1).
///
/// Data has the standard deviation `sigma_data`, so with `alpha = sigma_data` the clean sample of a level has
/// unit variance: the input scale is `c_in`, and the network's output is `-v`. The clean state at the end is
/// `alpha * x0`, the data itself.
#[derive(Debug, Clone)]
pub struct Edm<S> {
    parameterization: Parameterization,
    sigma_min: f64,
    sigma_max: f64,
    sigma_data: f64,
    rho: f64,
    exponential: bool,
    final_sigma: FinalSigma,
    solver: S,
}

impl<S> Edm<S> {
    /// From the fields of diffusers' `EDMEulerScheduler`.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn from_config(config: &ConfigFields, solver: S) -> Result<Self> {
        let prediction_types = [("epsilon", PredictionType::Edm), ("v_prediction", PredictionType::VPrediction)];
        let prediction_type = config.choice("prediction_type", &prediction_types, PredictionType::Edm)?;
        let positive = |field: &str, default: f64| {
            let value = config.f64(field, default)?;
            if value > 0.0 { Ok(value) } else { Err(config.wrong(field, "it must be above 0")) }
        };
        Ok(Self {
            parameterization: Parameterization::new(prediction_type),
            sigma_min: positive("sigma_min", USUAL_SIGMAS.0)?,
            sigma_max: positive("sigma_max", USUAL_SIGMAS.1)?,
            sigma_data: positive("sigma_data", 0.5)?,
            rho: positive("rho", 7.0)?,
            exponential: config.choice("sigma_schedule", &[("karras", false), ("exponential", true)], false)?,
            final_sigma: FinalSigma::from_config(config)?,
            solver,
        })
    }

    fn sigma(&self, share: f64) -> f64 {
        let between = |top: f64, bottom: f64| top + share * (bottom - top);
        if self.exponential {
            return between(self.sigma_max.ln(), self.sigma_min.ln()).exp();
        }
        between(self.sigma_max.powf(1.0 / self.rho), self.sigma_min.powf(1.0 / self.rho)).powf(self.rho)
    }
}

impl<S: Solver + Clone + 'static> Scheduler for Edm<S> {
    fn schedule(&self) -> Option<&NoiseSchedule> {
        None
    }

    fn parameterization(&self) -> &Parameterization {
        &self.parameterization
    }

    fn levels(&self, steps: usize) -> Result<Levels> {
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::invalid("the number of steps", steps, format!("take 1 to {MOST_STEPS}")));
        }
        let clock = Clock::LogSigma { scale: 0.25 };
        let level = |sigma: f64| NoiseLevel { timestep: clock.timestep(sigma), alpha: self.sigma_data, sigma };
        let last = (steps - 1).max(1) as f64;
        let mut levels: Vec<NoiseLevel> = (0..steps).map(|i| level(self.sigma(i as f64 / last))).collect();
        levels.push(match self.final_sigma {
            FinalSigma::Zero => NoiseLevel { timestep: 0.0, alpha: self.sigma_data, sigma: 0.0 },
            FinalSigma::SigmaMin => levels[steps - 1],
        });
        Ok(Levels::chain(&levels, self.sigma_max.hypot(1.0)).with_clock(clock))
    }

    /// Where a run of many steps has this noise: it falls evenly from step to step, from 1 at `sigma_max` to 0 at
    /// `sigma_min`.
    fn noise_share(&self, level: &NoiseLevel) -> f64 {
        let sigma = level.sigma / level.alpha * self.sigma_data;
        if sigma <= self.sigma_min || sigma >= self.sigma_max {
            return if sigma >= self.sigma_max { 1.0 } else { 0.0 };
        }
        let even = |sigma: f64| if self.exponential { sigma.ln() } else { sigma.powf(1.0 / self.rho) };
        let (least, most) = (even(self.sigma_min), even(self.sigma_max));
        (even(sigma) - least) / (most - least)
    }

    fn solver(&self) -> Box<dyn Solver> {
        Box::new(self.solver.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn edm() -> Result<Edm<EulerSolver>> {
        let config = ConfigFields::from_fields("scheduler", serde_json::Map::new());
        Edm::from_config(&config, EulerSolver::default())
    }

    /// Table 1: `D = c_skip x + c_out F` and `c_in`, written out.
    #[test]
    fn the_preconditioning_is_that_of_table_1() -> Result<()> {
        let (data, edm) = (0.5, edm()?);
        for level in [edm.levels(5)?.from(0), edm.levels(5)?.from(3)] {
            let sigma = level.sigma;
            let spread = sigma.hypot(data);
            assert!((level.input_scale() - 1.0 / spread).abs() < 1e-12);
            assert!((level.timestep - sigma.ln() / 4.0).abs() < 1e-12);
            let x = Tensor::new(&[[[[1.7f64]]]], &Device::Cpu)?;
            let raw = Tensor::new(&[[[[-0.4f64]]]], &Device::Cpu)?;
            let prediction = edm.parameterization.convert(raw, &x, &level)?;
            let denoised = (prediction.x0 * level.alpha)?.flatten_all()?.to_vec1::<f64>()?[0];
            let expected = data * data / (spread * spread) * 1.7 + sigma * data / spread * -0.4;
            assert!((denoised - expected).abs() < 1e-12, "{sigma}: {denoised} {expected}");
        }
        Ok(())
    }

    #[test]
    fn the_share_of_noise_falls_evenly() -> Result<()> {
        for schedule in ["karras", "exponential"] {
            let config = ConfigFields::from_fields("scheduler", serde_json::Map::new());
            let edm = Edm::from_config(&config.with("sigma_schedule", schedule), EulerSolver::default())?;
            let levels = edm.levels(9)?;
            for i in 0..9 {
                let (level, expected) = (levels.from(i), 1.0 - i as f64 / 8.0);
                for seen in [level, level.scaled(level.input_scale())] {
                    assert!((edm.noise_share(&seen) - expected).abs() < 1e-9, "{schedule} {i}");
                }
            }
            assert_eq!(edm.noise_share(&levels.to(8)), 0.0);
        }
        Ok(())
    }

    #[test]
    fn levels_run_from_80_to_0() -> Result<()> {
        let levels = edm()?.levels(18)?;
        assert!((levels.from(0).sigma - 80.0).abs() < 1e-9 && (levels.from(17).sigma - 0.002).abs() < 1e-12);
        assert_eq!(levels.to(17).sigma, 0.0);
        assert!(edm()?.levels(0).is_err());
        Ok(())
    }
}
