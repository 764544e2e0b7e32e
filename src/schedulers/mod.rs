//! Noise schedules, the choice of noise levels, and the solvers.
//!
//! A [`Scheduler`] is what a `scheduler_config.json` describes: a [`NoiseSchedule`], the levels to visit,
//! what the network predicts, and a [`Solver`]. Each is one file; adding one is that file and its line in
//! [`SCHEDULERS`].
//!
//! Levels come from a [`Discretization`]: [`SigmaSpace`] for solvers whose state is `x0 + sigma * epsilon`,
//! [`LogSnrSpace`] for the DPM-Solver family, and rules of their own for DDIM, DDPM, PNDM, LCM, TCD and EDM.
//!
//! # Examples
//!
//! ```
//! use std::ops::ControlFlow;
//! use tweedie::conditioning::Conditioning;
//! use tweedie::config::ConfigFields;
//! use tweedie::denoising::{Call, Denoiser, Network};
//! use tweedie::noise::{NoiseSource, TorchNoise};
//! use tweedie::schedulers::{Run, by_name, sample};
//! use tweedie::{Result, Tensor};
//!
//! /// Predicts the noise of pictures that are all white: what is left of a state without its signal.
//! struct White;
//!
//! impl Network for White {
//!     fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
//!         let level = call.level()?;
//!         Ok(((call.x - level.alpha)? / level.sigma)?)
//!     }
//! }
//!
//! let file = serde_json::json!({"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"});
//! let fields = ConfigFields::from_fields("scheduler", file.as_object().cloned().unwrap_or_default());
//! let scheduler = by_name("ddim")?.build(&fields)?;
//! let levels = scheduler.levels(10)?;
//!
//! let mut noise = TorchNoise::per_image(&[0]);
//! let start = (noise.normal(&[1, 1, 2, 2])? * levels.init_noise_sigma())?;
//! let conditioning = Conditioning::default();
//! let denoiser = Denoiser::new(&White, &conditioning, scheduler.parameterization());
//! let run = Run::new(&levels, &denoiser, &mut noise);
//! let x = sample(scheduler.solver().as_mut(), start, 0, run, &mut |step| {
//!     println!("{} of {} steps", step.done, step.total);
//!     ControlFlow::Continue(())
//! })?;
//! assert!((x - 1.0)?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-3);
//! # Ok::<_, tweedie::Error>(())
//! ```

mod beta_distribution;
mod choice;
mod churn;
mod clock;
mod configured;
mod ddim;
mod ddpm;
mod deis;
mod distilled_steps;
mod dpm2;
mod dpm2_ancestral;
mod dpm_multistep;
mod dpm_sde;
mod dpm_singlestep;
mod edm;
mod euler;
mod euler_ancestral;
mod exponential_integrator;
mod final_sigma;
mod flow_euler;
mod given_levels;
mod heun;
mod lcm;
mod levels;
mod lms;
mod log_snr_space;
mod noise_schedule;
mod pndm;
mod resampling;
mod respacing;
mod sample;
mod sigma_space;
mod sigma_table;
mod spacing;
mod spelling;
mod tcd;
mod unipc;

pub use choice::{FieldValues, SchedulerChoice, Setting, Suffix, by_class_name, by_name};
pub use churn::Churn;
pub use clock::Clock;
pub use configured::{Configured, Discretization};
pub use ddim::{Ddim, DdimSolver};
pub use ddpm::{Ddpm, DdpmSolver, VarianceType};
pub use deis::DeisSolver;
pub use distilled_steps::DistilledSteps;
pub use dpm_multistep::{DpmMultistepSolver, MultistepOptions};
pub use dpm_sde::DpmSdeSolver;
pub use dpm_singlestep::{DpmSinglestepSolver, SinglestepOptions};
pub use dpm2::Dpm2Solver;
pub use dpm2_ancestral::Dpm2AncestralSolver;
pub use edm::Edm;
pub(crate) use edm::USUAL_SIGMAS;
pub use euler::EulerSolver;
pub use euler_ancestral::EulerAncestralSolver;
pub use exponential_integrator::{AlgorithmType, SolverType};
pub use final_sigma::FinalSigma;
pub use flow_euler::{FlowEuler, FlowEulerSolver};
pub use given_levels::GivenLevels;
pub use heun::HeunSolver;
pub use lcm::LcmSolver;
pub use levels::Levels;
pub use lms::LmsSolver;
pub use log_snr_space::LogSnrSpace;
pub use noise_schedule::{BetaSchedule, NoiseSchedule, ScheduleDefaults};
pub use pndm::PndmSolver;
pub use resampling::Resampling;
pub use respacing::{AlignedModel, Respacing, StatedEnds};
pub use sample::{Constraint, Run, Solver, Step, sample};
pub use sigma_space::SigmaSpace;
pub use sigma_table::SigmaTable;
pub use spacing::TimestepSpacing;
pub use tcd::TcdSolver;
pub use unipc::{UniPcOptions, UniPcSolver, UniPcVariant};

use crate::config::ConfigFields;
use crate::denoising::Parameterization;
use crate::{NoiseLevel, Result};
use choice::{RESPACED, RESPACED_LINSPACE, RESPACED_OR_LU};
use final_sigma::falling;
use given_levels::GIVEN_FIELDS;
use serde_json::{Value, json};

/// A configured sampling method: everything about a run but the network, the noise and the steps.
pub trait Scheduler {
    /// The forward process that the network was trained on; EDM's has no timesteps, so it has none.
    fn schedule(&self) -> Option<&NoiseSchedule>;

    /// The levels of a run of `steps` steps.
    ///
    /// # Errors
    /// If `steps` is 0, or more than the method can make of the training timesteps.
    fn levels(&self, steps: usize) -> Result<Levels>;

    /// The most steps up to `wanted` that there are levels for: fewer where the network was trained on fewer timesteps, or where
    /// so many would visit one level twice.
    ///
    /// # Errors
    /// If there are none for any number up to `wanted`: those for `wanted`.
    fn steps_up_to(&self, wanted: usize) -> Result<usize> {
        let possible = (1..=wanted).rev().find(|&steps| self.levels(steps).is_ok());
        possible.map_or_else(|| self.levels(wanted).map(|_| wanted), Ok)
    }

    /// What the network predicts, and how the clean sample is limited.
    fn parameterization(&self) -> &Parameterization;

    /// The share of noise at a level, from 0 at data to 1 at pure noise: what the shape of a guidance schedule runs over.
    ///
    /// Where the network has training timesteps, it is how far the level's is from the first to the last. Without them it is,
    /// unless a scheduler says otherwise, `sigma / (alpha + sigma)`: the time of rectified flow. It may lie a little
    /// outside of 0 to 1 at levels beyond those of training.
    fn noise_share(&self, level: &NoiseLevel) -> f64 {
        match self.schedule() {
            Some(schedule) => schedule.noise_share(level.timestep),
            None => level.sigma / (level.alpha + level.sigma),
        }
    }

    /// A solver for one request.
    fn solver(&self) -> Box<dyn Solver>;
}

/// Whether a solver adds noise on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stochastic {
    /// Never.
    No,
    /// If the request or the file asks for it.
    Optional,
    /// Always.
    Yes,
}

impl Stochastic {
    /// It in a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Optional => "optional",
            Self::Yes => "yes",
        }
    }
}

/// One line of the registry.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerEntry {
    /// The name on the command line.
    pub name: &'static str,
    /// What pictures' settings call it, as other programs do.
    pub label: &'static str,
    /// diffusers' class, the `_class_name` of a file; several names may share one, and the first is the file's.
    pub class_name: &'static str,
    /// The order of convergence, as configured by default.
    pub order: usize,
    /// How often a step evaluates the network.
    pub evaluations: usize,
    /// Whether it adds noise on the way.
    pub stochastic: Stochastic,
    /// Where it was published.
    pub reference: &'static str,
    /// The endings that its name takes; none if its sigmas cannot be respaced.
    pub suffixes: &'static [Suffix],
    /// The fields of the request (not of the file) that it reads: "eta".
    pub request_fields: &'static [&'static str],
    /// What its name sets in the file.
    pub preset: FieldValues,
    /// Reads the configuration.
    build: fn(&ConfigFields) -> Result<Box<dyn Scheduler>>,
}

impl PartialEq for SchedulerEntry {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl SchedulerEntry {
    /// The scheduler that `config` describes, taken as one of this class: fields that are absent take this
    /// class's defaults, and fields that it does not have are ignored. [`SchedulerChoice::configure`] sets
    /// what the name means beyond the class.
    ///
    /// # Errors
    /// If a field that it has holds an unusable value.
    pub fn build(&self, config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
        (self.build)(config)
    }

    /// What there is to say of it to other programs.
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "label": self.label,
            "class_name": self.class_name,
            "order": self.order,
            "evaluations": self.evaluations,
            "noise": self.stochastic.name(),
            "reference": self.reference,
            "endings": self.suffixes.iter().map(|suffix| suffix.name).collect::<Vec<_>>(),
        })
    }

    /// The fields with what diffusers' pipelines add where a request says nothing: an `eta` of 0, whatever the class has by
    /// default, if it takes one.
    #[must_use]
    pub fn with_pipeline_defaults(&self, config: ConfigFields) -> ConfigFields {
        match self.request_fields.contains(&"eta") && !config.fields().contains_key("eta") {
            true => config.with("eta", 0.0),
            false => config,
        }
    }
}

/// Every scheduler there is.
pub const SCHEDULERS: &[SchedulerEntry] = &[
    ddim::ENTRY,
    ddpm::ENTRY,
    pndm::ENTRY,
    lms::ENTRY,
    euler::ENTRY,
    euler_ancestral::ENTRY,
    heun::ENTRY,
    dpm2::ENTRY,
    dpm2_ancestral::ENTRY,
    dpm_multistep::ENTRY_2M,
    dpm_multistep::ENTRY_2M_SDE,
    dpm_multistep::ENTRY_3M,
    dpm_singlestep::ENTRY,
    dpm_sde::ENTRY,
    unipc::ENTRY,
    deis::ENTRY,
    lcm::ENTRY,
    tcd::ENTRY,
    edm::ENTRY_EULER,
    edm::ENTRY_HEUN,
    flow_euler::ENTRY,
];
