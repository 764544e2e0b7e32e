//! What can be trained: one file a task. Data, optimisers, runs and checkpoints are the same for all.

mod autoencoder;
mod caption_words;
mod classification;
mod classifier;
mod embedding;
mod frozen_model;
mod judge;
mod latent_diffusion;
mod lora;
mod pixel_diffusion;
mod prompt_grid;
mod sample_grid;

pub use autoencoder::{Adversarial, AutoencoderTraining, AutoencoderTrainingConfig, Fidelity};
pub use caption_words::CaptionWords;
pub use classification::{Judgement, cross_entropy, cross_entropy_of_labelled, evaluate};
pub use classifier::{ClassifierTraining, NoiseAccuracy, judge_at};
pub use embedding::{EmbeddingTraining, EmbeddingTrainingConfig};
pub use frozen_model::{FrozenModel, HeldWeights};
pub use judge::{Asked, JudgeAccuracy, JudgeTest, JudgeTraining, Measure, Score, Share, score_pictures};
pub use latent_diffusion::{FrozenAutoencoder, LatentDiffusion, LatentDiffusionConfig, StartingWeights};
pub use lora::{LoraTraining, LoraTrainingConfig};
pub use pixel_diffusion::{PixelDiffusion, PixelDiffusionConfig};
pub use prompt_grid::SamplePrompts;

use crate::files::write_synced;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Writes a file of a model, with the folder that it is in.
fn write_json(folder: &Path, name: &str, json: &Value) -> Result<()> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    write_synced(&path, format!("{json:#}\n").as_bytes())
}
