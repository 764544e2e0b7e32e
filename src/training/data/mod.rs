//! Data sets: from files to batches, beside the training step.
//!
//! An [`ImageSet`] holds a whole set in memory, one byte per value. [`Batches`] says which images batch `n` has,
//! as a function of the seed and `n` alone, so a run that is resumed sees what it would have seen; a [`Loader`]
//! makes them on a thread of its own, a few ahead of the training step.

mod batches;
mod idx;
mod image_set;
mod loader;
mod shuffle;

pub use batches::{Augmentation, Batch, Batches};
pub use idx::{IDX_FILES, Split, has_idx, read_idx};
pub use image_set::{ImageSet, LARGEST_SET};
pub use loader::Loader;
pub use shuffle::{SplitMix64, permutation};
