//! `tweedie model`.

use super::failure::wrong_usage;
use super::flags::in_text;
use super::print;
use clap::{Subcommand, builder::PossibleValuesParser};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tweedie::DType;
use tweedie::checkpoints::ModelFiles;
use tweedie::families::{convert_to_file, convert_to_folder};
use tweedie::files::Existing;
use tweedie_pipelines::{Model, ModelInfo, PredictionDoubt};

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Show a model's family, components, parameters and number formats, from its headers alone.
    Info {
        /// A folder in diffusers layout, one checkpoint file, or owner/name in the hub's cache [default: the embedded model]
        #[arg(value_name = "MODEL")]
        model: Option<PathBuf>,

        /// With a checkpoint file: the folder of its configurations
        #[arg(long, value_name = "DIR", requires = "model")]
        config: Option<PathBuf>,

        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write a model in another form: to a name that ends in .safetensors as one file, else as a folder in diffusers layout.
    Convert {
        /// A folder in diffusers layout, one checkpoint file, or owner/name in the hub's cache
        #[arg(value_name = "MODEL")]
        model: PathBuf,

        /// What to write
        #[arg(value_name = "OUTPUT")]
        output: PathBuf,

        /// With a checkpoint file: the folder of its configurations
        #[arg(long, value_name = "DIR")]
        config: Option<PathBuf>,

        /// Number format of the weights: f32, f16 or bf16 [default: as they are stored]
        #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(["f32", "f16", "bf16"]))]
        dtype: Option<String>,

        /// Replace what is there
        #[arg(long)]
        force: bool,
    },

    #[cfg(feature = "hub")]
    #[command(flatten)]
    Cached(super::cached::CachedCommand),
}

impl ModelCommand {
    pub fn run(&self) -> anyhow::Result<()> {
        let (model, config, json) = match self {
            Self::Info { model, config, json } => (model, config, *json),
            Self::Convert { model, output, config, dtype, force } => {
                let files = model_at(Some(model), config.as_ref())?.files()?;
                return convert(&files, output, dtype.as_deref(), *force);
            }
            #[cfg(feature = "hub")]
            Self::Cached(command) => return command.run(),
        };
        let info = ModelInfo::read(&model_at(model.as_ref(), config.as_ref())?)?;
        if json {
            return print::result(&serde_json::to_string_pretty(&as_json(&info))?);
        }
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let doubt = match info.prediction_doubt {
            Some(PredictionDoubt::Guessed(_)) => {
                " (a guess, as the file does not say; --prediction-type overrides it)".to_owned()
            }
            Some(PredictionDoubt::Conflict(conflict)) => format!(" ({})", in_text(&conflict)),
            None => String::new(),
        };
        let mut lines = vec![
            format!("model       {}", info.name),
            format!("family      {}", info.family),
            format!("pipeline    {}", or_dash(info.pipeline)),
            format!("scheduler   {}", or_dash(info.scheduler)),
            format!("predicts    {}{doubt}", or_dash(info.prediction)),
            format!("size        {}", or_dash(info.size.map(|(width, height)| format!("{width}x{height}")))),
            String::new(),
            format!("{:16} {:24} {:>14}  {:10} files", "component", "class", "parameters", "types"),
        ];
        let total = info.components.iter().map(|component| component.parameters).sum();
        for component in info.components {
            lines.push(format!(
                "{:16} {:24} {:>14}  {:10} {}",
                component.name,
                or_dash(component.class_name),
                grouped(component.parameters),
                component.dtypes.join(","),
                component.files.join(", ")
            ));
        }
        lines.push(format!("{:16} {:24} {:>14}", "total", "", grouped(total)));
        if !info.words.is_empty() {
            lines.extend([String::new(), format!("knows {} words, and no others:", info.words.len())]);
            lines.extend(wrapped(&info.words));
        }
        print::lines(lines)
    }
}

/// Words side by side in lines.
fn wrapped(words: &[String]) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in words {
        if lines.last().is_some_and(|line| !line.is_empty() && line.len() + word.len() >= WIDTH) {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            *line += if line.is_empty() { "" } else { " " };
            *line += word;
        }
    }
    lines
}

/// Letters of a line of words.
const WIDTH: usize = 100;

fn as_json(info: &ModelInfo) -> Value {
    let components = info.components.iter().map(|component| {
        json!({
            "name": component.name,
            "class_name": component.class_name,
            "parameters": component.parameters,
            "dtypes": component.dtypes,
            "files": component.files,
        })
    });
    json!({
        "model": info.name,
        "family": info.family,
        "pipeline": info.pipeline,
        "scheduler": info.scheduler,
        "prediction": info.prediction,
        "prediction_is_guessed": matches!(info.prediction_doubt, Some(PredictionDoubt::Guessed(_))),
        "width": info.size.map(|(width, _)| width),
        "height": info.size.map(|(_, height)| height),
        "components": components.collect::<Vec<_>>(),
        "words": info.words,
    })
}

fn convert(files: &ModelFiles, output: &Path, dtype: Option<&str>, force: bool) -> anyhow::Result<()> {
    let ending = output.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
    if let Some(ending @ ("ckpt" | "pt" | "pth" | "bin")) = ending.as_deref() {
        wrong_usage!(
            "the output is {}; pickles (.{ending}) are not written, give a name that ends in .safetensors",
            output.display()
        );
    }
    let dtype = dtype.map(|dtype| match dtype {
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        _ => DType::F32,
    });
    let existing = if force { Existing::GivesWay } else { Existing::Stays };
    match ending.as_deref() {
        Some("safetensors") => convert_to_file(files, output, dtype, existing)?,
        _ => convert_to_folder(files, output, dtype, existing)?,
    }
    print::remark(&format!("saved {}", output.display()));
    Ok(())
}

fn model_at(path: Option<&PathBuf>, config: Option<&PathBuf>) -> anyhow::Result<Model> {
    let Some(path) = path else { return Ok(Model::Embedded) };
    #[cfg(feature = "hub")]
    if let Some(model) = super::cached::in_cache(path)? {
        return Ok(model);
    }
    let model = Model::at(path.clone(), config.cloned())?;
    super::source::tell_if_unfinished(path, &model);
    Ok(model)
}

/// Digits in groups of three.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}
