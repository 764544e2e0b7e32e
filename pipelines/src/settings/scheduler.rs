//! The scheduler of a request.

use super::ModelFacts;
use super::warnings::{is_edm, unsuited_scheduler};
use crate::requests::text_to_image::TextToImageRequest;
use crate::task::TaskKind;
use serde_json::{Map, Value};
use tweedie::config::ConfigFields;
use tweedie::schedulers::{self, SchedulerChoice};
use tweedie::{Error, Result};

/// Timesteps of training where a scheduler's file says nothing, in all of diffusers' schedulers.
const USUAL_TIMESTEPS: u64 = 1000;

/// Fields that come with a request and that only some schedulers read.
const REQUEST_FIELDS: [&str; 2] = ["eta", "use_clipped_model_output"];

/// That a request, such as that of a picture's record, does not say of the model what only its training could: how many timesteps
/// it has, which is also the most steps that can be made.
fn check_training(requested: &Map<String, Value>, file: &ConfigFields) -> Result<()> {
    const TIMESTEPS: &str = "num_train_timesteps";
    let Some(timesteps) = requested.get(TIMESTEPS) else { return Ok(()) };
    let own = file.fields().get(TIMESTEPS).cloned().unwrap_or_else(|| Value::from(USUAL_TIMESTEPS));
    if *timesteps == own {
        return Ok(());
    }
    Err(Error::invalid(format!("`{TIMESTEPS}`"), timesteps, format!("the model was trained with {own}; leave it away")))
}

impl TextToImageRequest {
    /// The fields of old scheduler files that diffusers' pipeline for such a request sets anew, with their values: those for Stable
    /// Diffusion 1 and 2 do, and those for XL or with control models do not.
    fn mended_fields(&self, facts: &ModelFacts, task: TaskKind) -> Vec<(&'static str, Value)> {
        if facts.xl.is_some() || !self.controls.is_empty() {
            return Vec::new();
        }
        let other = match task {
            TaskKind::Inpaint if self.pag_scale == 0.0 => ("skip_prk_steps", true.into()),
            TaskKind::TextToImage | TaskKind::ImageToImage | TaskKind::Inpaint => ("clip_sample", false.into()),
        };
        vec![("steps_offset", 1.into()), other]
    }

    /// The scheduler that is meant, its fields, and what the user should know of them.
    pub(super) fn settle_scheduler(
        &self,
        facts: &ModelFacts,
        task: TaskKind,
    ) -> Result<(SchedulerChoice, ConfigFields, Vec<String>)> {
        let file = &facts.scheduler;
        let choice = match (&self.scheduler, file.class_name()) {
            (Some(name), _) => schedulers::by_name(name)?,
            (None, Some(class_name)) => SchedulerChoice::of_file(class_name)?,
            (None, None) => return Err(file.wrong("_class_name", "it must name the scheduler; or use `scheduler`")),
        };
        let mut config = choice.configure(file);
        let fields = self.scheduler_fields();
        let mut warnings = Vec::new();
        check_training(&fields, file)?;
        for (name, value) in self.mended_fields(facts, task) {
            let stated = file.fields().get(name);
            if let Some(stated) = stated.filter(|stated| **stated != value) {
                warnings
                    .push(format!("the model's scheduler file has {name} {stated}; {value} is used, as in diffusers"));
            }
            // Another scheduler than the file's has its own defaults for what the file leaves out.
            if stated.is_some() || self.scheduler.is_none() {
                config = config.with(name, value);
            }
        }
        if let Some(list) = ["timesteps", "sigmas"].into_iter().find(|list| fields.contains_key(*list)) {
            if !choice.entry.request_fields.contains(&list) || choice.suffix.is_some() {
                let fix =
                    format!("it chooses its own noise levels; leave the list of {list} away, or take euler or dpm++2m");
                return Err(Error::invalid("the scheduler", choice.name(), fix));
            }
            // A list takes the place of the file's rule.
            for rule in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"] {
                config = config.with(rule, false);
            }
        }
        let continuous = config.fields().get("timestep_type") == Some(&Value::from("continuous"));
        let told_alike =
            is_edm(choice.entry.class_name) || choice.entry.class_name == "EulerDiscreteScheduler" && continuous;
        if file.class_name().is_some_and(is_edm) && !told_alike {
            warnings.push(format!(
                "the model was trained on EDM's levels of noise, and the scheduler {} tells it others; take `scheduler` edm-euler \
                 or edm-heun",
                choice.name()
            ));
        }
        for (name, value) in &fields {
            if REQUEST_FIELDS.contains(&name.as_str()) && !choice.entry.request_fields.contains(&name.as_str()) {
                warnings.push(format!("{name} has no effect with the scheduler {}", choice.name()));
            }
            config = config.with_requested(name, value.clone());
        }
        config = choice.entry.with_pipeline_defaults(config);
        warnings.extend(unsuited_scheduler(&choice, file, &config));
        if let Some(eta) = fields.get("eta")
            && !eta.as_f64().is_some_and(|eta| (0.0..=1.0).contains(&eta))
        {
            let fix = "take a number from 0 (deterministic) to 1 (as much noise as DDPM)";
            return Err(Error::invalid("eta", eta, fix));
        }
        Ok((choice, config, warnings))
    }
}
