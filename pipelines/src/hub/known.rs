//! Well-known models by short names.

use super::HubName;
use crate::most_alike::most_alike;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A model that can be called by a short name.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownModel {
    /// Its name on the hub.
    pub repository: String,
    /// What it is, in a few words.
    pub what: String,
    /// The licence that its weights are under.
    pub licence: String,
    /// GB of its files in full precision.
    pub full: f64,
    /// GB of its files in half precision.
    pub half: f64,
    /// Whether somebody has fetched it with this program.
    pub checked: bool,
}

/// All of them by their names.
pub fn known_models() -> &'static BTreeMap<String, KnownModel> {
    static MODELS: LazyLock<BTreeMap<String, KnownModel>> =
        LazyLock::new(|| toml::from_str(include_str!("models.toml")).unwrap_or_default());
    &MODELS
}

impl KnownModel {
    /// Its name on the hub.
    pub fn name(&self) -> Option<HubName> {
        self.repository.parse().ok()
    }
}

/// Whether text can be a short name: one word that is no path and no file.
pub fn is_short_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// The short name that is most like another one, if any is like it at all.
pub fn nearest_name(text: &str) -> Option<&'static str> {
    most_alike(&text.to_lowercase(), known_models().keys().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_whole() {
        let sections = include_str!("models.toml").lines().filter(|line| line.starts_with('[')).count();
        assert!(sections > 8 && known_models().len() == sections);
        for (name, model) in known_models() {
            assert!(is_short_name(name), "{name}");
            assert_eq!(model.name().map(|name| name.id()).as_ref(), Some(&model.repository));
            assert!(model.half > 0.0 && model.half <= model.full && !model.licence.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_slip_has_a_neighbour() {
        assert_eq!(nearest_name("SD-15"), Some("sd15"));
        assert_eq!(nearest_name("sdxl-turb"), Some("sdxl-turbo"));
        assert_eq!(nearest_name("owl"), None);
        assert!(!is_short_name("owner/name") && !is_short_name("model.safetensors") && !is_short_name("./sd15"));
    }
}
