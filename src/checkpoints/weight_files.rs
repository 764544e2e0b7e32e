//! Which files of a model hold a component's weights.

use super::{ComponentKind, ModelFiles};
use crate::{Error, ErrorKind, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// The variant of files with the weights that were trained, where those beside them are their moving average.
const NOT_AVERAGED: &str = ".non_ema";

/// Which of a component's files to take, if there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The full file, or the `.fp16` variant if there is no other.
    Full,
    /// The `.fp16` variant, or the full file if there is no other.
    Half,
}

/// Whether a model has the weights of a component.
pub(super) fn has_weights(files: &ModelFiles, component: &str, precision: Precision) -> bool {
    match files {
        ModelFiles::Single { configs, weights, layout, .. } => {
            layout.holds(weights.file(), component) || has_weights(configs, component, precision)
        }
        ModelFiles::Replaced { model, component: replaced, .. } => {
            component == *replaced || has_weights(model, component, precision)
        }
        files => weight_file(component, precision, |name| files.exists(name)).is_some(),
    }
}

/// The file with a component's weights, or the index of its parts, among those that exist: safetensors before pickles,
/// and of those the variant of that precision before the other; weights that are no moving average if there are no others.
pub fn weight_file(component: &str, precision: Precision, exists: impl Fn(&str) -> bool) -> Option<String> {
    let stem = ComponentKind::of_folder(component).file_stem();
    let averaged = match precision {
        Precision::Full => ["", ".fp16"],
        Precision::Half => [".fp16", ""],
    };
    // What was saved before there was safetensors.
    let pickled = if stem == "model" { "pytorch_model" } else { stem };
    let mut names = [&averaged[..], &[NOT_AVERAGED]].into_iter().flat_map(|variants| {
        [(stem, "safetensors"), (pickled, "bin")].into_iter().flat_map(move |(stem, ending)| {
            variants.iter().flat_map(move |variant| {
                [
                    format!("{component}/{stem}{variant}.{ending}"),
                    format!("{component}/{stem}{variant}.{ending}.index.json"),
                    format!("{component}/{stem}.{ending}.index{variant}.json"),
                ]
            })
        })
    });
    names.find(|name| exists(name))
}

/// The files that hold a component's weights: the one found by [`weight_file`], or those that it names.
///
/// # Errors
/// If there is none, or an index is damaged or leads out of the folder.
pub fn weight_files(files: &ModelFiles, component: &str, precision: Precision) -> Result<Vec<String>> {
    match weight_file(component, precision, |name| files.exists(name)) {
        Some(index) if index.ends_with(".json") => shards(files, component, &index),
        Some(file) => Ok(vec![file]),
        None => {
            let stem = ComponentKind::of_folder(component).file_stem();
            let fix =
                format!("it has no safetensors file; the download may not be complete (expected {stem}.safetensors)");
            Err(Error::unusable(
                ErrorKind::Model,
                format!("the folder of the {component}"),
                files.path(component).display(),
                fix,
            ))
        }
    }
}

/// The part of an index that counts.
#[derive(Deserialize)]
struct Index {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

/// The files that an index names, each once, in order.
fn shards(files: &ModelFiles, component: &str, index: &str) -> Result<Vec<String>> {
    let malformed =
        |reason: String| Error::malformed(ErrorKind::Model, "index of weight files", &files.path(index), reason);
    let Index { weight_map } = serde_json::from_str(&files.read_text(index)?).map_err(|e| malformed(e.to_string()))?;
    let mut names = BTreeSet::new();
    for file in weight_map.into_values() {
        if file.is_empty() || file.contains(['/', '\\']) || file.starts_with('.') {
            return Err(malformed(format!("`{file}` leads out of the folder")));
        }
        names.insert(format!("{component}/{file}"));
    }
    if names.is_empty() {
        return Err(malformed("its weight_map names no file".into()));
    }
    Ok(names.into_iter().collect())
}
