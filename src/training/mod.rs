//! Training: from a data set and a network to a model, in runs that survive being killed.
//!
//! A [`TrainingTask`] says what a batch is, what is minimised and what the finished model is made of; a [`Trainer`] takes
//! steps of any task, and [`runs`] keep what they make. A step of a task moves each of its sets of parameters along the
//! gradient of the loss that the set belongs to,
//!
//! ```text
//! g_s = grad_s (1/B) sum_b L(b),
//! theta_s <- AdamW(theta_s, clip(g_s)),
//! average_s <- decay average_s + (1 - decay) theta_s.
//! ```
//!
//! Everything random of step `n` is a function of the seed and `n` ([`Draws`]), and everything that a step changes is in a
//! [`TrainerState`], so a run that goes on from a checkpoint ends with the same bits.
//!
//! | file | holds |
//! |---|---|
//! | [`data`] | data sets and batches |
//! | `task`, [`tasks`] | what a task is; one file for each |
//! | `trainer` | a step |
//! | `parameter_set` | parameters that are moved together, with their optimiser and average |
//! | `parameters`, `initialization`, `clip_initialization` | variables under a network's names, and their values in one flat array |
//! | `adamw`, `gradients`, `ema`, `power_average`, `learning_rate` | the optimiser and what surrounds it |
//! | `denoising_loss` | the loss of a denoising network: timesteps, noise, dropped classes |
//! | `objective`, `variational_bound` | the forward process, targets, weights of timesteps, the learned variance |
//! | `reconstruction` | how far pictures are from those that they should be |
//! | `low_rank` | low-rank factors beside frozen weights |
//! | `new_token` | embeddings of a new token before the first step |
//! | `timestep_sampling` | even or by importance |
//! | [`runs`] | run folders, checkpoints, the log, and the loop from the first step to the model |
//!
//! A new task is one file that implements [`TrainingTask`]; nothing else needs to know of it.
//!
//! # Examples
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use tweedie::layers::{Linear, Weights};
//! use tweedie::training::data::BatchSource;
//! use tweedie::training::runs::{RunFolder, RunPlan, TrainEvent, train, write_tensors};
//! use tweedie::training::{
//!     AdamWConfig, Decay, Draws, LearningRate, OptimizerOptions, ParameterSet, ParameterSource, Trainer, TrainerOptions,
//!     TrainingTask,
//! };
//! use tweedie::{Device, Result, Tensor};
//!
//! /// A line through points.
//! struct Line(Linear);
//!
//! impl TrainingTask for Line {
//!     type Batch = (Tensor, Tensor);
//!     type Evaluation = ();
//!
//!     fn loss(&mut self, _: usize, (x, y): &Self::Batch, _: Draws) -> Result<Tensor> {
//!         Ok((self.0.forward(x)? - y)?.sqr()?.mean_all()?)
//!     }
//!
//!     fn evaluate(&self, _: &[ParameterSet]) -> Result<()> {
//!         Ok(())
//!     }
//!
//!     fn write_model(&self, sets: &[ParameterSet], (): &(), folder: &Path) -> Result<()> {
//!         write_tensors(&folder.join("line.safetensors"), sets[0].tensors()?)
//!     }
//! }
//!
//! /// Points of `y = 2 x + 1`.
//! struct Points;
//!
//! impl BatchSource for Points {
//!     type Batch = (Tensor, Tensor);
//!
//!     fn get(&mut self, _: u64) -> Result<Self::Batch> {
//!         let x = Tensor::new(&[[-1f32], [0.0], [1.0]], &Device::Cpu)?;
//!         Ok((x.clone(), x.affine(2.0, 1.0)?))
//!     }
//! }
//!
//! let source = ParameterSource::random(1, &Device::Cpu);
//! let line = Line(Linear::new(&Weights::new(&source), 1, 1)?);
//! let rate = LearningRate { peak: 0.1, warmup_steps: 0, total_steps: 200, decay: Decay::Cosine };
//! let optimizer = OptimizerOptions {
//!     learning_rate: rate,
//!     adamw: AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() },
//!     max_gradient_norm: None,
//!     ema: None,
//! };
//! let set = ParameterSet::new("line", source.finish()?, optimizer)?;
//! let trainer = Trainer::new(line, vec![set], TrainerOptions { seed: 0, accumulate: 1 })?;
//! let folder = tempfile::tempdir()?;
//! let plan = RunPlan {
//!     steps: 200,
//!     checkpoint_every: 100,
//!     sample_every: None,
//!     validate_every: 100,
//!     first_look: None,
//!     batch_size: 3,
//! };
//! let outcome = train(RunFolder::create(&folder.path().join("run"))?, trainer, Points, plan, &mut |event| {
//!     if let TrainEvent::Step { report, .. } = event {
//!         println!("step {}: {}", report.step, report.loss());
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! assert!(outcome.loss.is_some_and(|loss| loss < 0.1) && folder.path().join("run/model/line.safetensors").is_file());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod adamw;
mod clip_initialization;
pub mod data;
mod denoising_loss;
mod ema;
mod gradients;
mod initialization;
mod learning_rate;
mod low_rank;
mod new_token;
mod objective;
mod parameter_set;
mod parameters;
mod power_average;
mod reconstruction;
pub mod runs;
mod streams;
mod task;
pub mod tasks;
mod timestep_sampling;
mod trainer;
mod variational_bound;

pub use adamw::{AdamW, AdamWConfig};
pub use clip_initialization::ClipInitialization;
pub use denoising_loss::{ClassDropout, DenoisingLoss};
pub use ema::Ema;
pub use gradients::{clip_global_norm, global_norm};
pub use learning_rate::{Decay, LearningRate};
pub use low_rank::{LowRankConfig, LowRankModules};
pub use new_token::NewToken;
pub use objective::{ForwardProcess, LossWeighting, NoisyBatch, Objective};
pub use parameter_set::{EmaOptions, OptimizerOptions, ParameterSet, SetReport, SetState};
pub use parameters::{FlatLayout, FlatWeights, ParameterSource, Parameters, Slot};
pub use power_average::PowerAverage;
pub use reconstruction::{ReconstructionLoss, psnr, ssim};
pub use streams::{Stream, Streams};
pub use task::{Draws, TrainingTask};
pub use timestep_sampling::{DrawnTimesteps, LossHistory, TimestepSampling};
pub use trainer::{LossReport, StepReport, Trainer, TrainerOptions, TrainerState};
pub(crate) use variational_bound::{ReverseVariance, VariationalBound};
