//! `tweedie eval clip`.

use super::samples::NOTHING_JUDGED;
use crate::cli::failure::{unless_stopped, wrong_usage};
use crate::cli::interrupt::Interrupt;
use crate::cli::print;
use crate::cli::progress::Progress;
use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tweedie::images::Picture;
use tweedie::metrics::{Bootstrap, ClipModel, clip_score, clip_scores};
use tweedie::text::{Piece, parse_weights};
use tweedie::training::data::{Split, has_captions, picture_files, read_captioned};
use tweedie::{Error, Tensor};
use tweedie_pipelines::ReusedSettings;

/// Pictures that are looked at together.
const BATCH: usize = 16;

#[derive(Debug, Args)]
pub struct ClipArguments {
    /// A folder of pictures. What they should show is in a metadata.jsonl, or in a .txt file beside each; if there are none, in the
    /// pictures themselves, as this program and A1111 write it
    #[arg(value_name = "PICTURES")]
    pictures: PathBuf,

    /// The folder of a CLIP model in transformers' form, such as openai/clip-vit-base-patch32
    #[arg(long, value_name = "DIR")]
    clip: PathBuf,

    /// A file with a text a line, for the pictures in the order of their names, in which numbers count as such
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,

    /// How often the pictures are drawn again for the interval; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,

    /// Seed of those draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Print one JSON object, with every picture's score
    #[arg(long)]
    json: bool,

    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
}

impl ClipArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let interrupt = Interrupt::listen()?;
        let pairs = self.pairs()?;
        let progress = Progress::counting("picture", self.quiet);
        progress.stage("CLIP");
        let scored = self.scores(&pairs, &progress, &interrupt);
        progress.finish();
        let (scores, cut) = unless_stopped(scored, NOTHING_JUDGED)?;
        if cut > 0 {
            print::warning(&format!("{cut} texts are longer than CLIP reads, and their ends counted for nothing"));
        }
        let figure = clip_score(&scores, &Bootstrap { resamples: self.resamples, seed: self.seed })?;
        if self.json {
            let each = pairs
                .iter()
                .zip(&scores)
                .map(|((path, text), score)| json!({"file": path.to_string_lossy(), "text": text, "score": score}));
            let interval = figure.interval.map(|interval| json!([interval.low, interval.high]));
            let all =
                json!({"clip_score": figure.value, "interval": interval, "pictures": each.collect::<Vec<Value>>()});
            return print::result(&all.to_string());
        }
        let interval = figure.interval.map(|i| format!(" ({:.2} to {:.2} with 95 %)", i.low, i.high));
        print::result(&format!(
            "CLIP score {:.2}{} of {} pictures",
            figure.value,
            interval.unwrap_or_default(),
            pairs.len()
        ))
    }

    fn scores(
        &self,
        pairs: &[(PathBuf, String)],
        progress: &Progress,
        interrupt: &Interrupt,
    ) -> tweedie::Result<(Vec<f64>, usize)> {
        let model = ClipModel::open(&self.clip)?;
        let (mut scores, mut cut) = (Vec::with_capacity(pairs.len()), 0);
        for batch in pairs.chunks(BATCH) {
            let prepared = batch.iter().map(|(path, _)| model.prepare(&Picture::read(path)?));
            let pictures = model.pictures(&Tensor::cat(&prepared.collect::<tweedie::Result<Vec<_>>>()?, 0)?)?;
            let texts = model.texts(&batch.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>())?;
            scores.extend(clip_scores(&pictures, &texts.directions)?);
            cut += texts.cut;
            progress.steps(scores.len(), pairs.len());
            if interrupt.flow().is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok((scores, cut))
    }

    /// The pictures, `fox-10.png` after `fox-9.png`.
    fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = picture_files(&self.pictures, Split::Train)?;
        files.sort_by_cached_key(|path| words_and_numbers(&path.to_string_lossy()));
        Ok(files)
    }

    /// Every picture with its text.
    fn pairs(&self) -> anyhow::Result<Vec<(PathBuf, String)>> {
        if self.texts.is_none() && has_captions(&self.pictures)? {
            let captioned = read_captioned(&self.pictures)?;
            let first = |picture: &tweedie::training::data::CaptionedPicture| {
                (picture.path.clone(), picture.captions.first().cloned().unwrap_or_default())
            };
            return Ok(captioned.pictures().iter().map(first).collect());
        }
        let files = self.files()?;
        let Some(list) = &self.texts else {
            return files.into_iter().map(|path| Ok((path.clone(), prompt_of(&path)?))).collect();
        };
        let text = std::fs::read_to_string(list).map_err(Error::io("read", list))?;
        let texts: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if texts.len() != files.len() {
            wrong_usage!(
                "{} has {} texts, and there are {} pictures in {}; give a line for each",
                list.display(),
                texts.len(),
                files.len(),
                self.pictures.display()
            );
        }
        Ok(files.into_iter().zip(texts).map(|(path, text)| (path, text.to_owned())).collect())
    }
}

/// A name as words, each with the number that follows it.
fn words_and_numbers(name: &str) -> Vec<(String, u64)> {
    let mut parts = vec![(String::new(), 0u64)];
    let mut in_number = false;
    for c in name.chars() {
        match (c.to_digit(10), parts.last_mut()) {
            (Some(digit), Some((_, number))) => *number = number.saturating_mul(10).saturating_add(digit.into()),
            (None, Some((word, _))) if !in_number => word.push(c),
            _ => parts.push((c.into(), 0)),
        }
        in_number = c.is_ascii_digit();
    }
    parts
}

/// What a picture says that it was made of, without the weights of words.
fn prompt_of(path: &Path) -> anyhow::Result<String> {
    let options = ReusedSettings::read(path).map(|settings| settings.options).unwrap_or_default();
    let text = |name: &str| options.get(name).and_then(Value::as_str);
    let prompt = match (text("prompt"), text("prompt_syntax")) {
        (Some(prompt), Some("weighted")) => {
            let words = parse_weights(prompt).into_iter().filter_map(|piece| match piece {
                Piece::Text(words, _) => Some(words),
                Piece::Break => None,
            });
            words.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
        }
        (prompt, _) => prompt.unwrap_or_default().trim().to_owned(),
    };
    match prompt.is_empty() {
        false => Ok(prompt),
        true => {
            // One that cannot be read says so itself.
            Picture::read(path)?;
            bail!(
                "{} does not say what it should show; give --texts with a line for each picture, or a metadata.jsonl",
                path.display()
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_comes_after_nine() {
        let mut names = ["fox-10.png", "fox-9.png", "a2/x", "fox.png", "a10/x"];
        names.sort_by_cached_key(|name| words_and_numbers(name));
        assert_eq!(names, ["a2/x", "a10/x", "fox-9.png", "fox-10.png", "fox.png"]);
    }
}
