//! What a path, or a name on the hub, stands for.

use super::fetching::Fetching;
use super::print;
#[cfg(feature = "hub")]
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};
use tweedie::training::data::has_idx;
#[cfg(feature = "hub")]
use tweedie_pipelines::hub::{HubName, is_short_name, known_models, nearest_name};
use tweedie_pipelines::{DTypeChoice, DeviceChoice, Model, PixelModel, Purpose};

/// The name of the embedded model in pixel space.
const EMBEDDED_PIXEL_MODEL: &str = "mnist";

/// What the hub calls something that is not here: by its name there, or by a short one. Nothing if it can only be a path.
#[cfg(feature = "hub")]
pub fn hub_name(path: &Path) -> anyhow::Result<Option<HubName>> {
    let Some(text) = path.to_str().filter(|_| !path.exists()) else { return Ok(None) };
    if let Some(known) = known_models().get(text) {
        return Ok(known.name());
    }
    if !is_short_name(text) {
        return Ok(text.parse().ok());
    }
    if text == EMBEDDED_PIXEL_MODEL {
        anyhow::bail!(
            "the model is {text}, the embedded one of digits in pixel space: draw them with `tweedie sample {text}`"
        );
    }
    let nearest = nearest_name(text).map_or(String::new(), |name| format!("did you mean {name}? "));
    let names: Vec<_> = known_models().keys().map(String::as_str).collect();
    anyhow::bail!(
        "the model is {text}; there is no such file or folder, and no model is known by that name: {nearest}known are {}; others are \
         called owner/name",
        names.join(", ")
    )
}

/// Says which checkpoint the model at a path is, if it is one of a training run.
pub fn tell_if_unfinished(path: &Path, model: &Model) {
    let Model::Unfinished(run) = model else { return };
    let of = run.steps().map_or(String::new(), |steps| format!(" of {steps}"));
    let path = path.display();
    print::remark(&format!("{path} is a training run before its end: this is its model after step {}{of}", run.step()));
}

/// The option that keeps a run from the network.
#[derive(Debug, Args)]
pub struct OfflineOption {
    /// Take models of the hub from its cache alone, as HF_HUB_OFFLINE=1 does
    #[cfg(feature = "hub")]
    #[arg(long, hide_short_help = true)]
    offline: bool,
}

impl OfflineOption {
    /// Whether the hub is not to be asked.
    pub fn offline(&self) -> bool {
        #[cfg(feature = "hub")]
        return self.offline;
        #[cfg(not(feature = "hub"))]
        return true;
    }

    /// Where training finds models, which it has on the CPU.
    pub fn for_training<'a>(&self, dtype: DTypeChoice, fetching: &'a Fetching<'a>) -> Source<'a> {
        Source { dtype, device: DeviceChoice::Cpu, offline: self.offline(), fetching }
    }
}

/// Where models come from in one run.
#[cfg_attr(not(feature = "hub"), allow(dead_code))]
pub struct Source<'a> {
    pub dtype: DTypeChoice,
    pub device: DeviceChoice,
    /// Whether the hub is not to be asked.
    pub offline: bool,
    pub fetching: &'a Fetching<'a>,
}

impl Source<'_> {
    /// What is there under a path; else, what the hub has under that name. `config` goes with a single file.
    #[cfg(feature = "hub")]
    pub fn open(&self, path: &Path, config: Option<PathBuf>, purpose: Purpose) -> anyhow::Result<Model> {
        use tweedie_pipelines::hub;
        let Some(name) = hub_name(path)? else { return self.at(path, config) };
        let wanted = hub::Wanted::new(purpose, self.dtype, &self.device.open()?);
        let hub = super::fetching::hub(self.offline)?;
        self.fetching.tell_of(&hub, &name, wanted);
        let model = self.fetching.open(&hub, &name, wanted);
        match model.with_context(|| format!("nothing here is called {name}, so it is looked for on the hub"))? {
            Model::File { path, .. } => Ok(Model::at(path, config)?),
            Model::Cached { folder, .. } if config.is_some() => Ok(Model::at(folder, config)?),
            model => Ok(model),
        }
    }

    /// What is there under a path. `config` goes with a single file.
    #[cfg(not(feature = "hub"))]
    pub fn open(&self, path: &Path, config: Option<PathBuf>, _: Purpose) -> anyhow::Result<Model> {
        self.at(path, config)
    }

    fn at(&self, path: &Path, config: Option<PathBuf>) -> anyhow::Result<Model> {
        let model = Model::at(path.into(), config)?;
        if !self.fetching.quiet {
            tell_if_unfinished(path, &model);
        }
        Ok(model)
    }

    /// The same for a model in pixel space.
    pub fn pixel_model(&self, path: &Path) -> anyhow::Result<PixelModel> {
        Ok(match self.open(path, None, Purpose::Pixel)? {
            Model::Cached { name, folder } => PixelModel::Cached { name, folder },
            Model::Unfinished(run) => PixelModel::Unfinished(run),
            _ => PixelModel::Folder(path.into()),
        })
    }

    /// The same, or the embedded one by its name.
    pub fn pixel_model_or_mnist(&self, path: &Path) -> anyhow::Result<PixelModel> {
        match path.to_str() {
            // A folder of data of this name is no model.
            Some(EMBEDDED_PIXEL_MODEL) if !path.exists() || has_idx(path) => Ok(PixelModel::Mnist),
            _ => self.pixel_model(path),
        }
    }

    /// The same for what is one file. A folder is taken for the file in it that training here, diffusers or PEFT has written.
    pub fn file(&self, path: &Path, purpose: Purpose) -> anyhow::Result<PathBuf> {
        if let Some(file) = purpose.adapter_in(path) {
            return Ok(file);
        }
        match self.open(path, None, purpose)? {
            Model::File { path, .. } => Ok(path),
            // What is there and is no file is named as it was given.
            _ => Ok(path.into()),
        }
    }
}
