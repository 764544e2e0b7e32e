//! `tweedie train ldm`.

use super::pixel::read_config;
use super::run::{Loading, Next, RunArguments};
use crate::cli::fetching::Fetching;
use crate::cli::given::Given;
use crate::cli::source::OfflineOption;
use clap::Args;
use std::path::{Path, PathBuf};
use tweedie::files::read_text;
use tweedie_pipelines::{
    CommonSettings, DTypeChoice, LatentTrainingData, LatentTrainingSettings, Model, Purpose, SeenPictures,
    SharedSettings, TrainingModels,
};

#[derive(Debug, Args)]
pub struct LatentArguments {
    #[command(flatten)]
    run: RunArguments,

    /// A unet/config.json in diffusers' form, in the place of --channels, --blocks, --attention and --heads
    #[arg(long, value_name = "FILE", conflicts_with_all = ["channels", "blocks", "attention", "heads"])]
    unet_config: Option<PathBuf>,

    /// A text_encoder/config.json in transformers' form, in the place of --text-width, --text-layers and
    /// --text-heads
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text_width", "text_layers", "text_heads"])]
    text_config: Option<PathBuf>,

    /// A file of prompts for the sample grids, one a line, in the place of some captions
    #[arg(long, value_name = "FILE")]
    sample_prompts: Option<PathBuf>,

    #[command(flatten)]
    offline: OfflineOption,

    #[command(flatten)]
    common: Given<SharedSettings<CommonSettings, LatentTrainingSettings>>,

    #[command(flatten)]
    settings: Given<LatentTrainingSettings>,
}

impl Next for LatentTrainingSettings {
    fn next(&self, run: &str, _: &str) -> Vec<String> {
        vec![format!("tweedie txt2img --model {run} --prompt TEXT")]
    }
}

/// The prompts in a file, one a line.
pub fn read_prompts(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = read_text("file of prompts", path)?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

impl LatentArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut given = self.common.fields();
        given.extend(self.settings.fields());
        for (name, path) in [("unet_config", &self.unet_config), ("text_config", &self.text_config)] {
            if let Some(path) = path {
                given.insert(name.into(), read_config("config", path)?);
            }
        }
        if let Some(path) = &self.sample_prompts {
            given.insert("sample_prompts".into(), read_prompts(path)?.into());
        }
        self.run.run_with::<LatentTrainingSettings>(given, |loading| self.load(loading))
    }

    fn load(&self, loading: &Loading<'_, LatentTrainingSettings>) -> anyhow::Result<LatentTrainingData> {
        let Loading { data, settings, run, interrupt, quiet } = *loading;
        let fetching = Fetching { interrupt, quiet };
        let source = self.offline.for_training(DTypeChoice::F32, &fetching);
        let find = |path: &Option<PathBuf>, part: Purpose| -> anyhow::Result<Option<Model>> {
            path.as_ref().map(|path| source.open(path, None, part)).transpose()
        };
        let models = TrainingModels {
            vae: find(&settings.vae, Purpose::Autoencoder)?,
            from: find(&settings.from, Purpose::Model)?,
            text_encoder: find(&settings.text_encoder, Purpose::Model)?,
        };
        let seen = run.and_then(SeenPictures::by_run);
        Ok(LatentTrainingData::read(&data.data, data.resize(), settings, &models, seen.as_ref())?)
    }
}
