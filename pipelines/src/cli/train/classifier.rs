//! `tweedie train classifier`.

use super::run::{Account, Next, RunArguments};
use crate::cli::data::DownloadArguments;
use crate::cli::given::Given;
use clap::Args;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use tweedie::training::data::Split;
use tweedie::training::tasks::NoiseAccuracy;
use tweedie_pipelines::{ClassifierTrainingSettings, CommonSettings, SharedSettings, TrainingData};

#[derive(Debug, Args)]
pub struct ClassifierArguments {
    #[command(flatten)]
    run: RunArguments,

    #[command(flatten)]
    download: DownloadArguments,

    #[command(flatten)]
    common: Given<SharedSettings<CommonSettings, ClassifierTrainingSettings>>,

    #[command(flatten)]
    settings: Given<ClassifierTrainingSettings>,
}

impl ClassifierArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let mut given = self.common.fields();
        given.extend(self.settings.fields());
        self.run.run::<ClassifierTrainingSettings>(given, |data| {
            self.download.fetch(data, self.run.quiet)?;
            Ok(TrainingData { train: Arc::new(data.read(Split::Train)?), test: data.read_test()? })
        })
    }
}

impl Next for ClassifierTrainingSettings {
    fn next(&self, run: &str, _: &str) -> Vec<String> {
        let mut commands = vec![format!("tweedie eval classify --classifier {run}/model --images DIR")];
        if self.noisy {
            commands.push(format!("tweedie sample --checkpoint MODEL --classifier {run} --classes 0,1"));
        }
        commands
    }
}

/// How the test set is judged, at each timestep.
impl Account for Vec<NoiseAccuracy> {
    fn fields(&self) -> Map<String, Value> {
        let test = self.iter();
        let test = test.map(|a| json!({"timestep": a.timestep, "correct": a.correct, "total": a.total}));
        Map::from_iter([("test".to_owned(), test.collect())])
    }

    fn lines(&self) -> Vec<String> {
        let line = |accuracy: &NoiseAccuracy| {
            let at = accuracy.timestep.map_or(String::new(), |timestep| format!(" at timestep {timestep}"));
            let share = 100.0 * accuracy.correct as f64 / accuracy.total.max(1) as f64;
            format!("{} of {} right{at} ({share:.2} %)", accuracy.correct, accuracy.total)
        };
        self.iter().map(line).collect()
    }
}
