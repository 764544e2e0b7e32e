//! Noise schedules, the choice of timesteps, and the solvers.
//!
//! A [`Scheduler`] is what a `scheduler_config.json` describes: a [`NoiseSchedule`], the levels to visit,
//! what the network predicts, and a [`Solver`]. Each is one file; adding one is that file and its line in
//! [`SCHEDULERS`].

mod ddim;
mod ddpm;
mod levels;
mod noise_schedule;
mod sample;
mod spacing;

pub use ddim::Ddim;
pub use ddpm::{Ddpm, VarianceType};
pub use levels::Levels;
pub use noise_schedule::{BetaSchedule, NoiseLevel, NoiseSchedule};
pub use sample::{Constraint, Run, Solver, Step, sample};
pub use spacing::TimestepSpacing;

use crate::config::ConfigFields;
use crate::denoising::Parameterization;
use crate::{Error, Result};

/// A configured sampling method: everything about a run but the network, the noise and the steps.
pub trait Scheduler {
    /// The forward process.
    fn schedule(&self) -> &NoiseSchedule;

    /// The levels of a run of `steps` steps.
    ///
    /// # Errors
    /// If `steps` is 0, or more than the method can make of the training timesteps.
    fn levels(&self, steps: usize) -> Result<Levels>;

    /// What the network predicts, and how the clean sample is limited.
    fn parameterization(&self) -> &Parameterization;

    /// A solver for one request.
    fn solver(&self) -> Box<dyn Solver>;
}

/// One line of the registry.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerEntry {
    /// The name on the command line.
    pub name: &'static str,
    /// What pictures' settings call it, as other programs do.
    pub label: &'static str,
    /// diffusers' class, the `_class_name` of a file.
    pub class_name: &'static str,
    /// The fields of the request (not of the file) that it reads: "eta".
    pub request_fields: &'static [&'static str],
    /// Reads the configuration.
    build: fn(&ConfigFields) -> Result<Box<dyn Scheduler>>,
}

impl SchedulerEntry {
    /// The scheduler that `config` describes, taken as one of this class: fields that are absent take this
    /// class's defaults, and fields that it does not have are ignored.
    ///
    /// # Errors
    /// If a field that it has holds an unusable value.
    pub fn build(&self, config: &ConfigFields) -> Result<Box<dyn Scheduler>> {
        (self.build)(config)
    }
}

/// Every scheduler there is.
pub const SCHEDULERS: &[SchedulerEntry] = &[ddim::ENTRY, ddpm::ENTRY];

/// The scheduler with a name of the command line.
///
/// # Errors
/// If there is none; the message lists all.
pub fn by_name(name: &str) -> Result<&'static SchedulerEntry> {
    SCHEDULERS.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let names: Vec<_> = SCHEDULERS.iter().map(|entry| entry.name).collect();
        Error::invalid("the scheduler", format!("`{name}`"), format!("choose one of {}", names.join(", ")))
    })
}

/// The scheduler of a diffusers class, such as "DDIMScheduler".
///
/// # Errors
/// If there is none; the message says which names can be chosen instead.
pub fn by_class_name(class_name: &str) -> Result<&'static SchedulerEntry> {
    SCHEDULERS.iter().find(|entry| entry.class_name == class_name).ok_or_else(|| Error::Config {
        component: "scheduler".into(),
        field: "_class_name".into(),
        value: format!("\"{class_name}\""),
        expected: {
            let names: Vec<_> = SCHEDULERS.iter().map(|entry| entry.name).collect();
            format!("this class is not covered; choose another with --scheduler ({})", names.join(", "))
        },
    })
}
