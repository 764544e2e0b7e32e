//! The folder of a run: what it was asked for, what it has done, and at the end the model.

use super::metrics_log::OpenedLog;
use super::{LossCurve, MetricsLog, RunCheckpoints};
use crate::files::{remove_folder, replace_file, replace_folder, unfinished};
use crate::images::{Picture, Plot, Series, encode_png};
use crate::{Error, ErrorKind, Result};
use serde_json::Value;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const LOCK: &str = ".lock";
const CHECKPOINTS: &str = "checkpoints";
const SAMPLES: &str = "samples";
const METRICS: &str = "metrics.jsonl";
const MODEL: &str = "model";
const REST: &str = "unfinished";
/// Points of the loss curve at most; a point is the mean of the steps around it.
const CURVE_POINTS: usize = 200;

/// A run's folder, held by this process alone.
///
/// ```text
/// config.json      what was asked for
/// metrics.jsonl    a line for every step
/// loss.png         the losses' curves
/// samples/         what the networks can do after so many steps
/// checkpoints/     what a run goes on from
/// unfinished/      until then: what makes a checkpoint a model, besides its weights
/// model/           at the end: the model
/// ```
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The system gives the lock back when the process ends, however it ends.
    _lock: File,
}

impl RunFolder {
    /// Starts a run in a folder that is not there yet, or empty.
    ///
    /// # Errors
    /// If there is something in it, another process has it, or it cannot be made.
    pub fn create(path: &Path) -> Result<Self> {
        let check = || match first_entry(path)? {
            None => Ok(()),
            Some(name) => {
                let fix = if name == CONFIG {
                    "it holds a run already; `resume` goes on with it, or choose another `output`"
                } else {
                    "it is not empty and holds no run; choose another `output`"
                };
                Err(Error::unusable(ErrorKind::File, "the output folder", path.display(), fix))
            }
        };
        // Before anything is made in it; and once more when nobody else can.
        check()?;
        let folder = Self::hold(path)?;
        check()?;
        Ok(folder)
    }

    /// The run in a folder and its configuration, which is `None` if there is none yet.
    ///
    /// # Errors
    /// If the folder has other things in it, another process has it, or the configuration is damaged.
    pub fn resume(path: &Path) -> Result<(Self, Option<Value>)> {
        if first_entry(path)?.is_some_and(|name| name != CONFIG) {
            let fix = "it has no config.json, so there is no run to go on with; choose another `output`";
            return Err(Error::unusable(ErrorKind::File, "the output folder", path.display(), fix));
        }
        let folder = Self::hold(path)?;
        let config = Self::config(path)?;
        Ok((folder, config))
    }

    /// The configuration of the run in a folder, if there is one, whoever has the folder.
    ///
    /// # Errors
    /// If it cannot be read or is damaged.
    pub fn config(path: &Path) -> Result<Option<Value>> {
        let config = path.join(CONFIG);
        if !config.is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&config).map_err(Error::io("read", &config))?;
        serde_json::from_str(&text).map(Some).map_err(|e| Error::malformed(ErrorKind::File, "JSON file", &config, e))
    }

    fn hold(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let name = path.join(LOCK);
        refuse_links(path)?;
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false);
        let lock = options.open(&name).map_err(Error::io("create", &name))?;
        match lock.try_lock() {
            Ok(()) => {
                let folder = Self { path: path.to_path_buf(), _lock: lock };
                folder.remove_unfinished();
                Ok(folder)
            }
            Err(TryLockError::WouldBlock) => {
                let fix = "another process is training in it; wait for it, or choose another `output`";
                Err(Error::unusable(ErrorKind::File, "the output folder", path.display(), fix))
            }
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &name)(error)),
        }
    }

    /// Removes what a killed process of this run had not finished.
    fn remove_unfinished(&self) {
        for folder in [self.path.clone(), self.path.join(SAMPLES)] {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if unfinished(&entry.file_name().to_string_lossy()).is_some() {
                    // It is in nobody's way if this fails.
                    let _ = std::fs::remove_file(entry.path()).or_else(|_| std::fs::remove_dir_all(entry.path()));
                }
            }
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its checkpoints.
    pub fn checkpoints(&self) -> RunCheckpoints {
        RunCheckpoints::new(&self.path.join(CHECKPOINTS))
    }

    /// Writes down what was asked for.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self, config: &Value) -> Result<()> {
        replace_file(&self.path.join(CONFIG), format!("{config:#}\n").as_bytes())
    }

    /// Takes back a run that could not begin, so that its folder is free for another: removes the configuration, if there is nothing
    /// else.
    pub fn withdraw(self) {
        let is_own = |name: &str| [CONFIG, LOCK].contains(&name) || unfinished(name).is_some();
        let mut entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        if entries.all(|entry| is_own(&entry.file_name().to_string_lossy())) {
            // If this fails the run is one that can be gone on with.
            let _ = std::fs::remove_file(self.path.join(CONFIG));
        }
    }

    /// The log, without what was done after step `keep`.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn metrics(&self, keep: u64) -> Result<OpenedLog> {
        MetricsLog::open(&self.path.join(METRICS), keep)
    }

    /// Saves a grid of samples; gives its path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_samples(&self, name: &str, grid: &Picture) -> Result<PathBuf> {
        let folder = self.path.join(SAMPLES);
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let path = folder.join(name);
        replace_file(&path, &encode_png(grid, &[])?)?;
        Ok(path)
    }

    /// Draws the curves of losses.
    ///
    /// # Errors
    /// If there is no loss, or it cannot be written.
    pub fn write_loss_curves(&self, curves: &[LossCurve]) -> Result<()> {
        let piece = |curve: &LossCurve| curve.points.len().div_ceil(CURVE_POINTS).max(1);
        let longest = curves.iter().map(piece).max().unwrap_or(1);
        let mean = |points: &[(f64, f64)]| {
            let count = points.len() as f64;
            (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count)
        };
        let series =
            |curve: &LossCurve| Series::line(&*curve.name, curve.points.chunks(piece(curve)).map(mean).collect());
        // Such as a generator's.
        let negative = curves.iter().any(|curve| curve.points.iter().any(|point| point.1 < 0.0));
        let plot = Plot {
            title: match longest {
                1 => "loss".into(),
                steps => format!("loss, means of {steps} steps"),
            },
            x_label: "step".into(),
            y_label: "loss".into(),
            logarithmic: (false, !negative),
            series: curves.iter().map(series).collect(),
        };
        replace_file(&self.path.join("loss.png"), &encode_png(&plot.draw()?, &[])?)
    }

    /// Where the finished model is.
    pub fn model(&self) -> PathBuf {
        self.path.join(MODEL)
    }

    /// Writes what makes checkpoints models: `write` is given an empty folder. It is there until the model is.
    ///
    /// # Errors
    /// If it cannot be written, or whatever `write` reports.
    pub fn write_rest(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        replace_folder(&self.path.join(REST), write)
    }

    /// Writes the finished model as a whole: `write` is given an empty folder.
    ///
    /// # Errors
    /// If it cannot be written, or whatever `write` reports.
    pub fn write_model(&self, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        replace_folder(&self.model(), write)?;
        remove_folder(&self.path.join(REST))
    }
}

/// Where things are in the folder of a run, which other processes may have.
pub(super) struct Places {
    pub checkpoints: RunCheckpoints,
    /// What makes a checkpoint a model, until the run is finished.
    pub rest: PathBuf,
    pub model: PathBuf,
}

impl Places {
    /// Those of a run's folder; `None` if it is none.
    pub fn of(run: &Path) -> Option<Self> {
        let is_run = run.join(METRICS).is_file() && run.join(CONFIG).is_file();
        let checkpoints = RunCheckpoints::new(&run.join(CHECKPOINTS));
        is_run.then(|| Self { checkpoints, rest: run.join(REST), model: run.join(MODEL) })
    }
}

/// Something in a run's folder that counts, if that is there; `config.json` before all else.
fn first_entry(path: &Path) -> Result<Option<String>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(Error::io("read", path))?,
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name != LOCK && unfinished(name).is_none()).collect();
    names.sort_by_key(|name| name != CONFIG);
    Ok(names.into_iter().next())
}

/// A run writes into its folder and nowhere else, wherever the folder comes from.
fn refuse_links(path: &Path) -> Result<()> {
    for folder in [path.to_path_buf(), path.join(CHECKPOINTS), path.join(SAMPLES)] {
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        if let Some(link) = entries.map(|entry| entry.path()).find(|path| path.is_symlink()) {
            let fix =
                "it is a link, and a run writes into its own folder alone; put there what it leads to, or remove it";
            return Err(Error::unusable(ErrorKind::File, "a run's folder", link.display(), fix));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() -> Result<()> {
        let root = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let path = root.path().join("run");
        let message = |result: Result<RunFolder>| result.map_or_else(|e| e.to_string(), |_| String::new());
        let run = RunFolder::create(&path)?;
        assert!(message(RunFolder::create(&path)).contains("another process"));
        run.write_config(&json!({"seed": 1}))?;
        drop(run);
        assert!(message(RunFolder::create(&path)).contains("`resume`"));
        assert_eq!(RunFolder::resume(&path)?.1, Some(json!({"seed": 1})));

        let other = root.path().join("other");
        std::fs::create_dir(&other)
            .and_then(|()| std::fs::write(other.join("letter"), ""))
            .map_err(Error::io("write", &other))?;
        assert!(message(RunFolder::create(&other)).contains("not empty"));
        assert!(message(RunFolder::resume(&other).map(|(run, _)| run)).contains("config.json"));
        assert_eq!(RunFolder::resume(&root.path().join("new"))?.1, None);

        let log = path.join(METRICS);
        std::fs::write(&log, "").map_err(Error::io("write", &log))?;
        RunFolder::resume(&path)?.0.withdraw();
        assert!(message(RunFolder::create(&path)).contains("`resume`"), "something was done");
        std::fs::remove_file(&log).map_err(Error::io("remove", &log))?;
        RunFolder::resume(&path)?.0.withdraw();
        RunFolder::create(&path)?;
        Ok(())
    }
}
