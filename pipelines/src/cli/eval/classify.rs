//! `tweedie eval classify`.

use crate::cli::failure::wrong_usage;
use crate::cli::print;
use anyhow::bail;
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use tweedie::Error;
use tweedie::training::data::{FolderOptions, ImageSet, read_folder};
use tweedie::training::tasks::{Judgement, judge_at};
use tweedie_pipelines::{PixelClass, open_classifier};

#[derive(Debug, Args)]
pub struct ClassifyArguments {
    /// The folder of a model from `tweedie train classifier`
    #[arg(long, value_name = "DIR")]
    classifier: PathBuf,

    /// A folder of pictures, with their classes as sub-folders or in a metadata.jsonl, or in --classes
    #[arg(long, value_name = "DIR")]
    images: PathBuf,

    /// For pictures without labels, in the order of their names: the classes asked for, by numbers or names, repeated as often
    /// as need be
    #[arg(long, value_name = "C,C,...", value_delimiter = ',')]
    classes: Option<Vec<PixelClass>>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl ClassifyArguments {
    pub fn run(&self) -> anyhow::Result<()> {
        let network = open_classifier(&self.classifier)?;
        let config = network.config();
        let options = FolderOptions { resize: None, channels: Some(config.in_channels) };
        let set = labelled(&self.images, options, self.classes.as_deref(), &config.class_names)?;
        let judgement = judge_at(&network, &set, None, 0)?;
        print::result(&if self.json { as_json(&judgement) } else { as_text(&judgement, &config.class_names) })
    }
}

/// Pictures with the classifier's labels.
fn labelled(
    folder: &Path,
    options: FolderOptions,
    classes: Option<&[PixelClass]>,
    names: &[String],
) -> anyhow::Result<ImageSet> {
    let set = read_folder(folder, options)?;
    let labels: Vec<u32> = match (classes, set.labels()) {
        (Some(classes), _) => {
            let numbers = classes.iter().map(|class| class.among(names.len(), names)).collect::<Result<Vec<_>, _>>()?;
            numbers.into_iter().cycle().take(set.len()).collect()
        }
        (None, Some(labels)) => {
            let known = |name: &String| names.iter().position(|known| known == name).map(|label| label as u32);
            let labels = labels.iter().map(|&label| known(&set.classes()[label as usize]));
            match labels.collect::<Option<Vec<_>>>() {
                Some(labels) => labels,
                None => bail!(Error::invalid(
                    "the classes of the pictures",
                    set.classes().join(", "),
                    format!("the classifier knows {}", names.join(", ")),
                )),
            }
        }
        (None, None) => wrong_usage!("the pictures of {} have no labels; give --classes C,C,...", folder.display()),
    };
    Ok(set.with_labels(labels, names.to_vec())?)
}

fn as_json(judgement: &Judgement) -> String {
    let (correct, total) = (judgement.correct(), judgement.total());
    json!({"correct": correct, "total": total, "accuracy": judgement.accuracy(), "confusion": judgement.confusion})
        .to_string()
}

/// The share, and what was taken for something else.
fn as_text(judgement: &Judgement, names: &[String]) -> String {
    let share = 100.0 * judgement.accuracy();
    let mut lines = vec![format!("{} of {} right ({share:.2} %)", judgement.correct(), judgement.total())];
    for (asked, row) in judgement.confusion.iter().enumerate() {
        for (found, &count) in row.iter().enumerate().filter(|&(found, &count)| found != asked && count > 0) {
            lines.push(format!("{count} of class {} taken for {}", names[asked], names[found]));
        }
    }
    lines.join("\n")
}
