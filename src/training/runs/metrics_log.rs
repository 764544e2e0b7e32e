//! `metrics.jsonl`: a line of JSON for every step.

use super::run::SINGLE;
use crate::{Error, Result};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// A loss over the steps that followed it.
#[derive(Debug, Clone, PartialEq)]
pub struct LossCurve {
    /// The loss's name.
    pub name: String,
    /// Steps, from 1, and the loss of each.
    pub points: Vec<(f64, f64)>,
}

impl LossCurve {
    /// Adds a step's loss to the curve of its name among `curves`.
    pub fn add(curves: &mut Vec<Self>, name: &str, step: u64, loss: f64) {
        let place = curves.iter().position(|curve| curve.name == name).unwrap_or_else(|| {
            curves.push(Self { name: name.into(), points: Vec::new() });
            curves.len() - 1
        });
        curves[place].points.push((step as f64, loss));
    }

    /// The mean of its last `count` losses, or of all if there are not so many; `None` if there is none.
    pub fn mean_of_last(&self, count: usize) -> Option<f64> {
        let last = &self.points[self.points.len().saturating_sub(count)..];
        (!last.is_empty()).then(|| last.iter().map(|(_, loss)| loss).sum::<f64>() / last.len() as f64)
    }
}

/// A run's log, open for more lines.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens or creates a log and cuts off every line after step `keep`: what a killed run did beyond its last
    /// checkpoint is done again. Gives the losses so far.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, keep: u64) -> Result<(Self, Vec<LossCurve>)> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path).map_err(Error::io("open", path))?;
        let (mut reader, mut end, mut curves) = (BufReader::new(&file), 0, Vec::new());
        let mut line = Vec::new();
        loop {
            line.clear();
            let count = reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))?;
            // A line that was not finished ends the log as well.
            let Ok(value) = serde_json::from_slice::<Value>(&line) else { break };
            let Some(step) = value["step"].as_u64().filter(|&step| step <= keep && line.ends_with(b"\n")) else {
                break;
            };
            end += count as u64;
            let number = |loss: &Value| loss.as_f64().unwrap_or(f64::NAN);
            match &value["loss"] {
                Value::Object(losses) => {
                    losses.iter().for_each(|(name, loss)| LossCurve::add(&mut curves, name, step, number(loss)));
                }
                loss => LossCurve::add(&mut curves, SINGLE, step, number(loss)),
            }
        }
        file.set_len(end).map_err(Error::io("shorten", path))?;
        Ok((Self { path: path.to_path_buf(), file }, curves))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn append(&mut self, metrics: &Value) -> Result<()> {
        self.file.write_all(format!("{metrics}\n").as_bytes()).map_err(Error::io("write", &self.path))
    }

    /// Waits until all lines are on the disk.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_beyond_the_checkpoint_and_torn_ones_go() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let path = folder.path().join("metrics.jsonl");
        let points = |curves: &[LossCurve]| curves.first().map(|curve| curve.points.clone()).unwrap_or_default();
        let (mut log, curves) = MetricsLog::open(&path, 0)?;
        assert!(curves.is_empty());
        for step in 1..=5 {
            log.append(&json!({"step": step, "loss": step as f64 / 2.0}))?;
        }
        log.file.write_all(b"{\"step\": 6, \"lo").map_err(Error::io("write", &path))?;
        let (_, curves) = MetricsLog::open(&path, 100)?;
        assert_eq!((points(&curves).len(), curves[0].mean_of_last(2)), (5, Some(2.25)));
        let (mut log, curves) = MetricsLog::open(&path, 3)?;
        assert_eq!(points(&curves), [(1.0, 0.5), (2.0, 1.0), (3.0, 1.5)]);
        log.append(&json!({"step": 4, "loss": 9.0}))?;
        assert_eq!(points(&MetricsLog::open(&path, 4)?.1).last(), Some(&(4.0, 9.0)));
        Ok(())
    }

    #[test]
    fn losses_of_several_names_have_a_curve_each() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let path = folder.path().join("metrics.jsonl");
        let (mut log, _) = MetricsLog::open(&path, 0)?;
        log.append(&json!({"step": 1, "loss": {"b": 1.0}}))?;
        log.append(&json!({"step": 2, "loss": {"a": 2.0, "b": 3.0}}))?;
        let curves = MetricsLog::open(&path, 2)?.1;
        let curve = |name: &str, points: &[(f64, f64)]| LossCurve { name: name.into(), points: points.into() };
        assert_eq!(curves, [curve("b", &[(1.0, 1.0), (2.0, 3.0)]), curve("a", &[(2.0, 2.0)])]);
        Ok(())
    }
}
