//! `tweedie eval clip`.

use super::prompt_samples::PromptSampleArguments;
use super::samples::{NOTHING_JUDGED, show_sampling};
use crate::cli::failure::{unless_stopped, wrong_usage};
use crate::cli::fetching::Fetching;
use crate::cli::interrupt::Interrupt;
use crate::cli::print;
use crate::cli::progress::Progress;
use anyhow::bail;
use clap::{ArgGroup, Args};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use tweedie::files::read_text;
use tweedie::images::Picture;
use tweedie::metrics::{Bootstrap, ClipModel, clip_score, clip_scores};
use tweedie::text::{Piece, parse_weights};
use tweedie::training::data::{Split, has_captions, picture_files, read_captioned};
use tweedie::{Error, Tensor};
use tweedie_pipelines::{ReusedSettings, SampleEvent, Samples};

/// Pictures that are looked at together.
const BATCH: usize = 16;

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("from").required(true))]
pub struct ClipArguments {
    /// A folder of pictures. What they should show is in a metadata.jsonl, or in a .txt file beside each; if there are none, in the
    /// pictures themselves, as this program and A1111 write it
    #[arg(value_name = "PICTURES", group = "from")]
    pictures: Option<PathBuf>,

    /// The folder of a CLIP model in transformers' form, such as openai/clip-vit-base-patch32
    #[arg(long, value_name = "DIR")]
    clip: PathBuf,

    /// A file with a text a line, for the pictures in the order of their names, in which numbers count as such
    #[arg(long, value_name = "FILE", requires = "pictures")]
    texts: Option<PathBuf>,

    #[command(flatten)]
    prompts: PromptSampleArguments,

    /// With prompts: how many pictures are made [default: one of each]
    #[arg(long, value_name = "N", conflicts_with = "pictures")]
    num_images: Option<usize>,

    /// With prompts: number of denoising steps [default: the model's, else 30]
    #[arg(long, value_name = "N", conflicts_with = "pictures")]
    steps: Option<usize>,

    /// How often the pictures are drawn again for the interval; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1000)]
    resamples: usize,

    /// Seed of those draws, and of the first picture that is made; the others follow it
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
        self.prompts.check()?;
        let progress = Progress::counting("picture", self.quiet);
        let scored = match &self.pictures {
            Some(folder) => self.of_files(folder, &progress, &interrupt)?,
            None => self.of_samples(&progress, &interrupt)?,
        };
        if scored.cut > 0 {
            let cut = scored.cut;
            print::warning(&format!("{cut} texts are longer than CLIP reads, and their ends counted for nothing"));
        }
        let figure = clip_score(&scored.scores, &Bootstrap { resamples: self.resamples, seed: self.seed })?;
        if self.json {
            let each = scored.said.into_iter().zip(&scored.scores).map(|(mut said, score)| {
                said["score"] = json!(score);
                said
            });
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
            scored.scores.len()
        ))
    }

    /// The scores of the pictures of a folder.
    fn of_files(&self, folder: &Path, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<Scored> {
        let pairs = self.pairs(folder)?;
        let mut scored = Scored::by(ClipModel::open(&self.clip)?);
        progress.stage("CLIP");
        let each = pairs.iter().enumerate().try_for_each(|(i, (path, text))| {
            scored.add(&Picture::read(path)?, text, json!({"file": path.to_string_lossy(), "text": text}))?;
            progress.steps(i + 1, pairs.len());
            if interrupt.flow().is_break() { Err(Error::Cancelled) } else { Ok(()) }
        });
        let ended = each.and_then(|()| scored.look());
        progress.finish();
        unless_stopped(ended, NOTHING_JUDGED)?;
        Ok(scored)
    }

    /// Those of pictures that are made of prompts.
    fn of_samples(&self, progress: &Progress, interrupt: &Interrupt) -> anyhow::Result<Scored> {
        let mut scored = Scored::by(ClipModel::open(&self.clip)?);
        let mut fields = Map::from_iter([("seed".to_owned(), self.seed.into())]);
        let given = [("num_images", self.num_images), ("steps", self.steps)];
        fields.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into()))));
        let samples = self.prompts.samples(fields, &Fetching { interrupt, quiet: self.quiet })?;
        progress.stage("samples");
        let made = samples.make(&mut |event| {
            if let SampleEvent::Sample { index, seed, picture } = &event {
                let text = samples.prompt(*index);
                scored.add(&picture.to_picture(), text, json!({"seed": seed, "text": text}))?;
            }
            show_sampling(&event, samples.count(), progress, interrupt)
        });
        let ended = made.and_then(|()| scored.look());
        progress.finish();
        unless_stopped(ended, NOTHING_JUDGED)?;
        Ok(scored)
    }

    /// Every picture with its text.
    fn pairs(&self, folder: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
        if self.texts.is_none() && has_captions(folder)? {
            let captioned = read_captioned(folder)?;
            let first = |picture: &tweedie::training::data::CaptionedPicture| {
                (picture.path.clone(), picture.captions.first().cloned().unwrap_or_default())
            };
            return Ok(captioned.pictures().iter().map(first).collect());
        }
        // `fox-10.png` comes after `fox-9.png`.
        let mut files = picture_files(folder, Split::Train)?;
        files.sort_by_cached_key(|path| words_and_numbers(&path.to_string_lossy()));
        let Some(list) = &self.texts else {
            return files.into_iter().map(|path| Ok((path.clone(), prompt_of(&path)?))).collect();
        };
        let text = read_text("list of texts", list)?;
        let texts: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if texts.len() != files.len() {
            wrong_usage!(
                "{} has {} texts, and there are {} pictures in {}; give a line for each",
                list.display(),
                texts.len(),
                files.len(),
                folder.display()
            );
        }
        Ok(files.into_iter().zip(texts).map(|(path, text)| (path, text.to_owned())).collect())
    }
}

/// Scores of pictures that come one after the other, a batch at a time.
struct Scored {
    model: ClipModel,
    /// Prepared pictures and their texts.
    waiting: Vec<(Tensor, String)>,
    scores: Vec<f64>,
    /// How many texts were too long.
    cut: usize,
    /// What is said of each picture beside its score.
    said: Vec<Value>,
}

impl Scored {
    /// None yet.
    fn by(model: ClipModel) -> Self {
        Self { model, waiting: Vec::new(), scores: Vec::new(), cut: 0, said: Vec::new() }
    }

    fn add(&mut self, picture: &Picture, text: &str, said: Value) -> tweedie::Result<()> {
        self.waiting.push((self.model.prepare(picture)?, text.to_owned()));
        self.said.push(said);
        if self.waiting.len() == BATCH { self.look() } else { Ok(()) }
    }

    /// Scores the pictures that wait.
    fn look(&mut self) -> tweedie::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let (prepared, texts): (Vec<_>, Vec<_>) = self.waiting.drain(..).unzip();
        let pictures = self.model.pictures(&Tensor::cat(&prepared, 0)?)?;
        let texts = self.model.texts(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.scores.extend(clip_scores(&pictures, &texts.directions)?);
        self.cut += texts.cut;
        Ok(())
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
