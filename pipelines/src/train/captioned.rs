//! What kinds of training on captioned pictures do alike.

use serde_json::{Map, Value, json};
use tweedie::training::data::CaptionedPictures;

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

/// The prompts of sample grids: those that are given, or so many of the captions.
pub(super) fn sample_prompts(given: Option<&Vec<String>>, pictures: &CaptionedPictures, count: usize) -> Vec<String> {
    let given = given.filter(|prompts| !prompts.is_empty());
    given.cloned().unwrap_or_else(|| pictures.some_captions(count))
}
