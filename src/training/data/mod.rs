//! Data sets: from files to batches, beside the training step.
//!
//! An [`ImageSet`] holds a whole set in memory, one byte per value. [`Batches`] says which images batch `n` has,
//! as a function of the seed and `n` alone, so a run that is resumed sees what it would have seen; a [`Loader`]
//! makes them on a thread of its own, a few ahead of the training step.

mod batches;
mod buckets;
mod captioned;
mod captions;
mod decoded;
mod folder;
mod idx;
mod image_set;
mod judged;
mod latents;
mod listing;
mod loader;
mod planes;
mod shuffle;

use crate::{Error, ErrorKind, Result};
use listing::list;
use std::path::{Path, PathBuf};

pub use batches::{Augmentation, Batch, Batches};
pub use buckets::{Bucket, Buckets};
pub use captioned::{CaptionedPicture, CaptionedPictures, PictureTokens, has_captions, read_captioned, with_captions};
pub use captions::CaptionBatches;
pub use decoded::DecodedPictures;
pub use folder::{FolderOptions, has_pictures, read_folder};
pub use idx::{IDX_FILES, Split, contents_sha256, find_idx, has_idx, read_idx};
pub use image_set::{ImageSet, LARGEST_SET};
pub use judged::{JudgeAugmentation, JudgeBatch, JudgeBatches, JudgedPictures};
pub use latents::{LatentBatch, LatentBatches, LatentOptions, LatentSet};
pub use loader::{BatchSource, HeldOutBatch, Loader};
pub use planes::network_input;
pub use shuffle::{EpochOrder, SplitMix64, evenly_spaced, hold_out, permutation};

/// Reads a part of a data set in whichever form a folder has it: IDX files, or pictures.
///
/// Pictures are in the folder's `train` or `test` if there is one of that name; else all of the folder is for
/// training.
///
/// # Errors
/// As [`read_idx`] and [`read_folder`]; also if there is no such part.
pub fn read_set(folder: &Path, split: Split, options: FolderOptions) -> Result<ImageSet> {
    if !folder.is_dir() {
        let fix = "there is no such folder; give one that has IDX files (MNIST, Fashion-MNIST) or pictures, or for \
                   MNIST add `download` to have it made";
        return Err(Error::missing("the data folder", folder.display(), fix));
    }
    if has_idx(folder) {
        return match (options.resize, options.channels) {
            (None, None | Some(1)) => read_idx(folder, split),
            _ => Err(Error::invalid("the data set", "in IDX files", "these are read as they are: grey, in their size")),
        };
    }
    read_folder(&part_of(folder, split)?, options)
}

/// The picture files of a part of a data set, in the order in which [`read_folder`] has them; where they are as in [`read_set`].
///
/// # Errors
/// If there is no picture, or no such part.
pub fn picture_files(folder: &Path, split: Split) -> Result<Vec<PathBuf>> {
    Ok(list(&part_of(folder, split)?)?.paths)
}

/// Where the pictures of a part are.
fn part_of(folder: &Path, split: Split) -> Result<PathBuf> {
    let (part, name) = match split {
        Split::Train => (folder.join("train"), "train"),
        Split::Test => (folder.join("test"), "test"),
    };
    match split {
        _ if part.is_dir() => Ok(part),
        Split::Train => Ok(folder.to_path_buf()),
        Split::Test => {
            let fix = format!("put pictures to judge by into {}", part.display());
            Err(Error::unusable(ErrorKind::File, format!("the folder {name} of {}", folder.display()), "missing", fix))
        }
    }
}
