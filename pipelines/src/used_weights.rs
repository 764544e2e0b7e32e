//! Which weights made a picture.

use crate::adapters::{AdapterSums, UsedAdapter};
use crate::device::NumberFormat;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use tweedie::Result;
use tweedie::checkpoints::ModelFiles;

/// The weights of a run, with their hashes once somebody has asked for them.
#[derive(Debug)]
pub(crate) struct UsedWeights {
    /// What pictures' settings call the model.
    pub model_name: String,
    /// The number format that the weights are rounded to.
    pub dtype: &'static str,
    weights: Arc<WeightSums>,
    adapters: Vec<UsedAdapter>,
    /// In the adapters' order.
    adapter_sums: OnceLock<Result<Vec<AdapterSums>, String>>,
}

/// The files of a model's weights, with their sums once somebody has asked for them: all runs of the model share them.
#[derive(Debug)]
pub(crate) struct WeightSums {
    files: Vec<WeightFile>,
    /// The SHA-256 of each in hexadecimal, by its name in the model's folder.
    sums: OnceLock<Result<Map<String, Value>, String>>,
}

impl WeightSums {
    /// A file that is named more than once counts once.
    pub fn new(mut files: Vec<WeightFile>) -> Arc<Self> {
        let mut seen = Vec::new();
        files.retain(|file| {
            let path = file.files.path(&file.name);
            let new = !seen.contains(&path);
            seen.push(path);
            new
        });
        Arc::new(Self { files, sums: OnceLock::new() })
    }

    fn sums(&self) -> Result<&Map<String, Value>, &str> {
        let hash = || -> Result<_> {
            let each = self.files.iter();
            let each = each.map(|WeightFile { files, name }| Ok((name.clone(), files.sha256(name)?.into())));
            each.collect()
        };
        self.sums.get_or_init(|| hash().map_err(|e| e.to_string())).as_ref().map_err(String::as_str)
    }
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
    /// Without adapters.
    pub fn new(model_name: &str, weights: Arc<WeightSums>, format: NumberFormat) -> Self {
        Self {
            model_name: model_name.into(),
            dtype: format.name(),
            weights,
            adapters: Vec::new(),
            adapter_sums: OnceLock::new(),
        }
    }

    /// The same weights with adapters on top.
    pub fn with_adapters(mut self, adapters: &[UsedAdapter]) -> Self {
        self.adapters = adapters.to_vec();
        self
    }

    /// The SHA-256 of each weight file, by its name in the model's folder.
    pub fn hashes(&self) -> Result<&Map<String, Value>, &str> {
        self.adapter_sums()?;
        self.weights.sums()
    }

    /// The adapters by kind: for each its settings and the SHA-256 of its file.
    pub fn adapters(&self) -> BTreeMap<&'static str, Vec<Value>> {
        let mut lists: BTreeMap<_, Vec<Value>> = BTreeMap::new();
        for (i, adapter) in self.adapters.iter().enumerate() {
            let mut fields = adapter.fields.clone();
            if let Ok(sums) = self.adapter_sums() {
                fields.insert("sha256".into(), sums[i].sha256.clone().into());
            }
            lists.entry(adapter.list).or_default().push(fields.into());
        }
        lists
    }

    /// The adapters of a list as A1111's web UI names them, with what it knows them by.
    pub fn known_by(&self, list: &str) -> Vec<(String, String)> {
        let Ok(sums) = self.adapter_sums() else { return Vec::new() };
        let of_list = self.adapters.iter().zip(sums).filter(|(adapter, _)| adapter.list == list);
        of_list.map(|(adapter, sums)| (adapter.name(), sums.short.clone())).collect()
    }

    fn adapter_sums(&self) -> Result<&[AdapterSums], &str> {
        let hash = || self.adapters.iter().map(UsedAdapter::sums).collect::<Result<_>>();
        let sums = self.adapter_sums.get_or_init(|| hash().map_err(|e| e.to_string()));
        sums.as_ref().map(Vec::as_slice).map_err(String::as_str)
    }
}
