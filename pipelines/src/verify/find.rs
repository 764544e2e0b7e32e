//! Weights by their SHA-256.

use crate::model::Model;
use serde_json::{Map, Value};
use std::path::Path;
use tweedie::Result;
use tweedie::files::file_sha256;

/// Whether a model has the weights that a picture was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WeightsCheck {
    /// It has.
    Same,
    /// It has no file of that name.
    Missing(String),
    /// It has one with another SHA-256.
    Other {
        /// The file.
        name: String,
        /// The SHA-256 that it has.
        found: String,
        /// The one that it should have.
        expected: String,
    },
}

/// Compares a model's network with the sums of a picture's record, by file name in the model's folder. The network alone
/// decides: the autoencoder may be another model's.
///
/// # Errors
/// If the model is not there, or a file cannot be read.
pub fn check_weights(model: &Model, recorded: &Map<String, Value>) -> Result<WeightsCheck> {
    let sums = || recorded.iter().filter_map(|(name, sum)| Some((name.as_str(), sum.as_str()?)));
    let one_file = match model {
        Model::File { path, .. } => Some(path.clone()),
        Model::Unfinished(run) => Some(run.weights()?),
        _ => None,
    };
    if let Some(path) = one_file {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let found = file_sha256(&path)?;
        // Who has one file may have given it another name.
        let whole = sums().filter(|(name, _)| !name.contains('/'));
        let mut other = WeightsCheck::Missing(name.into_owned());
        for (name, expected) in whole {
            if found == expected {
                return Ok(WeightsCheck::Same);
            }
            other = WeightsCheck::Other { name: name.into(), found: found.clone(), expected: expected.into() };
        }
        return Ok(other);
    }
    let files = model.files()?;
    let network: Vec<_> = sums().filter(|(name, _)| name.starts_with("unet/")).collect();
    if network.is_empty() {
        return Ok(WeightsCheck::Missing("unet/".into()));
    }
    for &(name, expected) in &network {
        if !stays_inside(name) || !files.exists(name) {
            return Ok(WeightsCheck::Missing(name.into()));
        }
        // In the hub's cache a file is a link to one that is called by its sum; others need not be read then.
        let found = match sum_by_link(&files.path(name)) {
            Some(sum) if sum != expected => sum,
            _ => files.sha256(name)?,
        };
        if found != expected {
            return Ok(WeightsCheck::Other { name: name.into(), found, expected: expected.into() });
        }
    }
    Ok(WeightsCheck::Same)
}

/// The record comes with a picture from anywhere: no name of it leads out of a model's folder.
pub(super) fn stays_inside(name: &str) -> bool {
    !name.contains(['\\', ':', '\0']) && name.split('/').all(|step| !step.is_empty() && !step.starts_with('.'))
}

/// The SHA-256 in the name of what a link leads to.
fn sum_by_link(path: &Path) -> Option<String> {
    let target = std::fs::read_link(path).ok()?;
    let name = target.file_name()?.to_str()?;
    let is_sum = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
    is_sum.then(|| name.to_owned())
}

#[cfg(feature = "hub")]
mod in_cache {
    use super::{check_weights, stays_inside};
    use crate::hub::Hub;
    use crate::model::Model;
    use crate::verify::WeightsCheck;
    use serde_json::{Map, Value};
    use tweedie::Result;

    impl Hub {
        /// The model in the cache that has the weights of a picture's record.
        ///
        /// # Errors
        /// If a file cannot be read.
        pub fn with_weights(&self, recorded: &Map<String, Value>) -> Result<Option<Model>> {
            for (name, folder) in self.snapshots()? {
                let single = recorded.keys().filter(|name| !name.contains('/') && stays_inside(name));
                let single = single.map(|name| folder.join(name)).find(|path| path.is_file());
                let model = match single {
                    Some(path) => Model::File { path, config: None },
                    None => Model::Cached { name: name.to_string(), folder },
                };
                if check_weights(&model, recorded)? == WeightsCheck::Same {
                    return Ok(Some(model));
                }
            }
            Ok(None)
        }
    }
}
