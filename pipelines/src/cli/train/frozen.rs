//! `tweedie train lora` and `tweedie train embedding`.

use super::latent::read_prompts;
use super::run::{Account, Loading, Next, RunArguments, quoted};
use crate::cli::fetching::Fetching;
use crate::cli::given::Given;
use crate::cli::source::OfflineOption;
use clap::Args;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use tweedie::training::TrainingTask;
use tweedie_pipelines::{
    CommonSettings, DTypeChoice, EmbeddingTrainingSettings, FrozenModelData, FrozenModelSettings, FrozenModelTraining,
    LoraTrainingSettings, Model, Purpose, SharedSettings,
};

#[derive(Debug, Args)]
pub struct FrozenModelArguments<S: FrozenModelTraining + Debug> {
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
    common: Given<SharedSettings<CommonSettings, S>>,

    #[command(flatten)]
    frozen: Given<SharedSettings<FrozenModelSettings, S>>,

    #[command(flatten)]
    settings: Given<S>,
}

impl Next for LoraTrainingSettings {
    fn next(&self, run: &str, _: &str) -> Vec<String> {
        vec![format!("{} --prompt TEXT --lora {run}", drawn_with(self.frozen()))]
    }
}

impl Next for EmbeddingTrainingSettings {
    fn next(&self, run: &str, _: &str) -> Vec<String> {
        let prompt = quoted(Path::new(&format!("a picture of {}", self.token.as_deref().unwrap_or_default())));
        vec![format!("{} --prompt {prompt} --embedding {run}", drawn_with(self.frozen()))]
    }
}

/// The command that draws with the model that was trained for.
fn drawn_with(settings: &FrozenModelSettings) -> String {
    let model = settings.model.as_deref().map_or(String::new(), |model| format!(" --model {}", quoted(model)));
    format!("tweedie txt2img{model}")
}

impl<S: FrozenModelTraining + Next + Debug> FrozenModelArguments<S>
where
    <S::Task as TrainingTask>::Evaluation: Account,
{
    pub fn run(&self) -> anyhow::Result<()> {
        let mut given = self.common.fields();
        given.extend(self.frozen.fields());
        given.extend(self.settings.fields());
        if let Some(path) = &self.sample_prompts {
            given.insert("sample_prompts".into(), read_prompts(path)?.into());
        }
        self.run.run_with::<S>(given, |loading| self.load(loading))
    }

    fn load(&self, loading: &Loading<'_, S>) -> anyhow::Result<FrozenModelData> {
        let Loading { data, settings, interrupt, quiet, .. } = *loading;
        let pictures = settings.pictures(&data.data)?;
        let fetching = Fetching { interrupt, quiet };
        let source = self.offline.for_training(DTypeChoice::Auto, &fetching);
        let model = match &settings.frozen().model {
            Some(path) => source.open(path, self.config.clone(), Purpose::Model)?,
            None => Model::Embedded,
        };
        Ok(FrozenModelData::read(pictures, data.resize(), settings.frozen(), &model)?)
    }
}
