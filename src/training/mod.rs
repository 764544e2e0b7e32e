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
