//! Where weights come from: every form of checkpoint becomes a [`crate::layers::WeightSource`].

mod checkpoint;
mod files;
mod random;
mod report;
mod safetensors_file;

pub use checkpoint::{Checkpoint, Precision};
pub use files::{ModelFiles, sha256};
pub use random::RandomWeights;
pub use report::WeightReport;
pub use safetensors_file::{SafetensorsFile, StoredTensor};
