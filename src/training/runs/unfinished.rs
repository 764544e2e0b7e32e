//! The model that a checkpoint of a run is.

use super::RunFolder;
use super::checkpoint::{model_weights, step_of_folder};
use super::folder::Places;
use crate::checkpoints::{ComponentNames, FileLayout, ModelFiles, SingleFile, TensorFile, TensorNames};
use crate::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A checkpoint of a run as a model: what the finished model would be if the run had ended there.
///
/// Its weights are those of the checkpoint, as f32, averaged as the finished model's; the rest is what the run's folder has of the
/// model from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedRun {
    run: PathBuf,
    checkpoint: PathBuf,
    step: u64,
    steps: Option<u64>,
    rest: PathBuf,
}

impl UnfinishedRun {
    /// The newest checkpoint of the run in a folder, unless it has finished; or the checkpoint that is in a folder, of any run.
    /// `None` if the folder is another, that of a finished run included.
    ///
    /// # Errors
    /// If the run has no checkpoint yet, or is of a kind that has a model only at its end.
    pub fn at(path: &Path) -> Result<Option<Self>> {
        let whole = path.canonicalize().map_err(Error::io("read", path))?;
        let given = step_of_folder(&whole);
        let run = match given {
            Some(_) => whole.parent().and_then(Path::parent),
            None => Some(whole.as_path()),
        };
        let Some((run, places)) = run.and_then(|run| Some((run, Places::of(run)?))) else { return Ok(None) };
        if given.is_none() && !places.rest.is_dir() && places.model.is_dir() {
            return Ok(None);
        }
        let refused = |fix: String| Err(Error::unusable(ErrorKind::Model, "the training run", path.display(), fix));
        let found = match given {
            Some(step) => Some((step, whole.clone())),
            None => places.checkpoints.newest_written()?,
        };
        let Some((step, checkpoint)) = found else {
            return refused(
                "it has not finished and has no checkpoint yet; wait for the first, or stop the run with Ctrl-C, which saves one".into(),
            );
        };
        let rests = [places.rest, places.model];
        let Some(rest) = rests.into_iter().find(|rest| rest.join("model_index.json").is_file()) else {
            return refused(format!(
                "it has not finished, and what it trains can be used only then; go on with it with `resume`, or end it \
                 at its last checkpoint with `resume` and {step} for `steps`"
            ));
        };
        let steps = RunFolder::config(run)?.and_then(|config| config["settings"]["steps"].as_u64());
        Ok(Some(Self { run: run.to_path_buf(), checkpoint, step, steps, rest }))
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Steps of the whole run, as far as it says so.
    pub fn steps(&self) -> Option<u64> {
        self.steps
    }

    /// The run's folder.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// What pictures' settings call the model, from the run's name and the step.
    pub fn name(&self) -> String {
        let run = self.run.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy());
        format!("{run}-step-{}", self.step)
    }

    /// The file of its weights.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn weights(&self) -> Result<PathBuf> {
        Ok(self.find_weights()?.0)
    }

    fn find_weights(&self) -> Result<(PathBuf, Option<u64>)> {
        model_weights(&self.checkpoint, self.step)
            .map_err(|reason| Error::malformed(ErrorKind::Model, "checkpoint of a run", &self.checkpoint, reason))
    }

    /// Its files.
    ///
    /// # Errors
    /// If the checkpoint is damaged.
    pub fn files(&self) -> Result<ModelFiles> {
        let (weights, power) = self.find_weights()?;
        let number = power.map_or(0, |power| power as usize + 1);
        let Some(layout) = LAYOUTS.get(number) else {
            let fix = format!("the first {} can be used before the run has finished", LAYOUTS.len() - 1);
            return Err(Error::invalid("the number of the average by powers of time", number, fix));
        };
        Ok(ModelFiles::Single {
            configs: Arc::new(ModelFiles::Folder(self.rest.clone())),
            weights: SingleFile::open(&weights)?,
            layout,
            scheduler: Default::default(),
        })
    }
}

/// Where a checkpoint's file has the weights of components: under the names of the sets that they were trained in.
#[derive(Debug)]
struct SetsLayout {
    /// What all names begin with.
    prefix: &'static str,
}

/// The layout of a file of one average, and of those of a file of several.
static LAYOUTS: [SetsLayout; 9] = [
    SetsLayout { prefix: "" },
    SetsLayout { prefix: "0." },
    SetsLayout { prefix: "1." },
    SetsLayout { prefix: "2." },
    SetsLayout { prefix: "3." },
    SetsLayout { prefix: "4." },
    SetsLayout { prefix: "5." },
    SetsLayout { prefix: "6." },
    SetsLayout { prefix: "7." },
];

impl SetsLayout {
    fn names(&self, component: &str) -> TensorNames {
        TensorNames::plain(&format!("{}{component}.", self.prefix))
    }
}

impl FileLayout for SetsLayout {
    fn component(&self, _: &TensorFile, component: &str, _: &ModelFiles) -> Result<ComponentNames> {
        Ok(self.names(component).into())
    }

    fn holds(&self, file: &TensorFile, component: &str) -> bool {
        let prefix = self.names(component).prefix;
        file.tensors().iter().any(|tensor| tensor.name.starts_with(&prefix))
    }

    fn names_to_write(&self, component: &'static str, _: &ModelFiles) -> Result<TensorNames> {
        Ok(self.names(component))
    }

    fn describe(&self, _: &TensorFile) -> Option<String> {
        None
    }
}
