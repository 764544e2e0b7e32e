//! Training steps.

use super::data::HeldOutBatch;
use super::{Draws, ParameterSet, SetReport, SetState, TrainingTask};
use crate::kernels::{RecyclingAllocator, make_pool};
use crate::layers::{on_device, recomputing, with_gradients};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device};
use std::collections::BTreeMap;

/// What a step of training is, whatever is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainerOptions {
    /// Everything random comes from it.
    pub seed: u64,
    /// Batches whose gradients are averaged in one step, at least 1.
    pub accumulate: usize,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Each loss that it followed, at least one.
    pub losses: Vec<LossReport>,
}

/// What a step did along one loss.
#[derive(Debug, Clone, PartialEq)]
pub struct LossReport {
    /// The loss's name.
    pub name: &'static str,
    /// Its mean over the batches.
    pub value: f64,
    /// The sets that it moved.
    pub sets: Vec<SetReport>,
}

impl StepReport {
    /// The first loss.
    pub fn loss(&self) -> f64 {
        self.losses.first().map_or(f64::NAN, |loss| loss.value)
    }
}

/// A task in training: its parameters and all state that a step changes.
///
/// A step is a function of this state, the batches and the step's number; randomness comes from [`Draws`], so a trainer
/// that is restored from a [`TrainerState`] goes on bit by bit.
#[derive(Debug)]
pub struct Trainer<T> {
    task: T,
    sets: Vec<ParameterSet>,
    options: TrainerOptions,
    recomputes: bool,
    step: u64,
}

/// The state of a [`Trainer`] between two steps.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    /// Each set of parameters.
    pub sets: Vec<SetState>,
    /// [`TrainingTask::state`].
    pub task: BTreeMap<String, Vec<f32>>,
}

impl<T: TrainingTask> Trainer<T> {
    /// A trainer before its first step.
    ///
    /// # Errors
    /// If no batch makes a step, a set is of a loss that the task does not have, a loss moves no set, or two sets have the
    /// same name.
    pub fn new(task: T, sets: Vec<ParameterSet>, options: TrainerOptions) -> Result<Self> {
        if options.accumulate == 0 {
            return Err(Error::invalid("the number of batches to accumulate", 0, "take at least 1"));
        }
        let names = task.losses();
        if let Some(set) = sets.iter().find(|set| set.loss() >= names.len()) {
            let fix = format!("the task has {} losses, counted from 0", names.len());
            return Err(Error::invalid(format!("the loss of the parameters {}", set.name()), set.loss(), fix));
        }
        if let Some(loss) = (0..names.len()).find(|&loss| sets.iter().all(|set| set.loss() != loss)) {
            return Err(Error::invalid("a loss without parameters", names[loss], "give it a set that it moves"));
        }
        if let Some((_, set)) =
            sets.iter().enumerate().find(|(i, set)| sets[..*i].iter().any(|s| s.name() == set.name()))
        {
            return Err(Error::invalid("the name of two sets of parameters", set.name(), "give each its own"));
        }
        make_pool(None);
        RecyclingAllocator::keep_most_used();
        Ok(Self { task, sets, options, recomputes: false, step: 0 })
    }

    /// The same, which computes blocks of transformers again on the way back in the place of keeping what is in them: steps take
    /// less memory and longer.
    #[must_use]
    pub fn with_recomputation(mut self, recomputes: bool) -> Self {
        self.recomputes = recomputes;
        self
    }

    /// The task.
    pub fn task(&self) -> &T {
        &self.task
    }

    /// Its sets of parameters.
    pub fn sets(&self) -> &[ParameterSet] {
        &self.sets
    }

    /// The options.
    pub fn options(&self) -> &TrainerOptions {
        &self.options
    }

    /// The number of values that are trained.
    pub fn parameters(&self) -> usize {
        self.sets.iter().map(|set| set.parameters().layout().len()).sum()
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// One step on [`TrainerOptions::accumulate`] batches. Each loss that is due is taken of all of them, and moves its
    /// sets before the next loss is taken.
    ///
    /// # Errors
    /// [`Error::Diverged`] if a loss or its gradient is not finite, before the sets of this loss are touched; an error that
    /// names them if parameters have no gradient, or if no loss is due; whatever the batches or the task report.
    pub fn step(&mut self, next_batch: impl FnMut() -> Result<T::Batch>) -> Result<StepReport> {
        let batches = std::iter::repeat_with(next_batch).take(self.options.accumulate).collect::<Result<Vec<_>>>()?;
        let names = self.task.losses();
        let mut losses = Vec::with_capacity(names.len());
        for (loss, name) in names.iter().enumerate() {
            if self.task.is_due(loss, self.step) {
                losses.push(self.follow(loss, name, &batches)?);
            }
        }
        if losses.is_empty() {
            return Err(Error::invalid("the number of losses of a step", 0, "the task must have one that is due"));
        }
        self.step += 1;
        Ok(StepReport { step: self.step, losses })
    }

    /// Takes the mean of a loss over the batches and moves its sets along the gradient.
    fn follow(&mut self, loss: usize, name: &'static str, batches: &[T::Batch]) -> Result<LossReport> {
        self.sets_of(loss).for_each(ParameterSet::clear_gradients);
        let first = self.step * batches.len() as u64;
        let mut value = 0.0;
        for (i, batch) in batches.iter().enumerate() {
            let draws = Draws::new(self.options.seed, first + i as u64).in_step(self.step);
            value += self.backward(loss, batch, draws)? / batches.len() as f64;
        }
        let step = self.step;
        let reports: Vec<_> = self.sets_of(loss).map(|set| set.prepare(batches.len(), step)).collect();
        let rate = reports.iter().fold(0.0, |most, report| f64::max(most, report.learning_rate));
        if !value.is_finite() {
            let name = if self.task.losses().len() > 1 { format!("the loss {name}") } else { "the loss".into() };
            return Err(self.diverged(format!("{name} is {value}"), rate));
        }
        for report in &reports {
            if !report.gradient_norm.is_finite() {
                let of = if self.sets.len() > 1 { format!(" of {}", report.set) } else { String::new() };
                let what = format!("the norm of the gradient{of} is {}", report.gradient_norm);
                return Err(self.diverged(what, report.learning_rate));
            }
        }
        for (set, report) in self.sets_of(loss).zip(&reports) {
            set.update(report.learning_rate)?;
        }
        Ok(LossReport { name, value, sets: reports })
    }

    /// The means of all losses that are due over the items of batches that are held out: of the weights as they are, with the same
    /// draws each time, so that what differs from one time to the next is the weights. Nothing changes.
    ///
    /// # Errors
    /// Whatever the task reports.
    pub fn validate(&mut self, batches: &[HeldOutBatch<T::Batch>]) -> Result<Vec<(&'static str, f64)>> {
        let remembered = self.task.state();
        let names = self.task.losses();
        let mut losses = Vec::with_capacity(names.len());
        for (loss, &name) in names.iter().enumerate() {
            if !self.task.is_due(loss, self.step) {
                continue;
            }
            let device = self.sets_of(loss).next().map_or(Device::Cpu, |set| set.parameters().device().clone());
            let (mut sum, mut items) = (0.0, 0);
            for (i, HeldOutBatch { batch, items: of_batch }) in batches.iter().enumerate() {
                // Other draws than those of any step, which have the seed itself.
                let draws = Draws::new(!self.options.seed, i as u64).in_step(self.step).validating();
                let task = &mut self.task;
                // Nobody asks for gradients, so nothing is kept for them where a step would compute it again.
                let value = on_device(&device, || recomputing(|| task.loss(loss, batch, draws)))?;
                sum += f64::from(value.to_dtype(DType::F32)?.to_scalar::<f32>()?) * *of_batch as f64;
                items += of_batch;
            }
            losses.push((name, sum / items.max(1) as f64));
        }
        self.task.restore(&remembered)?;
        Ok(losses)
    }

    /// Adds the gradient of a batch's loss to its sets; gives the loss.
    fn backward(&mut self, loss: usize, batch: &T::Batch, draws: Draws) -> Result<f64> {
        let device = self.sets_of(loss).next().map_or(Device::Cpu, |set| set.parameters().device().clone());
        let (task, recomputes) = (&mut self.task, self.recomputes);
        let mut compute = || Ok::<_, Error>((task.loss(loss, batch, draws)?, ()));
        let compute = || if recomputes { recomputing(compute) } else { compute() };
        let (value, (), gradients) = with_gradients(&device, compute)?;
        self.sets_of(loss).try_for_each(|set| set.add_gradients(&gradients))?;
        Ok(f64::from(value.to_dtype(DType::F32)?.to_scalar::<f32>()?))
    }

    fn sets_of(&mut self, loss: usize) -> impl Iterator<Item = &mut ParameterSet> {
        self.sets.iter_mut().filter(move |set| set.loss() == loss)
    }

    fn diverged(&self, what: String, learning_rate: f64) -> Error {
        Error::Diverged { step: self.step + 1, learning_rate, what, checkpoint: "none".into() }
    }

    /// Gives a set, and its averages, other values to start from, in the order of its layout.
    ///
    /// # Errors
    /// If a step was done already, there is no such set, or it has another number of values.
    pub fn start_from(&mut self, set: &str, values: &[f32]) -> Result<()> {
        if self.step > 0 {
            return Err(Error::invalid(
                "the number of steps done",
                self.step,
                "values to start from come before the first",
            ));
        }
        let names: Vec<_> = self.sets.iter().map(ParameterSet::name).collect();
        let found = self.sets.iter_mut().find(|known| known.name() == set);
        let fix = || format!("the task has {}", names.join(", "));
        found.ok_or_else(|| Error::invalid("the set of parameters", set, fix()))?.start_from(values)
    }

    /// All that the next step depends on.
    pub fn state(&self) -> TrainerState {
        let sets = self.sets.iter().map(ParameterSet::state).collect();
        TrainerState { step: self.step, sets, task: self.task.state() }
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// If it is that of another task; nothing has changed then.
    pub fn restore(&mut self, state: TrainerState) -> Result<()> {
        if state.sets.len() != self.sets.len() {
            let fix = format!("the task has {}; the state is that of another", self.sets.len());
            return Err(Error::unusable(
                ErrorKind::Model,
                "the number of sets of parameters to go on from",
                state.sets.len(),
                fix,
            ));
        }
        self.sets.iter().zip(&state.sets).try_for_each(|(set, state)| set.check(state))?;
        self.task.restore(&state.task)?;
        self.sets.iter_mut().zip(state.sets).try_for_each(|(set, state)| set.restore(state))?;
        self.step = state.step;
        Ok(())
    }
}
