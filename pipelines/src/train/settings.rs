//! What the settings of every kind of training are.

use super::PROGRAM;
use super::captioned::in_balance;
use super::choices::{BetaChoice, DecayChoice};
use crate::requests::kind::{FlagValue, OptionKind};
use crate::requests::options::{OptionInfo, Options, WrongOption, flag, option, options, serde_by_options};
use serde_json::{Map, Value, json};
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tweedie::config::DIFFUSERS_VERSION;
use tweedie::training::data::{
    Augmentation, BatchSource, Batches, CaptionedPictures, ImageSet, LatentBatches, LatentSet, PictureTokens, hold_out,
};
use tweedie::training::runs::{RunFolder, RunPlan, TrainEvent, TrainObserver};
use tweedie::training::{AdamWConfig, EmaOptions, LearningRate, OptimizerOptions, ParameterSet, Trainer, TrainingTask};
use tweedie::{Error, ErrorKind, Result};

/// How soon a user sees what the networks can do.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// Settings of all kinds of training that change nothing of what is computed, so that a run may go on with others.
pub(super) const FREE: [&str; 2] = ["checkpoint_every", "validate_every"];

/// The setting that says which model a run goes on from.
pub(super) const FROM: &str = "from";

/// What a `config.json` calls the sums of the weights that a run started from, each by the setting that named them.
pub(super) const START: &str = "start";

/// A setting of a run, which its `config.json` has even at its default: later versions may have others.
pub(super) fn setting(kind: OptionKind, value_name: &'static str) -> OptionInfo {
    option(kind, value_name).always_recorded()
}

/// The same of one that is given or not.
pub(super) fn switch(value: FlagValue) -> OptionInfo {
    flag(value).always_recorded()
}

options! {
    /// Settings that all kinds of training have.
    #[derive(Debug, Clone, PartialEq)]
    pub struct CommonSettings {
        options {
            /// Seed of everything random.
            seed: u64 = 0 => setting(OptionKind::Count, "N");
            /// Images of a batch.
            batch_size: usize = 64 => setting(OptionKind::Count, "N");
            /// Batches whose gradients make one step.
            accumulate: usize = 1 => setting(OptionKind::Count, "N");
            /// Steps between checkpoints.
            checkpoint_every: u64 = 500 => setting(OptionKind::Count, "N");
            /// What the learning rate does after the warm-up.
            lr_schedule: DecayChoice = DecayChoice::Cosine => setting(OptionKind::Choice(DecayChoice::NAMES), "NAME");
            /// Weight decay of AdamW.
            weight_decay: f64 = 0.01 => setting(OptionKind::Number, "F");
            /// Share of the pictures that is held out: nothing is trained on it, and its loss is logged; 0 holds out none.
            validation: f64 = 0.0 => setting(OptionKind::Number, "F");
            /// Steps between losses of what is held out.
            validate_every: u64 = 100 => setting(OptionKind::Count, "N");
        }
    }
}

impl Default for CommonSettings {
    fn default() -> Self {
        Self::of()
    }
}

serde_by_options!(CommonSettings);

/// Settings that kinds of training share, as one of them has them: with its defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedSettings<T, S> {
    settings: T,
    kind: PhantomData<S>,
}

impl<T: Options, S: TrainingSettings> Options for SharedSettings<T, S> {
    fn options() -> Vec<OptionInfo> {
        let defaults = S::default().write();
        let own = |option: OptionInfo| match option.path.first().and_then(|key| defaults.get(*key)) {
            Some(default) => option.with_default(default),
            None => option,
        };
        T::options().into_iter().map(own).collect()
    }

    fn keys() -> Vec<&'static str> {
        T::keys()
    }

    fn take(&mut self, fields: &mut Map<String, Value>) -> std::result::Result<(), WrongOption> {
        self.settings.take(fields)
    }

    fn put(&self, fields: &mut Map<String, Value>) {
        self.settings.put(fields);
    }
}

impl CommonSettings {
    pub(super) fn check(&self) -> Result<()> {
        at_least_one("batch_size", self.batch_size as u64)?;
        at_least_one("accumulate", self.accumulate as u64)?;
        at_least_one("checkpoint_every", self.checkpoint_every)?;
        at_least_one("validate_every", self.validate_every)?;
        if !(0.0..1.0).contains(&self.validation) {
            return Err(Error::invalid("`validation`", self.validation, "it is 0 or above, and below 1"));
        }
        Ok(())
    }

    /// The share of the data that is held out, if any is.
    pub(super) fn held_out(&self) -> Option<f64> {
        (self.validation > 0.0).then_some(self.validation)
    }

    /// The steps that `epochs` passes over a set take, the last one rounded up.
    fn steps_of(&self, epochs: u64, set: &impl TrainingSet) -> u64 {
        let per_step = (self.batch_size as u64).saturating_mul(self.accumulate as u64).max(1);
        let all = || (0..set.images()).collect();
        let trained = self.held_out().and_then(|share| hold_out(set.images(), share, self.seed).ok());
        let images = set.seen_in_epoch(&trained.map_or_else(all, |(trained, _)| trained));
        epochs.saturating_mul(images as u64).div_ceil(per_step)
    }

    /// Puts the steps of passes over a set in the place of the passes, where those are given.
    pub(super) fn settle(&self, steps: &mut u64, epochs: &mut Option<u64>, set: &impl TrainingSet) {
        if let Some(epochs) = epochs.take() {
            *steps = self.steps_of(epochs, set);
        }
    }

    /// The same for the training of a small network, where neither steps nor passes have to be given: then there are
    /// `usual_epochs`. What is not given of the warm-up and of the decay of the average becomes what so short a run needs.
    pub(super) fn settle_short(
        &self,
        (steps, epochs): (&mut Option<u64>, &mut Option<u64>),
        (usual_epochs, set): (u64, &impl TrainingSet),
        (warmup_steps, ema_decay): (&mut Option<u64>, &mut Option<f64>),
    ) {
        let epochs = epochs.take().or_else(|| steps.is_none().then_some(usual_epochs));
        *steps = epochs.map(|epochs| self.steps_of(epochs, set).max(1)).or(*steps);
        *warmup_steps = warmup_steps.or_else(|| steps.map(|steps| 100.min(steps / 10)));
        let decay = |steps: u64| 0.999f64.min(1.0 - 10.0 / steps.max(20) as f64);
        *ema_decay = ema_decay.or_else(|| steps.map(decay));
    }

    /// The learning rate of a run of so many steps: it rises to `peak`, within the run, and then does what the settings say.
    pub(super) fn learning_rate(&self, peak: f64, warmup_steps: u64, total_steps: u64) -> LearningRate {
        let warmup_steps = warmup_steps.min(total_steps);
        LearningRate { peak, warmup_steps, total_steps, decay: self.lr_schedule.into() }
    }

    /// AdamW with this weight decay; a norm of 0 cuts no gradient.
    pub(super) fn optimizer(&self, learning_rate: LearningRate, max_norm: f64, ema_decay: f64) -> OptimizerOptions {
        OptimizerOptions {
            learning_rate,
            adamw: AdamWConfig { weight_decay: self.weight_decay, ..AdamWConfig::default() },
            max_gradient_norm: (max_norm > 0.0).then_some(max_norm),
            ema: Some(EmaOptions { decay: ema_decay, warm_up: true }),
        }
    }

    /// The batches of a set in memory, without what is held out of it.
    pub(super) fn batches(&self, set: &Arc<ImageSet>, augmentation: Augmentation) -> Result<Batches> {
        let batches = Batches::new(set.clone(), self.batch_size, self.seed)?.with_augmentation(augmentation)?;
        match self.held_out() {
            Some(share) => batches.holding_out(share),
            None => Ok(batches),
        }
    }

    /// The batches of latents, without what is held out of them.
    pub(super) fn latent_batches(
        &self,
        set: LatentSet,
        tokens: PictureTokens,
        pictures: &CaptionedPictures,
    ) -> Result<LatentBatches> {
        let batches = LatentBatches::new(Arc::new(set), Arc::new(tokens), self.batch_size, self.seed)?;
        let trained = match self.held_out() {
            Some(share) => batches.holding_out(share)?,
            None => batches,
        };
        in_balance(trained, pictures)
    }

    /// A plan without a number of steps and without samples.
    pub(super) fn plan(&self) -> RunPlan {
        RunPlan {
            steps: 0,
            checkpoint_every: self.checkpoint_every,
            sample_every: None,
            validate_every: self.validate_every,
            first_look: Some(FIRST_LOOK),
            batch_size: self.batch_size,
        }
    }
}

/// Whether a number of things is one at least.
pub(super) fn at_least_one(name: &str, value: u64) -> Result<()> {
    match value {
        0 => Err(Error::invalid(format!("`{name}`"), 0, "take at least 1")),
        _ => Ok(()),
    }
}

/// Whether a number is one that 0 turns off.
pub(super) fn zero_or_above(name: &str, value: f64) -> Result<()> {
    match value >= 0.0 && value.is_finite() {
        true => Ok(()),
        false => Err(Error::invalid(format!("`{name}`"), value, "it must be above 0, or 0 to turn it off")),
    }
}

/// diffusers' `scheduler_config.json` of rectified flow.
pub(super) fn flow_scheduler(timesteps: usize) -> Map<String, Value> {
    Map::from_iter([
        ("_class_name".to_owned(), "FlowMatchEulerDiscreteScheduler".into()),
        ("_diffusers_version".to_owned(), DIFFUSERS_VERSION.into()),
        ("num_train_timesteps".to_owned(), timesteps.into()),
        ("shift".to_owned(), 1.0.into()),
    ])
}

/// diffusers' `scheduler_config.json` of betas from 0.0001 to 0.02, and of those that have no such ends.
pub(super) fn ddpm_scheduler(betas: BetaChoice, timesteps: usize) -> Map<String, Value> {
    let fields = json!({
        "_class_name": "DDPMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": betas.name(),
        "clip_sample": true,
        "num_train_timesteps": timesteps,
    });
    fields.as_object().cloned().unwrap_or_default()
}

/// What a model is trained on, and judged by.
#[derive(Debug)]
pub struct TrainingData {
    /// What it is trained on.
    pub train: Arc<ImageSet>,
    /// What it is judged by in the end, if anything.
    pub test: Option<ImageSet>,
}

/// What a kind of training is trained on.
pub trait TrainingSet {
    /// The number of pictures.
    fn images(&self) -> usize;

    /// How many pictures a pass sees where `trained` are trained on, of which it may repeat some.
    fn seen_in_epoch(&self, trained: &[usize]) -> usize {
        trained.len()
    }

    /// What a run's `config.json` says of them, by which a run that goes on sees that they are the same.
    fn record(&self) -> Map<String, Value>;

    /// What there is in the data that training makes no use of, in words, if the user may expect that it does.
    fn unused(&self) -> Option<String> {
        None
    }
}

impl TrainingSet for TrainingData {
    fn images(&self) -> usize {
        self.train.len()
    }

    fn record(&self) -> Map<String, Value> {
        let (images, classes) = (self.train.len().into(), self.train.classes().into());
        let fields = [("images", images), ("classes", classes), ("fingerprint", self.train.fingerprint().into())];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn unused(&self) -> Option<String> {
        self.train.captions().map(|_| {
            "the pictures have captions, which this kind of training makes no use of; latent diffusion models are trained \
             on captions (train ldm)"
                .into()
        })
    }
}

/// Work before the first step, in a run's folder.
pub struct Preparation<'a, 'b> {
    /// The run's folder.
    pub folder: &'a Path,
    /// Who is told.
    pub observer: &'a mut TrainObserver<'b>,
}

impl Preparation<'_, '_> {
    /// Tells how much is done of what, counted in `unit`s; breaking stops it.
    pub fn tell(&mut self, what: &'static str, unit: &'static str, done: usize, total: usize) -> ControlFlow<()> {
        (self.observer)(TrainEvent::Preparing { what, unit, done, total })
    }

    /// Tells something that the user should know.
    pub fn warn(&mut self, text: String) {
        // Whoever wants to stop is heard after the first step.
        let _ = (self.observer)(TrainEvent::Warning(text));
    }
}

/// Settings of a kind of training, which say what is trained. A run's `config.json` holds them.
pub trait TrainingSettings: Options + Default {
    /// What it is trained on.
    type Data: TrainingSet;
    /// What is trained.
    type Task: TrainingTask;
    /// What makes its batches.
    type Batches: BatchSource<Batch = <Self::Task as TrainingTask>::Batch>;

    /// Settings of this kind that change nothing of what is computed, so that a run may go on with others.
    const FREE: &'static [&'static str];

    /// Whether a setting is one of those, or of those of all kinds.
    fn is_free(name: &str) -> bool {
        FREE.contains(&name) || Self::FREE.contains(&name)
    }

    /// What all kinds have.
    fn common(&self) -> &CommonSettings;

    /// The same with the number of steps in the place of passes over the data.
    #[must_use]
    fn settled(self, data: &Self::Data) -> Self;

    /// Whether everything can be used, apart from what [`Self::task`] asks.
    ///
    /// # Errors
    /// If something cannot; the message names the setting.
    fn check(&self) -> Result<()>;

    /// The configurations of what is trained, by their names, as `config.json` holds them beside the settings.
    ///
    /// # Errors
    /// If they do not fit the data.
    fn architecture(&self, data: &Self::Data) -> Result<Map<String, Value>>;

    /// What is trained before its first step. It may take parts of the data that no batch needs.
    ///
    /// # Errors
    /// If settings and data do not fit each other.
    fn task(&self, data: &mut Self::Data) -> Result<(Self::Task, Vec<ParameterSet>)>;

    /// Whether what is within transformers' blocks is computed again for the gradients. By default it is kept.
    fn recomputes(&self) -> bool {
        false
    }

    /// Whether batches can be made, before anything is.
    ///
    /// # Errors
    /// If one is too large.
    fn check_batches(&self, data: &Self::Data) -> Result<()>;

    /// The batches of the data, which may need work before the first step.
    ///
    /// # Errors
    /// If they cannot be made.
    fn batches(
        &self,
        data: &Self::Data,
        task: &Self::Task,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<Self::Batches>;

    /// What comes before the first step of a new run: it may change the values that it starts from. By default nothing.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the observer breaks; if it cannot be done.
    fn begin(
        &self,
        data: &Self::Data,
        batches: &Self::Batches,
        trainer: &mut Trainer<Self::Task>,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<()> {
        let _ = (data, batches, trainer, preparation);
        Ok(())
    }

    /// How long the run is, and what is kept of it when.
    fn plan(&self) -> RunPlan;

    /// The settings as a run writes them down: those in whose place a model to go on from stands are left away.
    fn recorded(&self) -> Map<String, Value> {
        let mut settings = self.write();
        if settings.get(FROM).is_some_and(|from| !from.is_null()) {
            let replaced = Self::options().into_iter().filter(|option| option.excluded_by == Some(FROM));
            replaced.flat_map(|option| option.path).for_each(|key| _ = settings.remove(key));
        }
        settings
    }

    /// What made something, and with which settings, as a run and its model say it.
    fn account(&self) -> Map<String, Value> {
        Map::from_iter([("program".to_owned(), PROGRAM.into()), ("settings".to_owned(), self.recorded().into())])
    }

    /// That no setting is given in whose place a model to go on from stands.
    ///
    /// # Errors
    /// If one is; the message names it.
    fn check_start(&self) -> Result<()> {
        let (settings, recorded, defaults) = (self.write(), self.recorded(), Self::default().write());
        let replaced = settings.into_iter().filter(|(name, _)| !recorded.contains_key(name));
        match replaced.into_iter().find(|(name, value)| defaults.get(name).is_some_and(|default| default != value)) {
            None => Ok(()),
            Some((name, value)) => {
                let fix = "leave it away beside `from`: the model to go on from has its own";
                Err(Error::invalid(format!("`{name}`"), value, fix))
            }
        }
    }

    /// What the user should know.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// The settings of the run in a folder, if there is one.
    ///
    /// # Errors
    /// If its `config.json` is damaged or that of another kind of training.
    fn of_run(folder: &Path) -> Result<Option<Self>> {
        RunFolder::config(folder)?.as_ref().map(Self::from_config).transpose()
    }

    /// The settings of a `config.json`.
    ///
    /// # Errors
    /// If there are none, or one cannot be used.
    fn from_config(config: &Value) -> Result<Self> {
        let fix = "take the config.json that the run was started with, and go on with the same kind of training";
        let fields = config["settings"].as_object();
        let fields = fields
            .ok_or_else(|| Error::unusable(ErrorKind::File, "the configuration of the run", "without settings", fix))?;
        let mut settings = Self::default();
        settings
            .read(fields.clone())
            .map_err(|wrong| Error::unusable(ErrorKind::File, "a setting of the run", wrong, fix))?;
        Ok(settings)
    }

    /// The first setting that matters in which a run that goes on differs, but for its length: its name, the value here and the
    /// value there.
    fn difference(&self, other: &Self) -> Option<(String, Value, Value)> {
        let (here, there) = (self.write(), other.write());
        let matters = |name: &str| name != "steps" && !Self::is_free(name);
        let differs = |(name, value): &(&String, &Value)| matters(name) && there.get(*name) != Some(*value);
        let (name, value) = here.iter().find(differs)?;
        Some((name.clone(), value.clone(), there.get(name).cloned().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BetaChoice, PixelTrainingSettings, PredictionChoice};
    use super::*;

    fn digits() -> Result<ImageSet> {
        let labels = (0..4).map(|i| i % 2).collect();
        ImageSet::new([1, 28, 28], vec![0; 4 * 784])?.with_labels(labels, vec!["0".into(), "1".into()])
    }

    fn read(settings: &mut PixelTrainingSettings, fields: Value) -> Result<()> {
        Ok(settings.read(fields.as_object().cloned().unwrap_or_default())?)
    }

    #[test]
    fn the_network_fits_the_images() -> Result<()> {
        let set = digits()?;
        let network = PixelTrainingSettings::default().config(&set)?.network;
        assert_eq!((network.in_channels, network.out_channels, network.num_classes()), (1, 1, 2));
        assert_eq!((network.null_class, network.block_out_channels.len()), (Some(2), 3));
        let learned = PixelTrainingSettings { learned_variance: true, unconditional: true, ..Default::default() };
        let network = learned.config(&set)?.network;
        assert_eq!((network.out_channels, network.num_classes(), network.null_class), (2, 0, None));
        // 28 is no multiple of 8.
        let deep = PixelTrainingSettings { channels: vec![8; 4], ..Default::default() };
        assert!(deep.config(&set).is_err_and(|e| e.to_string().contains("multiples of 8")));
        Ok(())
    }

    #[test]
    fn what_is_given_counts_and_epochs_become_steps() -> Result<()> {
        let mut settings = PixelTrainingSettings::default();
        read(&mut settings, json!({"batch_size": 3, "epochs": 5, "prediction_type": "flow"}))?;
        let settings = settings.settled(&TrainingData { train: Arc::new(digits()?), test: None });
        assert_eq!((settings.steps, settings.epochs, settings.common.batch_size), (7, None, 3));
        assert_eq!(settings.scheduler()["_class_name"], "FlowMatchEulerDiscreteScheduler");
        assert_eq!(PixelTrainingSettings::from_config(&json!({"settings": settings.write()}))?, settings);
        assert!(read(&mut settings.clone(), json!({"prediction_type": "noise"})).is_err());
        assert!(read(&mut settings.clone(), json!({"noise": true})).is_err());
        assert!(PixelTrainingSettings::from_config(&json!({"seed": 1})).is_err());
        Ok(())
    }

    #[test]
    fn zero_terminal_snr_and_the_bound_need_what_they_rest_on() -> Result<()> {
        let zero = PixelTrainingSettings { zero_terminal_snr: true, ..Default::default() };
        zero.check()?;
        let scheduler = zero.scheduler();
        assert_eq!(
            (&scheduler["rescale_betas_zero_snr"], &scheduler["timestep_spacing"]),
            (&true.into(), &"trailing".into())
        );
        assert_eq!(zero.objective()?.process().level(999)?.alpha, 0.0);
        let epsilon = PixelTrainingSettings { prediction_type: PredictionChoice::Epsilon, ..zero };
        assert!(epsilon.check().is_err_and(|e| e.to_string().contains("zero_terminal_snr")));
        let bound = PixelTrainingSettings { variational_bound: true, ..Default::default() };
        assert!(bound.check().is_err_and(|e| e.to_string().contains("learned_variance")));
        PixelTrainingSettings { learned_variance: true, ..bound }.check()
    }

    #[test]
    fn a_difference_is_found_where_it_matters() {
        let settings = PixelTrainingSettings::default();
        let common = CommonSettings { checkpoint_every: 7, ..CommonSettings::default() };
        assert_eq!(settings.difference(&PixelTrainingSettings::of(common)), None);
        let other = PixelTrainingSettings { learning_rate: 0.5, ..settings.clone() };
        assert_eq!(settings.difference(&other), Some(("learning_rate".into(), json!(1e-3), json!(0.5))));
        let other = PixelTrainingSettings { beta_schedule: BetaChoice::Linear, ..settings.clone() };
        assert_eq!(other.difference(&settings).map(|(name, ..)| name), Some("beta_schedule".into()));
    }

    /// As text and back, a number is the same to the last bit: otherwise a run would not go on, as its settings were others.
    #[test]
    fn numbers_of_settings_survive_as_text() {
        for steps in 20..3000 {
            let settings = PixelTrainingSettings { ema_decay: 1.0 - 10.0 / f64::from(steps), ..Default::default() };
            let written = Value::Object(settings.write());
            assert_eq!(serde_json::from_str::<Value>(&written.to_string()).ok(), Some(written), "{steps}");
        }
    }

    /// What a later version may have other defaults of is written down.
    #[test]
    fn a_run_writes_down_every_setting() {
        let settings = PixelTrainingSettings::default();
        let written = settings.write();
        let missing = PixelTrainingSettings::keys().into_iter().filter(|key| !written.contains_key(*key));
        assert_eq!(missing.collect::<Vec<_>>(), ["epochs"]);
    }
}
