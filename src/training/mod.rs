//! Training: from a data set and a network to a model, in runs that survive being killed.
//!
//! An [`Objective`] says what is minimised, a [`Trainer`] takes steps, and a [`RunFolder`] keeps what a run makes.
//! Everything random of step `n` is a function of the seed and `n` ([`Streams`]), and everything that a step changes
//! is in a [`TrainerState`], so a run that goes on from a checkpoint ends with the same bits.
//!
//! | file | holds |
//! |---|---|
//! | [`data`] | data sets and batches |
//! | `parameters` | variables under a network's names, and their values in one flat array |
//! | `objective`, `variational_bound` | the forward process, targets, weights of timesteps, the learned variance |
//! | `timestep_sampling` | even or by importance |
//! | `adamw`, `gradients`, `ema`, `learning_rate` | the optimiser and what surrounds it |
//! | `trainer` | a step |
//! | [`classification`], `classifier_trainer` | what a classifier is trained on and judged by; a step of it |
//! | `run_folder`, `run_checkpoint`, `metrics_log` | what is kept of a run |

mod adamw;
pub mod classification;
mod classifier_trainer;
pub mod data;
pub(crate) mod durable_file;
mod ema;
mod gradients;
mod initialization;
mod learning_rate;
mod metrics_log;
mod objective;
mod parameters;
mod run_checkpoint;
mod run_folder;
mod streams;
mod timestep_sampling;
mod trainer;
mod variational_bound;

pub use adamw::{AdamW, AdamWConfig};
pub use classifier_trainer::{ClassifierOptions, ClassifierTrainer, judge_at};
pub use durable_file::replace_file;
pub use ema::Ema;
pub use gradients::{clip_global_norm, global_norm};
pub use learning_rate::{Decay, LearningRate};
pub use metrics_log::MetricsLog;
pub use objective::{ForwardProcess, LossWeighting, NoisyBatch, Objective};
pub use parameters::{FlatLayout, FlatWeights, ParameterSource, Parameters, Slot};
pub use run_checkpoint::RunCheckpoints;
pub use run_folder::{PixelModel, RunFolder};
pub use streams::{Stream, Streams};
pub use timestep_sampling::{DrawnTimesteps, LossHistory, TimestepSampling};
pub use trainer::{StepReport, Trainer, TrainerOptions, TrainerState};
