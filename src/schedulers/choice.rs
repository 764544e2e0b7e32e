//! Scheduler names of the command line, and what they set.

use super::spelling::{by_spelling, in_the_place_of, nearest};
use super::{SCHEDULERS, Scheduler, SchedulerEntry};
use crate::config::ConfigFields;
use crate::{Error, ErrorKind, Result};
use serde_json::Value;

/// The value that a name gives to a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// True or false.
    Flag(bool),
    /// A whole number.
    Whole(u64),
    /// A name.
    Name(&'static str),
    /// What the class has by default.
    Default,
}

impl From<Setting> for Value {
    fn from(setting: Setting) -> Self {
        match setting {
            Setting::Flag(flag) => flag.into(),
            Setting::Whole(number) => number.into(),
            Setting::Name(name) => name.into(),
            Setting::Default => Self::Null,
        }
    }
}

/// Fields with their values.
pub type FieldValues = &'static [(&'static str, Setting)];

/// An ending of a scheduler's name that places its noise levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Suffix {
    /// What follows the scheduler's name and a hyphen.
    pub name: &'static str,
    /// What pictures' settings call it.
    pub label: &'static str,
    /// What it sets.
    pub fields: FieldValues,
}

const NOT_RESPACED: [(&str, Setting); 5] = [
    ("use_karras_sigmas", Setting::Default),
    ("use_exponential_sigmas", Setting::Default),
    ("use_beta_sigmas", Setting::Default),
    ("use_lu_lambdas", Setting::Default),
    ("align_your_steps", Setting::Default),
];

const ON: Setting = Setting::Flag(true);

const KARRAS: Suffix = Suffix { name: "karras", label: "Karras", fields: &[("use_karras_sigmas", ON)] };
const EXPONENTIAL: Suffix =
    Suffix { name: "exponential", label: "Exponential", fields: &[("use_exponential_sigmas", ON)] };
const BETA: Suffix = Suffix { name: "beta", label: "Beta", fields: &[("use_beta_sigmas", ON)] };
const LU: Suffix = Suffix { name: "lu", label: "Lu", fields: &[("use_lu_lambdas", ON)] };
const ALIGNED: Suffix = Suffix {
    name: "ays",
    label: "Align Your Steps",
    fields: &[("align_your_steps", Setting::Name("StableDiffusion"))],
};
const ALIGNED_XL: Suffix = Suffix {
    name: "ays-xl",
    label: "Align Your Steps XL",
    fields: &[("align_your_steps", Setting::Name("StableDiffusionXL"))],
};
const SGM_UNIFORM: Suffix =
    Suffix { name: "sgm-uniform", label: "SGM Uniform", fields: &[("timestep_spacing", Setting::Name("trailing"))] };

/// The endings of a scheduler whose sigmas can be respaced.
pub(super) const RESPACED: &[Suffix] = &[KARRAS, EXPONENTIAL, BETA, SGM_UNIFORM, ALIGNED, ALIGNED_XL];
/// The same with Lu's rule.
pub(super) const RESPACED_OR_LU: &[Suffix] = &[KARRAS, EXPONENTIAL, BETA, LU, SGM_UNIFORM, ALIGNED, ALIGNED_XL];
/// The same without a timestep spacing.
pub(super) const RESPACED_LINSPACE: &[Suffix] = &[KARRAS, EXPONENTIAL, BETA, ALIGNED, ALIGNED_XL];

/// A scheduler as a name of the command line means it, such as `dpm++2m-karras`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SchedulerChoice {
    /// The scheduler.
    pub entry: &'static SchedulerEntry,
    /// The ending of the name, if it has one.
    pub suffix: Option<Suffix>,
}

impl SchedulerChoice {
    /// The scheduler of a file's `_class_name`, of which the name sets nothing.
    ///
    /// # Errors
    /// If the class is not covered.
    pub fn of_file(class_name: &str) -> Result<Self> {
        Ok(Self { entry: by_class_name(class_name)?, suffix: None })
    }

    /// The name, as it was given.
    pub fn name(&self) -> String {
        self.suffix.map_or_else(|| self.entry.name.into(), |suffix| format!("{}-{}", self.entry.name, suffix.name))
    }

    /// What pictures' settings call it, as other programs do.
    pub fn label(&self) -> String {
        self.suffix.map_or_else(|| self.entry.label.into(), |suffix| format!("{} {}", self.entry.label, suffix.label))
    }

    /// A model's scheduler file with what the name sets; every other field stays.
    pub fn configure(&self, file: &ConfigFields) -> ConfigFields {
        let mut config = file.clone();
        if self.suffix.is_some() {
            for (field, setting) in NOT_RESPACED {
                if config.fields().contains_key(field) {
                    config = config.with(field, setting);
                }
            }
        }
        let of_suffix = self.suffix.map_or(&[] as FieldValues, |suffix| suffix.fields);
        for &(field, setting) in self.entry.preset.iter().chain(of_suffix) {
            config = config.with(field, setting);
        }
        config
    }

    /// The scheduler that a model's file and the name describe.
    ///
    /// # Errors
    /// If a field has an unusable value.
    pub fn build(&self, file: &ConfigFields) -> Result<Box<dyn Scheduler>> {
        self.entry.build(&self.configure(file))
    }
}

fn names() -> String {
    SCHEDULERS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

/// The scheduler with a name of the command line, which may end in `-karras` and the like where its sigmas
/// can be respaced; or with the name that another program has for it, such as "DPM++ 2M Karras", "euler_ancestral" or
/// "DDIMScheduler".
///
/// # Errors
/// If there is none; the message names the nearest and lists all, or the endings that the scheduler has.
pub fn by_name(name: &str) -> Result<SchedulerChoice> {
    if let Some(entry) = SCHEDULERS.iter().find(|entry| entry.name == name) {
        return Ok(SchedulerChoice { entry, suffix: None });
    }
    if let Some(choice) = by_spelling(name) {
        return Ok(choice);
    }
    // The longest scheduler's name that the given one starts with: dpm++2m-sde, not dpm++2m.
    let ending = |entry: &'static SchedulerEntry| Some((entry, name.strip_prefix(entry.name)?.strip_prefix('-')?));
    let Some((entry, ending)) = SCHEDULERS.iter().filter_map(ending).min_by_key(|(_, ending)| ending.len()) else {
        let hint = match in_the_place_of(name) {
            Some(own) => format!("that sampler of other programs is not here, and {own} is the nearest to it; "),
            None => nearest(name).map_or(String::new(), |nearest| format!("did you mean {nearest}? ")),
        };
        let fix = format!("{hint}choose one of {}", names());
        return Err(Error::invalid("the scheduler", format!("`{name}`"), fix));
    };
    let suffix = entry.suffixes.iter().find(|suffix| suffix.name == ending);
    suffix.map(|suffix| SchedulerChoice { entry, suffix: Some(*suffix) }).ok_or_else(|| {
        let endings: Vec<_> = entry.suffixes.iter().map(|suffix| format!("-{}", suffix.name)).collect();
        let fix = if endings.is_empty() {
            format!("the noise levels of {} cannot be respaced; leave `-{ending}` away", entry.name)
        } else {
            format!("{} takes the endings {}", entry.name, endings.join(", "))
        };
        Error::invalid("the scheduler", format!("`{name}`"), fix)
    })
}

/// The scheduler of a diffusers class, such as "DDIMScheduler".
///
/// # Errors
/// If there is none; the message says which names can be chosen instead.
pub fn by_class_name(class_name: &str) -> Result<&'static SchedulerEntry> {
    SCHEDULERS.iter().find(|entry| entry.class_name == class_name).ok_or_else(|| Error::Config {
        kind: ErrorKind::Model,
        component: "scheduler".into(),
        field: "_class_name".into(),
        value: format!("\"{class_name}\""),
        expected: format!("this class is not covered; choose another with `scheduler` ({})", names()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    fn file() -> ConfigFields {
        ConfigFields::from_fields("scheduler", Map::new())
    }

    #[test]
    fn the_longest_name_wins() -> Result<()> {
        let choice = by_name("dpm++2m-sde-karras")?;
        assert_eq!((choice.entry.name, choice.name().as_str()), ("dpm++2m-sde", "dpm++2m-sde-karras"));
        assert_eq!(choice.label(), "DPM++ 2M SDE Karras");
        let config = choice.configure(&file());
        assert_eq!(config.fields()["algorithm_type"], "sde-dpmsolver++");
        assert_eq!(config.fields()["use_karras_sigmas"], true);
        Ok(())
    }

    #[test]
    fn an_ending_takes_the_place_of_the_files_rule() -> Result<()> {
        let config = by_name("euler-exponential")?.configure(&file().with("use_karras_sigmas", true));
        assert!(config.fields()["use_karras_sigmas"].is_null());
        by_class_name("EulerDiscreteScheduler")?.build(&config).map(|_| ())
    }

    /// Every name and ending builds from an empty file and makes levels that lose noise.
    #[test]
    fn every_name_makes_a_run() -> Result<()> {
        for entry in SCHEDULERS {
            let endings = entry.suffixes.iter().map(|suffix| format!("{}-{}", entry.name, suffix.name));
            for name in endings.chain([entry.name.to_owned()]) {
                let levels = by_name(&name)?.build(&file())?.levels(8)?;
                let (first, last) = (levels.from(0), levels.to(levels.len() - 1));
                assert!(first.sigma / first.alpha > last.sigma / last.alpha, "{name}");
            }
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_respaced_says_so() {
        let message = |name: &str| by_name(name).map(|_| ()).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(message("ddim-karras").contains("cannot be respaced"));
        assert!(message("euler-lu").contains("-exponential"));
        assert!(message("nothing").contains("dpm++2m"));
    }

    #[test]
    fn names_are_unique() {
        for (i, entry) in SCHEDULERS.iter().enumerate() {
            assert!(SCHEDULERS[..i].iter().all(|other| other.name != entry.name), "{}", entry.name);
        }
    }
}
