//! `tweedie train mnist` and `tweedie train pixel`.

use super::run::{Next, RunArguments};
use crate::cli::data::{DataArguments, DownloadArguments};
use crate::cli::failure::wrong_usage;
use crate::cli::given::Given;
use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tweedie::files::read_text;
use tweedie::training::data::{Split, has_idx, has_pictures, read_idx};
use tweedie_pipelines::{CommonSettings, Error, ErrorKind, PixelTrainingSettings, SharedSettings, TrainingData};

#[derive(Debug, Args)]
pub struct PixelArguments {
    #[command(flatten)]
    run: RunArguments,

    #[command(flatten)]
    download: DownloadArguments,

    /// A unet/config.json in diffusers' form, in the place of --channels and --blocks
    #[arg(long, value_name = "FILE", conflicts_with_all = ["channels", "blocks"])]
    unet_config: Option<PathBuf>,

    #[command(flatten)]
    common: Given<SharedSettings<CommonSettings, PixelTrainingSettings>>,

    #[command(flatten)]
    settings: Given<PixelTrainingSettings>,
}

impl Next for PixelTrainingSettings {
    fn next(&self, run: &str, _: &str) -> Vec<String> {
        vec![format!("tweedie sample --checkpoint {run} --num-images 16 --grid --output samples.png")]
    }
}

/// The training part of a set in IDX files; if it is not there, the error says how to get it.
pub fn mnist(data: &DataArguments) -> anyhow::Result<TrainingData> {
    if has_idx(&data.data) {
        return any(data);
    }
    if has_pictures(&data.data) {
        let folder = data.data.display();
        wrong_usage!(
            "the data folder is {folder}; it has pictures, and MNIST is IDX files: train on them with `tweedie train pixel`"
        );
    }
    Ok(TrainingData { train: Arc::new(read_idx(&data.data, Split::Train)?), test: None })
}

/// The training part of a set of any kind.
pub fn any(data: &DataArguments) -> anyhow::Result<TrainingData> {
    Ok(TrainingData { train: Arc::new(data.read(Split::Train)?), test: None })
}

/// A network's configuration in a file.
pub(super) fn read_config(format: &'static str, path: &Path) -> anyhow::Result<Value> {
    let text = read_text(format, path)?;
    let malformed = |e| Error::malformed(ErrorKind::File, format, path, format!("it is no JSON ({e})"));
    Ok(serde_json::from_str(&text).map_err(malformed)?)
}

impl PixelArguments {
    pub fn run(&self, load: fn(&DataArguments) -> anyhow::Result<TrainingData>) -> anyhow::Result<()> {
        let mut given = self.common.fields();
        given.extend(self.settings.fields());
        if let Some(path) = &self.unet_config {
            given.insert("unet_config".into(), read_config("unet config", path)?);
        }
        self.run.run::<PixelTrainingSettings>(given, |data| {
            self.download.fetch(data, self.run.quiet)?;
            load(data)
        })
    }
}
