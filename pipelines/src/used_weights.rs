//! Which weights made a picture.

use crate::adapters::{AdapterSums, UsedAdapter};
use crate::device::NumberFormat;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use tweedie::checkpoints::ModelFiles;
use tweedie::{Error, Result};

/// The weights of a run, with their hashes once somebody has asked for them.
#[derive(Debug)]
pub(crate) struct UsedWeights {
    /// What pictures' settings call the model.
    pub model_name: String,
    /// The number format that the weights are rounded to.
    pub dtype: &'static str,
    files: Vec<WeightFile>,
    adapters: Vec<UsedAdapter>,
    hashes: OnceLock<Result<Hashes, String>>,
}

/// The SHA-256 of every file, in hexadecimal.
#[derive(Debug)]
struct Hashes {
    /// By the weight files' names in the model's folder.
    weights: Map<String, Value>,
    /// In the adapters' order.
    adapters: Vec<AdapterSums>,
}

/// One file of weights.
#[derive(Debug, Clone)]
pub(crate) struct WeightFile {
    /// The model that it belongs to.
    pub files: ModelFiles,
    /// Its name there.
    pub name: String,
}

impl WeightFile {
    /// Several files of one model.
    pub fn all(files: &ModelFiles, names: &[String]) -> Vec<Self> {
        names.iter().map(|name| Self { files: files.clone(), name: name.clone() }).collect()
    }
}

impl UsedWeights {
    /// A file that is named more than once counts once.
    pub fn new(model_name: &str, mut files: Vec<WeightFile>, format: NumberFormat) -> Self {
        let mut seen = Vec::new();
        files.retain(|file| {
            let path = file.files.path(&file.name);
            let new = !seen.contains(&path);
            seen.push(path);
            new
        });
        Self {
            model_name: model_name.into(),
            dtype: format.name(),
            files,
            adapters: Vec::new(),
            hashes: OnceLock::new(),
        }
    }

    /// The same weights with adapters on top.
    pub fn with_adapters(mut self, adapters: &[UsedAdapter]) -> Self {
        self.adapters = adapters.to_vec();
        self
    }

    /// The SHA-256 of each weight file, by its name in the model's folder.
    pub fn hashes(&self) -> Result<&Map<String, Value>, &str> {
        self.all_hashes().map(|hashes| &hashes.weights)
    }

    /// The adapters by kind: for each its settings and the SHA-256 of its file.
    pub fn adapters(&self) -> BTreeMap<&'static str, Vec<Value>> {
        let mut lists: BTreeMap<_, Vec<Value>> = BTreeMap::new();
        for (i, adapter) in self.adapters.iter().enumerate() {
            let mut fields = adapter.fields.clone();
            if let Ok(hashes) = self.all_hashes() {
                fields.insert("sha256".into(), hashes.adapters[i].sha256.clone().into());
            }
            lists.entry(adapter.list).or_default().push(fields.into());
        }
        lists
    }

    /// The adapters of a list as A1111's web UI names them, with what it knows them by.
    pub fn known_by(&self, list: &str) -> Vec<(String, String)> {
        let Ok(hashes) = self.all_hashes() else { return Vec::new() };
        let of_list = self.adapters.iter().zip(&hashes.adapters).filter(|(adapter, _)| adapter.list == list);
        of_list.map(|(adapter, sums)| (adapter.name(), sums.short.clone())).collect()
    }

    fn all_hashes(&self) -> Result<&Hashes, &str> {
        let weights = || -> Result<_> {
            let each = self.files.iter();
            let each = each.map(|WeightFile { files, name }| Ok((name.clone(), files.sha256(name)?.into())));
            each.collect()
        };
        let adapters = || self.adapters.iter().map(UsedAdapter::sums).collect::<Result<_>>();
        let hash = || Ok::<_, Error>(Hashes { weights: weights()?, adapters: adapters()? });
        self.hashes.get_or_init(|| hash().map_err(|e| e.to_string())).as_ref().map_err(String::as_str)
    }
}
