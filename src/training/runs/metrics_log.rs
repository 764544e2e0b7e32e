//! `metrics.jsonl`: a line of JSON for every step.

use super::run::{HELD_OUT, SINGLE, VALIDATION};
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

    /// Adds what a line of the log says of a step's losses of a kind, [`SINGLE`] or [`HELD_OUT`].
    pub(super) fn add_all(curves: &mut Vec<Self>, kind: &str, step: u64, loss: &Value) {
        let number = |loss: &Value| loss.as_f64().unwrap_or(f64::NAN);
        match loss {
            Value::Object(losses) => losses.iter().for_each(|(name, loss)| {
                let name = if kind == SINGLE { name.clone() } else { format!("{name}, {kind}") };
                Self::add(curves, &name, step, number(loss));
            }),
            loss => Self::add(curves, kind, step, number(loss)),
        }
    }

    /// The mean of its last `count` losses, or of all if there are not so many; `None` if there is none.
    pub fn mean_of_last(&self, count: usize) -> Option<f64> {
        let last = &self.points[self.points.len().saturating_sub(count)..];
        (!last.is_empty()).then(|| last.iter().map(|(_, loss)| loss).sum::<f64>() / last.len() as f64)
    }
}

/// A log that was there.
#[derive(Debug)]
pub struct OpenedLog {
    /// For more lines.
    pub log: MetricsLog,
    /// The losses so far.
    pub curves: Vec<LossCurve>,
    /// What cannot be read of it, if anything.
    pub warning: Option<String>,
}

/// A run's log, open for more lines.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens or creates a log and cuts off every line after step `keep`: what a killed run did beyond its last
    /// checkpoint is done again. A line before that which cannot be read stays as it is.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, keep: u64) -> Result<OpenedLog> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path).map_err(Error::io("open", path))?;
        let (mut curves, mut unreadable, mut beyond) = (Vec::new(), Vec::new(), Vec::new());
        // Of the bytes read, those that are kept; and the last step among these.
        let (mut reader, mut read, mut end, mut last) = (BufReader::new(&file), 0, 0, 0);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            read += reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))? as u64;
            // A line that was not finished ends the log.
            if !line.ends_with(b"\n") {
                break;
            }
            let value = serde_json::from_slice::<Value>(&line).unwrap_or_default();
            match value["step"].as_u64() {
                Some(step) if step > last && step <= keep => {
                    LossCurve::add_all(&mut curves, SINGLE, step, &value["loss"]);
                    if !value[VALIDATION].is_null() {
                        LossCurve::add_all(&mut curves, HELD_OUT, step, &value[VALIDATION]);
                    }
                    last = step;
                    // What stands before a line of such a step is not of a later one, whatever it says.
                    unreadable.append(&mut beyond);
                }
                Some(step) if step <= last => unreadable.push(number),
                // It has the place of the next step.
                None if last < keep => {
                    unreadable.push(number);
                    last += 1;
                }
                _ => {
                    beyond.push(number);
                    continue;
                }
            }
            end = read;
        }
        file.set_len(end).map_err(Error::io("shorten", path))?;
        let warning = (!unreadable.is_empty()).then(|| {
            let lines: Vec<String> = unreadable.iter().map(usize::to_string).collect();
            format!("in {} line {} cannot be read and stays as it is", path.display(), lines.join(", "))
        });
        Ok(OpenedLog { log: Self { path: path.to_path_buf(), file }, curves, warning })
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
    use crate::files::replace_file;
    use serde_json::json;

    #[test]
    fn lines_beyond_the_checkpoint_and_torn_ones_go() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let path = folder.path().join("metrics.jsonl");
        let points = |curves: &[LossCurve]| curves.first().map(|curve| curve.points.clone()).unwrap_or_default();
        let OpenedLog { mut log, curves, .. } = MetricsLog::open(&path, 0)?;
        assert!(curves.is_empty());
        for step in 1..=5 {
            log.append(&json!({"step": step, "loss": step as f64 / 2.0}))?;
        }
        log.file.write_all(b"{\"step\": 6, \"lo").map_err(Error::io("write", &path))?;
        let OpenedLog { curves, warning, .. } = MetricsLog::open(&path, 100)?;
        assert_eq!((points(&curves).len(), curves[0].mean_of_last(2)), (5, Some(2.25)));
        assert_eq!(warning, None);
        let OpenedLog { mut log, curves, .. } = MetricsLog::open(&path, 3)?;
        assert_eq!(points(&curves), [(1.0, 0.5), (2.0, 1.0), (3.0, 1.5)]);
        log.append(&json!({"step": 4, "loss": 9.0}))?;
        assert_eq!(points(&MetricsLog::open(&path, 4)?.curves).last(), Some(&(4.0, 9.0)));
        Ok(())
    }

    #[test]
    fn a_line_that_cannot_be_read_does_not_take_others_with_it() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let path = folder.path().join("metrics.jsonl");
        let lines: Vec<String> = (1..=9).map(|step| format!("{}\n", json!({"step": step, "loss": 1.0}))).collect();
        for bad in ["{\"step\": 5, \"lo\x01ss\": 1}\n", "\n", "[]\n", "{\"step\": 0}\n", "{\"step\": 99}\n"] {
            // The last line kept may as well be a later one that is to go, if it says so.
            let last = if bad.contains("99") { 4 } else { 5 };
            for (number, keep) in [(5, 9), (5, 6), (last, 5), (1, 9)] {
                let mut damaged = lines.clone();
                damaged[number - 1] = bad.into();
                replace_file(&path, damaged.concat().as_bytes())?;
                let OpenedLog { curves, warning, .. } = MetricsLog::open(&path, keep)?;
                let kept = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
                assert_eq!(kept, damaged[..keep as usize].concat(), "{bad:?} {number} {keep}");
                assert!(warning.is_some_and(|warning| warning.contains(&format!("line {number} "))));
                assert_eq!(curves.first().map_or(0, |curve| curve.points.len()), keep as usize - 1);
            }
        }
        Ok(())
    }

    #[test]
    fn losses_of_held_out_data_have_curves_of_their_own() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0)?.log;
        log.append(&json!({"step": 1, "loss": 1.0}))?;
        log.append(&json!({"step": 2, "loss": 2.0, "validation_loss": 4.0}))?;
        log.append(&json!({"step": 3, "loss": {"a": 3.0}, "validation_loss": {"a": 5.0}}))?;
        let curves = MetricsLog::open(&path, 3)?.curves;
        let names: Vec<_> = curves.iter().map(|curve| (curve.name.as_str(), curve.points.len())).collect();
        assert_eq!(names, [("loss", 2), ("held out", 1), ("a", 1), ("a, held out", 1)]);
        assert_eq!((&curves[1].points[..], &curves[3].points[..]), (&[(2.0, 4.0)][..], &[(3.0, 5.0)][..]));
        Ok(())
    }

    #[test]
    fn losses_of_several_names_have_a_curve_each() -> Result<()> {
        let folder = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0)?.log;
        log.append(&json!({"step": 1, "loss": {"b": 1.0}}))?;
        log.append(&json!({"step": 2, "loss": {"a": 2.0, "b": 3.0}}))?;
        let curves = MetricsLog::open(&path, 2)?.curves;
        let curve = |name: &str, points: &[(f64, f64)]| LossCurve { name: name.into(), points: points.into() };
        assert_eq!(curves, [curve("b", &[(1.0, 1.0), (2.0, 3.0)]), curve("a", &[(2.0, 2.0)])]);
        Ok(())
    }
}
