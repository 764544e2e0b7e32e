//! What kinds of training on captioned pictures do alike.

use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tweedie::Result;
use tweedie::training::data::{CaptionedPictures, LatentBatches, read_captioned, with_captions};

/// What a run's `config.json` says of captioned pictures of a height and a width.
pub(super) fn record(
    pictures: &CaptionedPictures,
    (height, width): (usize, usize),
    fingerprint: &str,
) -> Map<String, Value> {
    let fields = json!({
        "images": pictures.len(),
        "captions": pictures.captions().count(),
        "height": height,
        "width": width,
        "fingerprint": fingerprint,
    });
    fields.as_object().cloned().unwrap_or_default()
}

/// The pictures of a folder with its captions, or with one for all.
pub(super) fn pictures_of(folder: &Path, caption: Option<&String>) -> Result<CaptionedPictures> {
    match caption {
        Some(caption) => with_captions(folder, std::slice::from_ref(caption)),
        None => read_captioned(folder),
    }
}

/// These pictures, and if there is a folder of others of their class, those with its captions or with one for all.
pub(super) fn with_class(
    own: CaptionedPictures,
    folder: Option<&PathBuf>,
    caption: Option<&String>,
) -> Result<CaptionedPictures> {
    match folder {
        Some(folder) => Ok(own.with_class(pictures_of(folder, caption)?)),
        None => Ok(own),
    }
}

/// Batches in which pictures of a class that is to be kept, if there are any, are as many as the others.
pub(super) fn in_balance(batches: LatentBatches, pictures: &CaptionedPictures) -> Result<LatentBatches> {
    match pictures.class() {
        Some(class) => batches.balanced(class),
        None => Ok(batches),
    }
}

/// The prompts of sample grids: those that are given, or so many of the captions.
pub(super) fn sample_prompts(given: Option<&Vec<String>>, pictures: &CaptionedPictures, count: usize) -> Vec<String> {
    let given = given.filter(|prompts| !prompts.is_empty());
    given.cloned().unwrap_or_else(|| pictures.some_captions(count))
}
