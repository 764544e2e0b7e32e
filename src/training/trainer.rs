//! Training steps: algorithm 1 of Ho et al. (2020).

use super::gradients::{clip_global_norm, global_norm, scale};
use super::{AdamW, AdamWConfig, Ema, LearningRate, Objective, Parameters, Stream, Streams, TimestepSampling};
use crate::conditioning::Conditioning;
use crate::denoising::{Cache, Call, Network};
use crate::kernels::make_pool;
use crate::layers::with_gradients;
use crate::{Error, Result};
use candle_core::{DType, Tensor};

/// What a step of training is, apart from the network and its objective.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerOptions {
    /// Everything random comes from it.
    pub seed: u64,
    /// The learning rate over the run.
    pub learning_rate: LearningRate,
    /// The optimiser's constants.
    pub adamw: AdamWConfig,
    /// Gradients are cut to this norm, if it is set.
    pub max_gradient_norm: Option<f64>,
    /// The decay of the moving average.
    pub ema_decay: f64,
    /// Whether the average warms up.
    pub ema_warm_up: bool,
    /// Whether timesteps are drawn by importance.
    pub importance_sampling: bool,
    /// Batches whose gradients are averaged in one step.
    pub accumulate: usize,
    /// With this probability an image's class becomes `null_class`, for classifier-free guidance (Ho and Salimans
    /// 2022, algorithm 1).
    pub class_dropout: f64,
    /// The class that stands for none.
    pub null_class: u32,
}

impl TrainerOptions {
    /// Whether every option can be used.
    ///
    /// # Errors
    /// If one cannot; the message names it.
    pub fn check(&self) -> Result<()> {
        let share = |what: &str, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => Err(Error::invalid(what, value, "it lies between 0 and 1")),
        };
        share("the EMA's decay", self.ema_decay)?;
        share("the class dropout", self.class_dropout)?;
        if self.accumulate == 0 {
            return Err(Error::invalid("the number of batches to accumulate", 0, "take at least 1"));
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

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// The mean loss.
    pub loss: f64,
    /// The norm of the gradient before it was cut.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
}

/// A network in training: its parameters and all state that a step changes.
///
/// A step is a function of this state, the batches and the step's number; randomness comes from
/// [`Streams`], so a trainer that is restored from a checkpoint goes on bit by bit.
pub struct Trainer<N> {
    network: N,
    parameters: Parameters,
    objective: Objective,
    options: TrainerOptions,
    optimizer: AdamW,
    ema: Ema,
    sampling: TimestepSampling,
    gradients: Vec<f32>,
    step: u64,
}

/// The state of a [`Trainer`] between two steps, in the order of its parameters' layout.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerState {
    /// Steps done.
    pub step: u64,
    /// The weights.
    pub weights: Vec<f32>,
    /// Their moving average.
    pub ema: Vec<f32>,
    /// The optimiser's means of gradients.
    pub first_moment: Vec<f32>,
    /// The optimiser's means of squared gradients.
    pub second_moment: Vec<f32>,
    /// [`TimestepSampling::history`].
    pub loss_history: Option<Vec<f32>>,
}

impl<N: Network + Sync> Trainer<N> {
    /// A trainer before its first step.
    ///
    /// # Errors
    /// If an option has an unusable value.
    pub fn new(network: N, parameters: Parameters, objective: Objective, options: TrainerOptions) -> Result<Self> {
        options.check()?;
        make_pool();
        let timesteps = objective.process().num_train_timesteps();
        Ok(Self {
            optimizer: AdamW::new(options.adamw, parameters.layout().len()),
            ema: Ema::new(parameters.values(), options.ema_decay, options.ema_warm_up),
            sampling: match options.importance_sampling {
                true => TimestepSampling::importance(timesteps),
                false => TimestepSampling::Uniform { timesteps },
            },
            gradients: vec![0.0; parameters.layout().len()],
            step: 0,
            network,
            parameters,
            objective,
            options,
        })
    }

    /// The network's parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The moving average of the parameters.
    pub fn ema(&self) -> &[f32] {
        &self.ema.values
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// One step on [`TrainerOptions::accumulate`] batches, each given as images and labels by `next_batch`.
    ///
    /// # Shapes
    /// Images are `[batch, channels, height, width]` in `[-1, 1]`, labels `[batch]` of u32.
    ///
    /// # Errors
    /// [`Error::Diverged`] if the loss or the gradient is not finite, before the weights are touched; an error that
    /// names them if parameters have no gradient; whatever the batches or the network report.
    pub fn step(&mut self, mut next_batch: impl FnMut() -> Result<(Tensor, Option<Tensor>)>) -> Result<StepReport> {
        let learning_rate = self.options.learning_rate.at(self.step);
        self.gradients.fill(0.0);
        let accumulate = self.options.accumulate;
        let mut loss = 0.0;
        for i in 0..accumulate {
            let (images, labels) = next_batch()?;
            loss += self.backward(self.step * accumulate as u64 + i as u64, &images, labels)? / accumulate as f64;
        }
        if !loss.is_finite() {
            return Err(self.diverged(format!("the loss is {loss}"), learning_rate));
        }
        if accumulate > 1 {
            scale(&mut self.gradients, 1.0 / accumulate as f64);
        }
        let gradient_norm = match self.options.max_gradient_norm {
            Some(max_norm) => clip_global_norm(&mut self.gradients, max_norm),
            None => global_norm(&self.gradients),
        };
        if !gradient_norm.is_finite() {
            return Err(self.diverged(format!("the gradient's norm is {gradient_norm}"), learning_rate));
        }
        let (optimizer, gradients) = (&mut self.optimizer, &self.gradients);
        self.parameters.update(|weights| optimizer.step(weights, gradients, learning_rate))?;
        self.ema.update(self.parameters.values());
        self.step += 1;
        Ok(StepReport { step: self.step, loss, gradient_norm, learning_rate })
    }

    /// Adds the gradient of batch `index`'s loss; gives the loss.
    fn backward(&mut self, index: u64, images: &Tensor, labels: Option<Tensor>) -> Result<f64> {
        let streams = Streams::new(self.options.seed);
        let count = images.dim(0)?;
        let drawn = self.sampling.draw(count, &mut streams.generator(Stream::Timesteps, index));
        let noise = streams.generator(Stream::Noise, index).normal(images.elem_count());
        let noise = Tensor::from_vec(noise, images.dims(), images.device())?;
        let labels = labels.map(|labels| self.drop_classes(&labels, index)).transpose()?;

        let batch = self.objective.noisy(images, &noise, &drawn.timesteps)?;
        let (conditioning, cache) =
            (Conditioning { class_labels: labels, ..Conditioning::default() }, Cache::default());
        let (loss, losses, gradients) = with_gradients(images.device(), || {
            let output = self.network.forward(&Call::of_rows(&batch.x_t, &batch.levels, &conditioning, &cache))?;
            let losses = self.objective.losses(&output, &batch)?;
            let weights = Tensor::from_vec(drawn.weights, count, images.device())?.to_dtype(losses.dtype())?;
            Ok::<_, Error>(((&losses * weights)?.mean_all()?, losses))
        })?;
        self.parameters.add_gradients(&gradients, &mut self.gradients)?;
        if self.options.importance_sampling {
            self.sampling.note(&drawn.timesteps, &losses.to_dtype(DType::F32)?.to_vec1()?);
        }
        Ok(f64::from(loss.to_dtype(DType::F32)?.to_scalar::<f32>()?))
    }

    fn drop_classes(&self, original: &Tensor, index: u64) -> Result<Tensor> {
        let mut labels = original.to_vec1::<u32>()?;
        let mut generator = Streams::new(self.options.seed).generator(Stream::ClassDropout, index);
        let draws = generator.uniform(labels.len());
        for (label, u) in labels.iter_mut().zip(draws) {
            if f64::from(u) < self.options.class_dropout {
                *label = self.options.null_class;
            }
        }
        let count = labels.len();
        Ok(Tensor::from_vec(labels, count, original.device())?)
    }

    fn diverged(&self, what: String, learning_rate: f64) -> Error {
        Error::Diverged { step: self.step + 1, learning_rate, what, checkpoint: "none".into() }
    }

    /// All that the next step depends on.
    pub fn state(&self) -> TrainerState {
        TrainerState {
            step: self.step,
            weights: self.parameters.values().to_vec(),
            ema: self.ema.values.clone(),
            first_moment: self.optimizer.first_moment.clone(),
            second_moment: self.optimizer.second_moment.clone(),
            loss_history: self.sampling.history(),
        }
    }

    /// Goes on from a state.
    ///
    /// # Errors
    /// If it is that of another network.
    pub fn restore(&mut self, state: TrainerState) -> Result<()> {
        let count = self.parameters.layout().len();
        let parts = [&state.weights, &state.ema, &state.first_moment, &state.second_moment];
        if let Some(part) = parts.into_iter().find(|part| part.len() != count) {
            let fix = format!("the network has {count}; the checkpoint is that of another");
            return Err(Error::invalid("the number of values to go on from", part.len(), fix));
        }
        self.sampling.restore(state.loss_history.as_deref())?;
        self.parameters.update(|weights| weights.copy_from_slice(&state.weights))?;
        self.ema.values = state.ema;
        self.ema.updates = state.step;
        self.optimizer.first_moment = state.first_moment;
        self.optimizer.second_moment = state.second_moment;
        self.optimizer.steps = state.step;
        self.step = state.step;
        Ok(())
    }
}
