//! One component of a model: a network that training goes on from, or one that judges.

use std::path::Path;
use tweedie::checkpoints::{Checkpoint, ModelFiles, Precision, weight_files};
use tweedie::config::ConfigFields;
use tweedie::layers::WeightSource;
use tweedie::{DType, Device, Result};

/// A component of a model with its configuration. Its weights are read when something is built of them.
#[derive(Debug)]
pub(crate) struct Component {
    files: ModelFiles,
    name: &'static str,
    fields: ConfigFields,
    unused: &'static [&'static str],
}

impl Component {
    /// That of a model's folder.
    pub(crate) fn in_folder(model: &Path, name: &'static str) -> Result<Self> {
        Self::of(ModelFiles::folder(model)?, name)
    }

    /// That of a model's files.
    pub(crate) fn of(files: ModelFiles, name: &'static str) -> Result<Self> {
        let fields = files.config(name, "config.json")?;
        Ok(Self { files, name, fields, unused: &[] })
    }

    /// The same, of whose tensors those may be of no use whose names begin so.
    pub(super) fn without(self, unused: &'static [&'static str]) -> Self {
        Self { unused, ..self }
    }

    /// Its configuration.
    pub(crate) fn fields(&self) -> &ConfigFields {
        &self.fields
    }

    /// The SHA-256 of its weights' file in hexadecimal, or those of several.
    pub(super) fn sha256(&self) -> Result<String> {
        let names = weight_files(&self.files, self.name, Precision::Full)?;
        let hashes: Vec<String> = names.iter().map(|name| self.files.sha256(name)).collect::<Result<_>>()?;
        Ok(hashes.join(" "))
    }

    /// What is built of its weights, in f32, all of which are used.
    pub(crate) fn build<T>(&self, build: impl FnOnce(&Checkpoint) -> Result<T>) -> Result<T> {
        let checkpoint = Checkpoint::open(&self.files, self.name, Precision::Full, DType::F32, &Device::Cpu)?;
        let built = build(&checkpoint);
        checkpoint.finish_with(built, self.unused)
    }

    /// What is built of the weights of a `start`, or without any.
    pub(super) fn build_from<T>(
        start: Option<&Self>,
        build: impl FnOnce(Option<&dyn WeightSource>) -> Result<T>,
    ) -> Result<T> {
        match start {
            Some(start) => start.build(|weights| build(Some(weights))),
            None => build(None),
        }
    }
}
