//! Parameters with what moves them.

use super::gradients::{clip_global_norm, global_norm, scale};
use super::{AdamW, AdamWConfig, Ema, LearningRate, Parameters, PowerAverage};
use crate::{Error, ErrorKind, Result};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use std::collections::BTreeMap;

/// How a set of parameters is moved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerOptions {
    /// The learning rate over the run.
    pub learning_rate: LearningRate,
    /// AdamW's constants.
    pub adamw: AdamWConfig,
    /// The set's gradient is cut to this norm, if it is set.
    pub max_gradient_norm: Option<f64>,
    /// The moving average of the set, if one is kept.
    pub ema: Option<EmaOptions>,
}

/// How a moving average is kept: the fields of [`Ema`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmaOptions {
    /// The share that the average keeps in each step, from 0 to 1.
    pub decay: f64,
    /// Whether early steps keep less.
    pub warm_up: bool,
}

impl OptimizerOptions {
    /// Whether every option can be used.
    ///
    /// # Errors
    /// If one cannot; the message names it.
    pub fn check(&self) -> Result<()> {
        if let Some(EmaOptions { decay, .. }) = self.ema
            && !(0.0..=1.0).contains(&decay)
        {
            return Err(Error::invalid("the EMA's decay", decay, "it lies between 0 and 1"));
        }
        let positive = |what: &str, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::invalid(what, value, "it must be above 0")),
        };
        positive("the learning rate", self.learning_rate.peak)?;
        if self.adamw.weight_decay < 0.0 || !self.adamw.weight_decay.is_finite() {
            return Err(Error::invalid("the weight decay", self.adamw.weight_decay, "it must be 0 or above"));
        }
        self.max_gradient_norm.map_or(Ok(()), |norm| positive("the largest norm of the gradient", norm))
    }
}

/// Parameters that are moved together: their values, the optimiser's moments, and their moving average.
#[derive(Debug)]
pub struct ParameterSet {
    name: &'static str,
    loss: usize,
    parameters: Parameters,
    options: OptimizerOptions,
    optimizer: AdamW,
    ema: Option<Ema>,
    powers: Vec<PowerAverage>,
    /// The number of the one of [`Self::powers`] that a finished model has.
    chosen: Option<usize>,
    gradients: Vec<f32>,
}

/// What a step did to a set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SetReport {
    /// The set's name.
    pub set: &'static str,
    /// The norm of its gradient before it was cut.
    pub gradient_norm: f64,
    /// Its learning rate.
    pub learning_rate: f64,
}

/// All of a [`ParameterSet`] that a step changes, in the order of its parameters' layout.
#[derive(Debug, Clone, PartialEq)]
pub struct SetState {
    /// The set's name.
    pub name: String,
    /// Steps that moved it.
    pub updates: u64,
    /// The weights.
    pub weights: Vec<f32>,
    /// Their moving average, if one is kept.
    pub ema: Option<Vec<f32>>,
    /// Their averages by powers of time.
    pub powers: Vec<Vec<f32>>,
    /// The optimiser's means of gradients.
    pub first_moment: Vec<f32>,
    /// The optimiser's means of squared gradients.
    pub second_moment: Vec<f32>,
}

impl ParameterSet {
    /// Parameters before the first step, moved by the task's first loss. The name tells the sets of a task apart, in
    /// checkpoints too.
    ///
    /// # Errors
    /// If an option has an unusable value, or the name a dot, after which the parameters' names follow.
    pub fn new(name: &'static str, parameters: Parameters, options: OptimizerOptions) -> Result<Self> {
        options.check()?;
        if name.contains('.') {
            return Err(Error::invalid("the name of a set of parameters", name, "take one without dots"));
        }
        let count = parameters.layout().len();
        Ok(Self {
            name,
            loss: 0,
            optimizer: AdamW::new(options.adamw, count),
            ema: options.ema.map(|ema| Ema::new(parameters.values(), ema.decay, ema.warm_up)),
            powers: Vec::new(),
            chosen: None,
            gradients: vec![0.0; count],
            parameters,
            options,
        })
    }

    /// The same, moved by another of the task's losses.
    #[must_use]
    pub fn for_loss(mut self, loss: usize) -> Self {
        self.loss = loss;
        self
    }

    /// The same, of which averages by powers of time are kept too, each of a relative deviation. A finished model has the one of
    /// the deviation `chosen`, or else the exponential one.
    ///
    /// # Errors
    /// If a deviation is none of an average, or none is of the chosen one.
    pub fn with_power_averages(mut self, relative_deviations: &[f64], chosen: Option<f64>) -> Result<Self> {
        let weights = self.parameters.values();
        let powers = relative_deviations.iter().map(|&deviation| PowerAverage::new(weights, deviation));
        self.powers = powers.collect::<Result<_>>()?;
        if let Some(chosen) = chosen {
            let found = relative_deviations.iter().position(|&deviation| deviation == chosen);
            self.chosen = Some(found.ok_or_else(|| {
                let kept: Vec<_> = relative_deviations.iter().map(f64::to_string).collect();
                let fix = format!(
                    "those that are kept are {}",
                    if kept.is_empty() { "none".into() } else { kept.join(", ") }
                );
                Error::invalid("the relative deviation of the average to take", chosen, fix)
            })?);
        }
        Ok(self)
    }

    /// The averages by powers of time.
    pub fn power_averages(&self) -> &[PowerAverage] {
        &self.powers
    }

    /// The number of the one of [`Self::power_averages`] that a finished model has, if it has one of them.
    pub fn chosen_power(&self) -> Option<usize> {
        self.chosen
    }

    /// The learning rate over the run.
    pub fn learning_rate(&self) -> LearningRate {
        self.options.learning_rate
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The number of the loss that moves it.
    pub fn loss(&self) -> usize {
        self.loss
    }

    /// The parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The weights' moving average, or the weights themselves where none is kept: what a finished model has.
    pub fn average(&self) -> &[f32] {
        if let Some(power) = self.chosen.and_then(|chosen| self.powers.get(chosen)) {
            return power.values();
        }
        self.ema.as_ref().map_or(self.parameters.values(), |ema| &ema.values)
    }

    /// Whether a moving average is kept.
    pub fn has_average(&self) -> bool {
        self.ema.is_some()
    }

    /// [`Self::average`] as tensors under the parameters' names, on the CPU.
    ///
    /// # Errors
    /// Never, for a set that was made from parameters.
    pub fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        self.parameters.layout().tensors(self.average())
    }

    /// Takes other values to start from; averages start from them too.
    ///
    /// # Errors
    /// If there are more or fewer.
    pub(super) fn start_from(&mut self, values: &[f32]) -> Result<()> {
        let count = self.parameters.layout().len();
        if values.len() != count {
            let fix = format!("{} has {count}", self.name);
            return Err(Error::invalid("the number of values to start from", values.len(), fix));
        }
        self.parameters.update(|weights| weights.copy_from_slice(values))?;
        let averages = self.ema.iter_mut().map(|ema| &mut ema.values);
        for average in averages.chain(self.powers.iter_mut().map(|power| &mut power.values)) {
            average.copy_from_slice(values);
        }
        Ok(())
    }

    /// Forgets the gradients of the step before.
    pub(super) fn clear_gradients(&mut self) {
        self.gradients.fill(0.0);
    }

    /// Adds the gradients of a batch.
    pub(super) fn add_gradients(&mut self, gradients: &GradStore) -> Result<()> {
        self.parameters.add_gradients(gradients, &mut self.gradients)
    }

    /// Makes the sum of the gradients of `batches` their mean and cuts it. Nothing is moved yet.
    pub(super) fn prepare(&mut self, batches: usize, step: u64) -> SetReport {
        if batches > 1 {
            scale(&mut self.gradients, 1.0 / batches as f64);
        }
        let gradient_norm = match self.options.max_gradient_norm {
            Some(max_norm) => clip_global_norm(&mut self.gradients, max_norm),
            None => global_norm(&self.gradients),
        };
        SetReport { set: self.name, gradient_norm, learning_rate: self.options.learning_rate.at(step) }
    }

    /// Moves the weights, and their average after them.
    pub(super) fn update(&mut self, learning_rate: f64) -> Result<()> {
        let (optimizer, gradients) = (&mut self.optimizer, &self.gradients);
        self.parameters.update(|weights| optimizer.step(weights, gradients, learning_rate))?;
        if let Some(ema) = &mut self.ema {
            ema.update(self.parameters.values());
        }
        for power in &mut self.powers {
            power.update(self.parameters.values(), self.optimizer.steps);
        }
        Ok(())
    }

    pub(super) fn state(&self) -> SetState {
        SetState {
            name: self.name.into(),
            updates: self.optimizer.steps,
            weights: self.parameters.values().to_vec(),
            ema: self.ema.as_ref().map(|ema| ema.values.clone()),
            powers: self.powers.iter().map(|power| power.values.clone()).collect(),
            first_moment: self.optimizer.first_moment.clone(),
            second_moment: self.optimizer.second_moment.clone(),
        }
    }

    /// Whether a state can be that of this set.
    pub(super) fn check(&self, state: &SetState) -> Result<()> {
        if state.name != self.name {
            let fix = format!("the task has {} in its place; the state is that of another", self.name);
            return Err(Error::unusable(ErrorKind::Model, "the set of parameters to go on from", &state.name, fix));
        }
        if state.ema.is_some() != self.ema.is_some() {
            let fix = "take the settings that it was trained with";
            return Err(Error::invalid(
                "the moving average",
                if self.ema.is_some() { "missing" } else { "there" },
                fix,
            ));
        }
        if state.powers.len() != self.powers.len() {
            let fix = format!("the set has {}; take the settings that it was trained with", self.powers.len());
            return Err(Error::invalid("the number of averages by powers of time", state.powers.len(), fix));
        }
        let count = self.parameters.layout().len();
        let parts = [Some(&state.weights), state.ema.as_ref(), Some(&state.first_moment), Some(&state.second_moment)];
        match parts.into_iter().flatten().chain(&state.powers).find(|part| part.len() != count) {
            None => Ok(()),
            Some(part) => {
                let fix = format!("{} has {count}; the state is that of another", self.name);
                Err(Error::unusable(ErrorKind::Model, "the number of values to go on from", part.len(), fix))
            }
        }
    }

    /// Goes on from a state that was checked.
    pub(super) fn restore(&mut self, state: SetState) -> Result<()> {
        self.parameters.update(|weights| weights.copy_from_slice(&state.weights))?;
        if let (Some(ema), Some(values)) = (&mut self.ema, state.ema) {
            ema.values = values;
            ema.updates = state.updates;
        }
        for (power, values) in self.powers.iter_mut().zip(state.powers) {
            power.values = values;
        }
        self.optimizer.first_moment = state.first_moment;
        self.optimizer.second_moment = state.second_moment;
        self.optimizer.steps = state.updates;
        Ok(())
    }
}
