//! `tweedie train lora`.

use super::latent::read_prompts;
use super::run::{Loading, RunArguments};
use crate::cli::fetching::Fetching;
use crate::cli::given::Given;
use crate::cli::source::{OfflineOption, Source};
use clap::Args;
use std::path::PathBuf;
use tweedie_pipelines::{
    CommonSettings, DTypeChoice, DeviceChoice, LoraTrainingData, LoraTrainingSettings, Model, Purpose,
};

#[derive(Debug, Args)]
pub struct LoraArguments {
    #[command(flatten)]
    run: RunArguments,

    /// A folder of configurations and tokenizer in diffusers layout, for a --model that is one file
    #[arg(long, value_name = "DIR", requires = "model")]
    config: Option<PathBuf>,

    /// A file of prompts for the sample grids, one a line, in the place of some captions
    #[arg(long, value_name = "FILE")]
    sample_prompts: Option<PathBuf>,

    #[command(flatten)]
    offline: OfflineOption,

    #[command(flatten)]
    common: Given<CommonSettings>,

    #[command(flatten)]
    settings: Given<LoraTrainingSettings>,
}

impl LoraArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut given = self.common.fields();
        given.extend(self.settings.fields());
        if let Some(path) = &self.sample_prompts {
            given.insert("sample_prompts".into(), read_prompts(path)?.into());
        }
        self.run.run_with::<LoraTrainingSettings>(given, |loading| self.load(loading))
    }

    fn load(&self, loading: &Loading<'_, LoraTrainingSettings>) -> anyhow::Result<LoraTrainingData> {
        let Loading { data, settings, interrupt, quiet, .. } = *loading;
        let fetching = Fetching { interrupt, quiet };
        let source = Source {
            dtype: DTypeChoice::Auto,
            device: DeviceChoice::Cpu,
            offline: self.offline.offline(),
            fetching: &fetching,
        };
        let model = match &settings.model {
            Some(path) => source.open(path, self.config.clone(), Purpose::Model)?,
            None => Model::Embedded,
        };
        Ok(LoraTrainingData::read(&data.data, data.resize(), settings, &model)?)
    }
}
