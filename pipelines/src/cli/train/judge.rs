//! `tweedie train judge`.

use super::run::{Account, Loading, Next, RunArguments};
use crate::cli::fetching::Fetching;
use crate::cli::given::Given;
use crate::cli::source::OfflineOption;
use clap::Args;
use serde_json::{Map, Value};
use std::path::PathBuf;
use tweedie::training::tasks::{JudgeAccuracy, Measure, Score, Share};
use tweedie_pipelines::{
    CommonSettings, DTypeChoice, JudgeTrainingData, JudgeTrainingSettings, Purpose, SharedSettings,
};

#[derive(Debug, Args)]
pub struct JudgeArguments {
    #[command(flatten)]
    run: RunArguments,

    /// A folder of such pictures that it is judged by in the end [default: the folder test in --data, if there is one]
    #[arg(long, value_name = "DIR")]
    test: Option<PathBuf>,

    #[command(flatten)]
    offline: OfflineOption,

    #[command(flatten)]
    common: Given<SharedSettings<CommonSettings, JudgeTrainingSettings>>,

    #[command(flatten)]
    settings: Given<JudgeTrainingSettings>,
}

impl JudgeArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut given = self.common.fields();
        given.extend(self.settings.fields());
        self.run.run_with::<JudgeTrainingSettings>(given, |loading| self.load(loading))
    }

    fn load(&self, loading: &Loading<'_, JudgeTrainingSettings>) -> anyhow::Result<JudgeTrainingData> {
        let Loading { data, settings, interrupt, quiet, .. } = *loading;
        let fetching = Fetching { interrupt, quiet };
        let source = self.offline.for_training(DTypeChoice::F32, &fetching);
        let vae = settings.vae.as_ref().map(|path| source.open(path, None, Purpose::Autoencoder)).transpose()?;
        Ok(JudgeTrainingData::read(&data.data, self.test.as_deref(), data.resize(), settings, vae.as_ref())?)
    }
}

impl Next for JudgeTrainingSettings {
    fn next(&self, run: &str, _: &str) -> Vec<String> {
        vec![format!("tweedie eval prompts --model MODEL --prompts FILE --judge {run}/model")]
    }
}

/// How often the judge is right about pictures that it was not trained on.
impl Account for Option<JudgeAccuracy> {
    fn fields(&self) -> Map<String, Value> {
        let accuracy = self.as_ref().map_or(Value::Null, JudgeAccuracy::fields);
        Map::from_iter([("accuracy".to_owned(), accuracy)])
    }

    fn lines(&self) -> Vec<String> {
        let Some(accuracy) = self else { return Vec::new() };
        let line = |name: &str, score: &Score| format!("{name}: {}", shares(score));
        let decoded = accuracy.decoded.as_ref().map(|score| line("through the autoencoder", score));
        [line("held-out pictures", &accuracy.raw)].into_iter().chain(decoded).collect()
    }
}

fn shares(score: &Score) -> String {
    let arose = Measure::ALL.into_iter().map(|measure| (measure, score.share(measure))).filter(|(_, s)| s.total > 0);
    let text = |(measure, share): (Measure, Share)| {
        let name = measure.name().replace('_', " ");
        format!("{name} {:.1} % of {}", 100.0 * share.accuracy(), share.total)
    };
    arose.map(text).collect::<Vec<_>>().join(", ")
}
