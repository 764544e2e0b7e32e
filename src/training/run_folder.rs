//! The folder of a run: what it was asked for, what it has done, and at the end the model.

use super::durable_file::{STAGED, replace_file, replace_folder, write_synced};
use super::run_checkpoint::encode;
use super::{MetricsLog, RunCheckpoints};
use crate::images::{Picture, Plot, Series, encode_png};
use crate::{DType, Error, Result};
use candle_core::Tensor;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const LOCK: &str = ".lock";
const METRICS: &str = "metrics.jsonl";
/// Points of the loss curve at most; a point is the mean of the steps around it.
const CURVE_POINTS: usize = 200;

/// A run's folder, held by this process alone.
///
/// ```text
/// config.json      what was asked for
/// metrics.jsonl    a line for every step
/// loss.png         the loss curve
/// samples/         grids of samples
/// checkpoints/     what a run goes on from
/// model/           at the end: the model, in diffusers layout
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
        let folder = Self::hold(path)?;
        if let Some(name) = folder.first_entry()? {
            let fix = if name == CONFIG {
                "it holds a run already; go on with --resume, or choose another --output"
            } else {
                "it is not empty and holds no run; choose another --output"
            };
            return Err(Error::invalid("the output folder", path.display(), fix));
        }
        Ok(folder)
    }

    /// The run in a folder and its configuration, which is `None` if there is none yet.
    ///
    /// # Errors
    /// If the folder has other things in it, another process has it, or the configuration is damaged.
    pub fn resume(path: &Path) -> Result<(Self, Option<Value>)> {
        let folder = Self::hold(path)?;
        let config = path.join(CONFIG);
        if config.is_file() {
            let text = std::fs::read_to_string(&config).map_err(Error::io("read", &config))?;
            let value = serde_json::from_str(&text).map_err(|e| Error::malformed("JSON file", &config, e))?;
            return Ok((folder, Some(value)));
        }
        match folder.first_entry()? {
            None => Ok((folder, None)),
            Some(_) => {
                let fix = "it has no config.json, so there is no run to go on with; choose another --output";
                Err(Error::invalid("the output folder", path.display(), fix))
            }
        }
    }

    fn hold(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
        let name = path.join(LOCK);
        let lock = File::create(&name).map_err(Error::io("create", &name))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_path_buf(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let fix = "another process is training in it; wait for it, or choose another --output";
                Err(Error::invalid("the output folder", path.display(), fix))
            }
            Err(TryLockError::Error(error)) => Err(Error::io("lock", &name)(error)),
        }
    }

    /// Something in the folder that counts; `config.json` if it is there.
    fn first_entry(&self) -> Result<Option<String>> {
        let entries = std::fs::read_dir(&self.path).map_err(Error::io("read", &self.path))?;
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| name != LOCK && !name.ends_with(STAGED)).collect();
        names.sort_by_key(|name| name != CONFIG);
        Ok(names.into_iter().next())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its checkpoints.
    pub fn checkpoints(&self) -> RunCheckpoints {
        RunCheckpoints::new(&self.path.join("checkpoints"))
    }

    /// Writes down what was asked for.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_config(&self, config: &Value) -> Result<()> {
        replace_file(&self.path.join(CONFIG), format!("{config:#}\n").as_bytes())
    }

    /// The log, without what was done after step `keep`, and the losses in it.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn metrics(&self, keep: u64) -> Result<(MetricsLog, Vec<(f64, f64)>)> {
        MetricsLog::open(&self.path.join(METRICS), keep)
    }

    /// Saves a grid of samples; gives its path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_samples(&self, name: &str, grid: &Picture) -> Result<PathBuf> {
        let folder = self.path.join("samples");
        std::fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let path = folder.join(name);
        replace_file(&path, &encode_png(grid, &[])?)?;
        Ok(path)
    }

    /// Draws the loss curve from the losses of steps.
    ///
    /// # Errors
    /// If there is no loss, or it cannot be written.
    pub fn write_loss_curve(&self, losses: &[(f64, f64)]) -> Result<()> {
        let piece = losses.len().div_ceil(CURVE_POINTS).max(1);
        let mean = |points: &[(f64, f64)]| {
            let count = points.len() as f64;
            (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count)
        };
        let plot = Plot {
            title: format!("training loss, means of {piece} steps"),
            x_label: "step".into(),
            y_label: "loss".into(),
            logarithmic: (false, true),
            series: vec![Series::line("loss", losses.chunks(piece).map(mean).collect())],
        };
        replace_file(&self.path.join("loss.png"), &encode_png(&plot.draw()?, &[])?)
    }

    /// Where the finished model is.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Writes the finished model as a whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_model(&self, model: &PixelModel) -> Result<()> {
        replace_folder(&self.model(), |staged| model.write(staged))
    }
}

/// A pixel-space model in diffusers layout.
#[derive(Debug, Clone)]
pub struct PixelModel {
    /// `unet/config.json`.
    pub unet_config: Value,
    /// The network's weights.
    pub weights: BTreeMap<String, Tensor>,
    /// The type in which they are stored.
    pub dtype: DType,
    /// `scheduler/scheduler_config.json`, with its `_class_name`.
    pub scheduler_config: Value,
    /// `defaults.json`: what a request takes that says nothing else.
    pub defaults: Value,
}

impl PixelModel {
    fn write(&self, folder: &Path) -> Result<()> {
        let scheduler = &self.scheduler_config["_class_name"];
        let index = serde_json::json!({
            "_class_name": "DDPMPipeline",
            "_diffusers_version": "0.42.1",
            "scheduler": ["diffusers", scheduler],
            "unet": ["diffusers", "UNet2DModel"],
        });
        for part in ["unet", "scheduler"] {
            let part = folder.join(part);
            std::fs::create_dir_all(&part).map_err(Error::io("create", &part))?;
        }
        for (name, json) in [
            ("model_index.json", &index),
            ("defaults.json", &self.defaults),
            ("unet/config.json", &self.unet_config),
            ("scheduler/scheduler_config.json", &self.scheduler_config),
        ] {
            write_synced(&folder.join(name), format!("{json:#}\n").as_bytes())?;
        }
        let path = folder.join("unet/diffusion_pytorch_model.safetensors");
        let stored = self.weights.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(self.dtype)?)));
        write_synced(&path, &encode(stored.collect::<Result<_>>()?, &path)?)
    }
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
        assert!(message(RunFolder::create(&path)).contains("--resume"));
        assert_eq!(RunFolder::resume(&path)?.1, Some(json!({"seed": 1})));

        let other = root.path().join("other");
        std::fs::create_dir(&other)
            .and_then(|()| std::fs::write(other.join("letter"), ""))
            .map_err(Error::io("write", &other))?;
        assert!(message(RunFolder::create(&other)).contains("not empty"));
        assert!(message(RunFolder::resume(&other).map(|(run, _)| run)).contains("config.json"));
        assert_eq!(RunFolder::resume(&root.path().join("new"))?.1, None);
        Ok(())
    }
}
