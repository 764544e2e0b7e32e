//! Runs: what training leaves on the disk, and how a run that was stopped goes on.

mod checkpoint;
mod folder;
mod metrics_log;
mod run;
mod tensor_file;
mod unfinished;

pub use checkpoint::RunCheckpoints;
pub use folder::RunFolder;
pub use metrics_log::{LossCurve, MetricsLog};
pub use run::{FinishedModel, RunPlan, TrainEvent, TrainObserver, TrainOutcome, train};
pub use tensor_file::write_tensors;
pub use unfinished::UnfinishedRun;
