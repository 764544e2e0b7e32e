//! What is put on top of a model.

use super::failure::wrong_usage;
use super::given::Given;
use super::inputs;
use super::source::Source;
use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tweedie::images::Photo;
use tweedie_pipelines::{Adapters, ControlImage, EmbeddingChoice, Input, LoraChoice, Options, Purpose};

/// The options of every command that makes pictures from a text.
#[derive(Debug, Args)]
#[command(next_help_heading = "Adapters")]
pub struct AdapterOptions {
    /// Add a LoRA (also LoHa, LoKr, DoRA), its change times WEIGHT [default: 1]: a .safetensors file, a pickle (.pt,
    /// .bin, .ckpt), which is never run, a training run, or owner/name[/FILE] on the hub; repeat it for more
    #[arg(long, value_name = "FILE[:WEIGHT]", value_parser = lora)]
    lora: Vec<LoraChoice>,

    /// Add a textual inversion, TOKEN in prompts [default: diffusers' token, else the file's name], from
    /// a .safetensors file, a pickle (.pt, .bin), a training run, or owner/name[/FILE] on the hub; repeat it for more
    #[arg(long, value_name = "FILE[:TOKEN]", value_parser = embedding, hide_short_help = true)]
    embedding: Vec<EmbeddingChoice>,

    /// Steer the run by a picture and a ControlNet or T2I-Adapter (a folder, one file, or owner/name[/FILE] on the hub),
    /// what it adds times SCALE [default: 1]; repeat it for more. One file does not say that its ControlNet takes blue
    /// before red, or adds means over the picture, as those for shuffled pictures do: give such a one as a folder
    #[arg(long, value_name = "MODEL:IMAGE[:SCALE]", value_parser = control, hide_short_help = true)]
    control: Vec<Control>,

    #[command(flatten)]
    acting: Given<ControlImage>,
}

/// A control model with its picture.
#[derive(Debug, Clone, PartialEq)]
struct Control {
    model: PathBuf,
    image: PathBuf,
    scale: f64,
}

impl AdapterOptions {
    /// The adapters that they name, which are fetched first if need be.
    pub fn adapters(&self, source: &Source<'_>) -> anyhow::Result<Adapters> {
        let lora = |lora: &LoraChoice| Ok(LoraChoice { path: source.file(&lora.path, Purpose::Lora)?, ..lora.clone() });
        let embedding = |embedding: &EmbeddingChoice| {
            Ok(EmbeddingChoice { path: source.file(&embedding.path, Purpose::TextualInversion)?, ..embedding.clone() })
        };
        Ok(Adapters {
            loras: self.lora.iter().map(lora).collect::<anyhow::Result<_>>()?,
            embeddings: self.embedding.iter().map(embedding).collect::<anyhow::Result<_>>()?,
            controls: (self.control.iter().map(|control| source.open(&control.model, None, Purpose::Control)))
                .collect::<anyhow::Result<_>>()?,
        })
    }

    /// The files of the control models' pictures.
    pub fn control_paths(&self) -> impl Iterator<Item = &Path> {
        self.control.iter().map(|control| control.image.as_path())
    }

    /// What a picture says of them.
    pub fn control_inputs(&self) -> anyhow::Result<Vec<Input>> {
        self.control_paths().map(|path| inputs::input("control", path)).collect()
    }

    /// The pictures, with when and how strongly they act.
    pub fn control_images(&self) -> anyhow::Result<Vec<ControlImage>> {
        let fields = self.acting.fields();
        let count = self.control.len();
        let read = |(i, control): (usize, &Control)| {
            let mut image = ControlImage { scale: control.scale, ..ControlImage::new(Photo::read(&control.image)?) };
            let own = fields.iter().map(|(key, value)| Ok((key.clone(), of_control(key, value, i, count)?)));
            image.read(own.collect::<anyhow::Result<_>>()?)?;
            Ok(image)
        };
        self.control.iter().enumerate().map(read).collect()
    }
}

/// What an option says of control `i`: one value is for all controls, and several are for one each.
fn of_control(key: &str, value: &Value, i: usize, count: usize) -> anyhow::Result<Value> {
    match value.as_array().map(Vec::as_slice) {
        None => Ok(value.clone()),
        Some([one]) => Ok(one.clone()),
        Some(values) if values.len() == count => Ok(values[i].clone()),
        Some(values) => {
            let given = values.len();
            wrong_usage!("--control-{key} has {given} values for {count} controls; give one, or one for each")
        }
    }
}

fn control(text: &str) -> Result<Control, String> {
    let number = |text: &str| text.parse::<f64>().ok();
    let scaled = split_last(text).and_then(|(rest, scale)| Some((rest, number(scale)?)));
    let (rest, scale) = scaled.unwrap_or((text, 1.0));
    let (model, image) = split_last(rest).ok_or("give a model and its picture, with a colon between")?;
    // `C:\image.png` has a colon of its own.
    let (model, image) = match model.strip_suffix(|c: char| c.is_ascii_alphabetic()) {
        Some(before) if image.starts_with(['\\', '/']) && before.ends_with(':') => {
            (&before[..before.len() - 1], &rest[before.len()..])
        }
        _ => (model, image),
    };
    if model.is_empty() || image.is_empty() {
        return Err("give a model and its picture, with a colon between".into());
    }
    Ok(Control { model: model.into(), image: image.into(), scale })
}

fn lora(text: &str) -> Result<LoraChoice, String> {
    let (path, weight) = match split_last(text) {
        Some((path, weight)) => {
            let weight =
                weight.parse().map_err(|_| format!("{weight:?} is not a weight; give a number after the colon"))?;
            (path, weight)
        }
        None => (text, 1.0),
    };
    Ok(LoraChoice { path: PathBuf::from(path), weight })
}

fn embedding(text: &str) -> Result<EmbeddingChoice, String> {
    let (path, token) = split_last(text).map_or((text, None), |(path, token)| (path, Some(token)));
    if token.is_some_and(|token| token.trim().is_empty()) {
        return Err("there is no token after the colon".into());
    }
    Ok(EmbeddingChoice { path: PathBuf::from(path), token: token.map(Into::into) })
}

/// Splits `FILE:VALUE` at the last colon, unless the whole is a file's path or the colon is a Windows drive's.
fn split_last(text: &str) -> Option<(&str, &str)> {
    let (path, value) = text.rsplit_once(':')?;
    let drive = path.len() == 1 && value.starts_with(['\\', '/']);
    (!path.is_empty() && !drive && !Path::new(text).exists()).then_some((path, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_follows_the_last_colon() {
        let parsed = |text: &str| lora(text).map(|lora| (lora.path.display().to_string(), lora.weight));
        assert_eq!(parsed("a.safetensors"), Ok(("a.safetensors".into(), 1.0)));
        assert_eq!(parsed("a:b.safetensors:-0.5"), Ok(("a:b.safetensors".into(), -0.5)));
        assert_eq!(parsed("C:\\a.safetensors"), Ok(("C:\\a.safetensors".into(), 1.0)));
        assert_eq!(parsed("C:\\a.safetensors:2"), Ok(("C:\\a.safetensors".into(), 2.0)));
        let parsed_control =
            |text: &str| control(text).map(|c| (c.model.display().to_string(), c.image.display().to_string(), c.scale));
        assert_eq!(parsed_control("net:a.png"), Ok(("net".into(), "a.png".into(), 1.0)));
        assert_eq!(parsed_control("net:a.png:0.5"), Ok(("net".into(), "a.png".into(), 0.5)));
        assert_eq!(parsed_control("C:\\net:D:\\a.png:2"), Ok(("C:\\net".into(), "D:\\a.png".into(), 2.0)));
        assert!(parsed_control("net").is_err() && parsed_control("net:0.5").is_err());
        assert!(parsed("a.safetensors:half").is_err_and(|message| message.contains("half")));
    }
}
