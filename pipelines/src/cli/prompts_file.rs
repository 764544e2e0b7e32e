//! A file of prompts, of which a model that is loaded once makes all pictures.

use super::failure::WrongUsage;
use super::output::Output;
use anyhow::bail;
use serde_json::{Map, Value};
use std::path::Path;
use tweedie::files::read_text;
use tweedie::images::{TextChunk, picture_bytes, read_picture_text};
use tweedie_pipelines::{Record, Settings};

/// A line of it.
pub struct Line {
    /// Which, from 1.
    pub number: usize,
    /// What it says, as the options of a request.
    pub fields: Map<String, Value>,
}

/// The lines of a file that are not empty: a prompt each, or a JSON object with any options of a request.
pub fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    let text = read_text("file of prompts", path)?;
    let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())).filter(|(_, line)| !line.is_empty());
    let line = |(number, line): (usize, &str)| {
        let fields = if line.starts_with('{') {
            serde_json::from_str(line)
                .map_err(|error| WrongUsage(format!("{}: line {number} is no JSON object: {error}", path.display())))?
        } else {
            Map::from_iter([("prompt".to_owned(), Value::from(line))])
        };
        if !fields.contains_key("prompt") {
            return Err(WrongUsage(format!("{}: line {number} has no prompt", path.display())).into());
        }
        Ok(Line { number, fields })
    };
    let lines = lines.map(line).collect::<anyhow::Result<Vec<_>>>()?;
    if lines.is_empty() {
        return Err(WrongUsage(format!("{} has no prompts; write one a line", path.display())).into());
    }
    Ok(lines)
}

/// Whether all pictures of a run are there, as an earlier one has made them.
pub fn is_there(output: &Output, record: &Record, settings: &Settings) -> anyhow::Result<bool> {
    let mut there = false;
    let seeds: Vec<u64> = settings.seed_batches().concat();
    for (path, seed) in output.paths().iter().zip(seeds) {
        if !path.exists() {
            // A kill between two pictures of a line: it is drawn whole.
            return Ok(false);
        }
        let texts = read_picture_text(&picture_bytes(path)?, path)?;
        let found = texts.iter().find(|text| text.keyword == TextChunk::SETTINGS).map(|text| text.text.as_str());
        // What the weights' sums are is known only when they are hashed.
        let comparable = |json: &str| -> Option<Value> {
            let mut json: Map<String, Value> = serde_json::from_str(json).ok()?;
            json.remove("weights_sha256");
            Some(json.into())
        };
        if found.and_then(comparable) != comparable(&record.json(seed).to_string()) {
            bail!(
                "{} is there and was made otherwise; choose another folder for --output, or --force to replace it",
                path.display()
            );
        }
        there = true;
    }
    Ok(there)
}
