//! `metrics.jsonl`: a line of JSON for every step.

use crate::{Error, Result};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// A run's log, open for more lines.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens or creates a log and cuts off every line after step `keep`: what a killed run did beyond its last
    /// checkpoint is done again. Gives the steps' losses so far.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, keep: u64) -> Result<(Self, Vec<(f64, f64)>)> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path).map_err(Error::io("open", path))?;
        let (mut reader, mut end, mut losses) = (BufReader::new(&file), 0, Vec::new());
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
            losses.push((step as f64, value["loss"].as_f64().unwrap_or(f64::NAN)));
        }
        file.set_len(end).map_err(Error::io("shorten", path))?;
        Ok((Self { path: path.to_path_buf(), file }, losses))
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
        let (mut log, losses) = MetricsLog::open(&path, 0)?;
        assert!(losses.is_empty());
        for step in 1..=5 {
            log.append(&json!({"step": step, "loss": step as f64 / 2.0}))?;
        }
        log.file.write_all(b"{\"step\": 6, \"lo").map_err(Error::io("write", &path))?;
        let (_, losses) = MetricsLog::open(&path, 100)?;
        assert_eq!(losses.len(), 5);
        let (mut log, losses) = MetricsLog::open(&path, 3)?;
        assert_eq!(losses, [(1.0, 0.5), (2.0, 1.0), (3.0, 1.5)]);
        log.append(&json!({"step": 4, "loss": 9.0}))?;
        assert_eq!(MetricsLog::open(&path, 4)?.1.last(), Some(&(4.0, 9.0)));
        Ok(())
    }
}
