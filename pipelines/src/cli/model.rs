//! `tweedie model`.

use super::examples;
use super::failure::wrong_usage;
use super::flags::in_text;
use super::generate::size;
use super::print;
use clap::{Subcommand, builder::PossibleValuesParser};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tweedie::DType;
use tweedie::checkpoints::{BlockFormat, ElementType, ModelFiles};
use tweedie::families::{FileFormat, convert_to_file, convert_to_folder};
use tweedie::files::Existing;
use tweedie_pipelines::{
    Builder, ComponentInfo, DTypeChoice, DeviceChoice, Model, ModelInfo, PredictionDoubt, TaskKind, TextToImageRequest,
    Usage,
};

#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Show a model's family, components, parameters and number formats, from its headers alone.
    #[command(after_help = examples(&[r#"tweedie model info"#, r#"tweedie model info model.safetensors --json"#]))]
    Info {
        /// A folder in diffusers layout, one checkpoint file, or owner/name in the hub's cache [default: the embedded model]
        #[arg(value_name = "MODEL")]
        model: Option<PathBuf>,

        /// With a checkpoint file: the folder of its configurations
        #[arg(long, value_name = "DIR", requires = "model")]
        config: Option<PathBuf>,

        /// Also say the peak memory of a picture of this size, as txt2img makes it here, by number format
        #[arg(long, value_name = "WxH", value_parser = size)]
        memory: Option<(u32, u32)>,

        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write a model in another form: to a name that ends in .safetensors or .gguf as one file, else as a folder in diffusers
    /// layout.
    #[command(after_help = examples(&[r#"tweedie model convert model.safetensors model-folder"#, r#"tweedie model convert model-folder model.gguf --dtype q8_0"#]))]
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

        /// Number format of the weights: f32, f16 or bf16, and in a GGUF file, of the matrices, also q8_0, q6_k, q5_k, q5_1, q5_0,
        /// q4_k, q4_1, q4_0, q3_k or q2_k [default: as they are stored, blocks of a GGUF file as f32; f16 in a GGUF file]
        #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(number_formats()))]
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
    /// The model that is looked at, as it was named.
    fn named(&self) -> Option<std::path::Display<'_>> {
        match self {
            Self::Info { model, .. } => model.as_ref().map(|path| path.display()),
            _ => None,
        }
    }

    pub fn run(&self) -> anyhow::Result<()> {
        let (model, config, memory, json) = match self {
            Self::Info { model, config, memory, json } => (model, config, *memory, *json),
            Self::Convert { model, output, config, dtype, force } => {
                let files = model_at(Some(model), config.as_ref())?.files()?;
                return convert(&files, output, dtype.as_deref(), *force);
            }
            #[cfg(feature = "hub")]
            Self::Cached(command) => return command.run(),
        };
        let model = model_at(model.as_ref(), config.as_ref())?;
        let info = ModelInfo::read(&model)?;
        let memory = memory.and_then(|size| match PredictedMemory::of(&model, size) {
            Ok(memory) => Some(memory),
            Err(error) => {
                print::warning(&format!("what a picture takes is not known: {error:#}"));
                None
            }
        });
        if json {
            let mut fields = as_json(&info);
            if let Some(memory) = memory {
                fields["memory"] = memory.json();
            }
            return print::result(&serde_json::to_string_pretty(&fields)?);
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
            format!("{:16} {:24} {:>14} {:>10}  {:10} files", "component", "class", "parameters", "size", "types"),
        ];
        let total = |of: fn(&ComponentInfo) -> usize| info.components.iter().map(of).sum();
        let (parameters, bytes) = (total(|component| component.parameters), total(|component| component.bytes));
        for component in info.components {
            lines.push(format!(
                "{:16} {:24} {:>14} {:>10}  {:10} {}",
                component.name,
                or_dash(component.class_name),
                grouped(component.parameters),
                megabytes(component.bytes),
                component.dtypes.join(","),
                component.files.join(", ")
            ));
        }
        lines.push(format!("{:16} {:24} {:>14} {:>10}", "total", "", grouped(parameters), megabytes(bytes)));
        lines.extend(memory.iter().flat_map(PredictedMemory::lines));
        if !info.words.is_empty() {
            lines.extend([String::new(), format!("knows {} words, and no others:", info.words.len())]);
            lines.extend(wrapped(&info.words));
            if EXAMPLE.split(' ').all(|word| info.words.iter().any(|known| known == word)) {
                let model = self.named().map_or(String::new(), |model| format!(" --model {model}"));
                lines.extend([String::new(), format!("for example: tweedie txt2img{model} \"{EXAMPLE}\"")]);
            }
        }
        print::lines(lines)
    }
}

/// What a picture of some size takes in some number formats.
struct PredictedMemory {
    size: (u32, u32),
    bytes: Vec<(DTypeChoice, u64)>,
}

impl PredictedMemory {
    fn of(model: &Model, (width, height): (u32, u32)) -> anyhow::Result<Self> {
        let request =
            TextToImageRequest { width: Some(width as usize), height: Some(height as usize), ..Default::default() };
        let mut bytes = Vec::new();
        for dtype in [DTypeChoice::Auto, DTypeChoice::Q8, DTypeChoice::Q4] {
            let builder = Builder::default().model(model.clone()).dtype(dtype).device(DeviceChoice::Cpu);
            let builder = builder.usage(Usage::Once(TaskKind::TextToImage));
            let Some(most) = builder.predicted_memory(|model| model.settle(&request))? else {
                anyhow::bail!("this system does not tell, or a run of this model cannot be tried")
            };
            bytes.push((dtype, most));
        }
        Ok(Self { size: (width, height), bytes })
    }

    fn lines(&self) -> Vec<String> {
        let (width, height) = self.size;
        let each = self
            .bytes
            .iter()
            .map(|(dtype, bytes)| format!("{:16} {:>10}", dtype.to_string(), megabytes(*bytes as usize)));
        [String::new(), format!("peak memory of a picture of {width}x{height}, here and by --dtype:")]
            .into_iter()
            .chain(each)
            .collect()
    }

    fn json(&self) -> Value {
        let bytes: serde_json::Map<_, _> =
            self.bytes.iter().map(|(dtype, bytes)| (dtype.to_string(), (*bytes).into())).collect();
        json!({ "width": self.size.0, "height": self.size.1, "bytes": bytes })
    }
}

/// A prompt for models that know its words.
const EXAMPLE: &str = "a fox on a blue background";

/// Bytes in millions, as disks count them.
fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
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
            "bytes": component.bytes,
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

/// Number formats of all files.
const FLOATS: [(&str, DType); 3] = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];

/// The formats of GGUF files that are written.
fn block_formats() -> impl Iterator<Item = BlockFormat> {
    BlockFormat::ALL.into_iter().filter(|format| format.can_be_written())
}

fn name_of(format: BlockFormat) -> String {
    ElementType::Blocks(format).to_string().to_lowercase()
}

fn number_formats() -> Vec<String> {
    let mut blocks: Vec<_> = block_formats().map(name_of).collect();
    blocks.sort_by(|a, b| b.cmp(a));
    FLOATS.iter().map(|(name, _)| (*name).to_owned()).chain(blocks).collect()
}

fn convert(files: &ModelFiles, output: &Path, dtype: Option<&str>, force: bool) -> anyhow::Result<()> {
    let ending = output.extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
    if let Some(ending @ ("ckpt" | "pt" | "pth" | "bin")) = ending.as_deref() {
        wrong_usage!(
            "the output is {}; pickles (.{ending}) are not written, give a name that ends in .safetensors or .gguf",
            output.display()
        );
    }
    let float = dtype.and_then(|dtype| FLOATS.iter().find(|(name, _)| *name == dtype)).map(|(_, float)| *float);
    let existing = if force { Existing::GivesWay } else { Existing::Stays };
    match (ending.as_deref(), dtype) {
        (Some("gguf"), dtype) => {
            let block = dtype.and_then(|dtype| block_formats().find(|format| name_of(*format) == dtype));
            let matrices = block.map_or(ElementType::of(float.unwrap_or(DType::F16)), ElementType::Blocks);
            convert_to_file(files, output, FileFormat::Gguf(matrices), existing)?;
        }
        (_, Some(dtype)) if float.is_none() => wrong_usage!(
            "the output is {}, and {dtype} is a format of GGUF files; give a name that ends in .gguf",
            output.display()
        ),
        (Some("safetensors"), _) => convert_to_file(files, output, float, existing)?,
        _ => convert_to_folder(files, output, float, existing)?,
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
