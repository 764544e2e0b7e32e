//! The targets.

use crate::parts::split;
use crate::png_files::{chunks_of, png_file};
use crate::readers::memory::bounded;
use crate::readers::{self, TestResult};
use crate::torch_files::zip;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::{TempDir, tempdir};
use tweedie::adapters::Loras;
use tweedie::checkpoints::ModelFiles;
use tweedie::families::{Family, SD1};
use tweedie::files::guarded;
use tweedie::layers::WeightSource;
use tweedie::text::Tokenizer;
use tweedie_pipelines::{
    DTypeChoice, DeviceChoice, LatentDiffusion, PixelModel, PixelPipeline, PixelRequest, TextToImageRequest,
};

/// What is done with an input; what fails for another reason than the input is an error.
type Target = fn(&[u8]) -> TestResult;

/// All targets with their names.
pub const TARGETS: [(&str, Target); 13] = [
    ("safetensors", safetensors),
    ("torch", torch),
    ("gguf", gguf),
    ("model_config", model_config),
    ("tokenizer", tokenizer),
    ("lora", lora),
    ("picture", picture),
    ("idx", idx),
    ("run_folder", run_folder),
    ("run_log", run_log),
    ("prompt", prompt),
    ("request", request),
    ("settings", settings),
];

/// A file of the golden cases.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden").join(name)
}

/// A file as it is; an object of JSON is the header of one, with as many bytes of values as it says.
fn safetensors(bytes: &[u8]) -> TestResult {
    const LONGEST: u64 = 1 << 16;
    let folder = tempdir()?;
    if !bytes.starts_with(b"{") {
        readers::weights(folder.path(), bytes)?;
        return Ok(());
    }
    let header: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let ends = header.as_object().into_iter().flatten().filter_map(|(_, info)| info["data_offsets"][1].as_u64());
    let values = vec![0; ends.max().unwrap_or(0).min(LONGEST) as usize];
    readers::weights(folder.path(), &[&(bytes.len() as u64).to_le_bytes(), bytes, &values].concat())?;
    Ok(())
}

/// A zip file as it is; anything else is the pickle of one, beside which are the values of a few small tensors.
fn torch(bytes: &[u8]) -> TestResult {
    let folder = tempdir()?;
    let with_pickle =
        || zip(&[("archive/data.pkl", bytes), ("archive/data/0", &[0; 24]), ("archive/data/1", &[0; 16])]);
    readers::weights(folder.path(), &if bytes.starts_with(b"PK") { bytes.to_vec() } else { with_pickle() })?;
    Ok(())
}

/// A file as it is.
fn gguf(bytes: &[u8]) -> TestResult {
    readers::weights(tempdir()?.path(), bytes)?;
    Ok(())
}

/// The files of a small model: of the golden one those whose part is empty or missing.
pub const CONFIGURATIONS: [&str; 6] = [
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "model_index.json",
];
/// After them, those of a model in pixel space.
pub const OF_PIXELS: [&str; 2] = ["unet/config.json", "scheduler/scheduler_config.json"];

/// The folder of a golden model with other configurations.
fn reconfigured(model: &str, names: &[&str], parts: &[&[u8]]) -> TestResult<TempDir> {
    let folder = tempdir()?;
    for component in std::fs::read_dir(golden(model))? {
        let path = component?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_file() {
            std::fs::copy(&path, folder.path().join(name))?;
            continue;
        }
        std::fs::create_dir(folder.path().join(name))?;
        for file in std::fs::read_dir(&path)? {
            let file = file?.path();
            let to = folder.path().join(name).join(file.file_name().unwrap_or_default());
            match file.extension().is_some_and(|ending| ending == "safetensors") {
                true => std::os::unix::fs::symlink(file, to)?,
                false => drop(std::fs::copy(file, to)?),
            }
        }
    }
    for (name, part) in names.iter().zip(parts).filter(|(_, part)| !part.is_empty()) {
        std::fs::write(folder.path().join(name), part)?;
    }
    Ok(folder)
}

/// A small model of these configurations with the weights of the golden one, or of stand-ins for them.
fn model_config(bytes: &[u8]) -> TestResult {
    /// Bytes of the golden model's weights.
    const WEIGHTS: usize = 3 << 20;
    let parts = split(bytes);
    let (of_text, of_pixels) = parts.split_at(parts.len().min(CONFIGURATIONS.len()));
    if of_text.iter().any(|part| !part.is_empty()) {
        let folder = reconfigured("models/sd15", &CONFIGURATIONS, of_text)?;
        bounded("a model", bytes.len() + WEIGHTS, 64, || {
            let builder = LatentDiffusion::builder().model_folder(folder.path());
            let model = builder.device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build();
            let request = TextToImageRequest { prompt: "a fox".into(), ..TextToImageRequest::default() };
            let _ = model.and_then(|model| model.settle(&request));
        });
    }
    if of_pixels.iter().any(|part| !part.is_empty()) {
        let folder = reconfigured("models/pixel28", &OF_PIXELS, of_pixels)?;
        bounded("a model in pixel space", bytes.len() + WEIGHTS, 64, || {
            let builder = PixelPipeline::builder().model(PixelModel::Folder(folder.path().into()));
            let model = builder.device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build();
            let _ = model.and_then(|model| model.settle(&PixelRequest::default()));
        });
    }
    Ok(())
}

/// One file is a `tokenizer.json`, two are `vocab.json` and `merges.txt`.
fn tokenizer(bytes: &[u8]) -> TestResult {
    let folder = tempdir()?;
    let at = folder.path().join("tokenizer");
    std::fs::create_dir(&at)?;
    match split(bytes)[..] {
        [json] => std::fs::write(at.join("tokenizer.json"), json)?,
        [vocab, merges, ..] => {
            std::fs::write(at.join("vocab.json"), vocab)?;
            std::fs::write(at.join("merges.txt"), merges)?;
        }
        [] => {}
    }
    readers::tokenizer(folder.path(), bytes.len())?;
    Ok(())
}

/// A file as it is, or the names of its tensors, a line each, with their shapes after a blank: `name 2x3`.
fn lora(bytes: &[u8]) -> TestResult {
    let folder = tempdir()?;
    let path = folder.path().join("words.safetensors");
    let is_file = bytes.starts_with(b"PK") || bytes.get(4..9) == Some(b"\0\0\0\0{");
    let bytes = if is_file { bytes.to_vec() } else { named(bytes)? };
    readers::lora(&path, &bytes)?;
    bounded("a merged LoRA", bytes.len() + MERGED, 64, || {
        let Ok(loras) = Loras::open([(path.as_path(), 0.5)], &SD1.lora_target(2)) else { return };
        for (component, tensors) in stored() {
            let (source, stored) = (loras.over(component, tensors), &tensors.0);
            stored.iter().for_each(|(name, tensor)| drop(source.tensor(name, tensor.dims())));
        }
        let _ = loras.finish("a test's model");
    });
    Ok(())
}

/// Bytes that the merged weights take, each for as long as it is made.
const MERGED: usize = 1 << 20;

/// A file of tensors with these names, of no more than a few values each.
fn named(lines: &[u8]) -> TestResult<Vec<u8>> {
    const MOST_VALUES: usize = 1 << 12;
    let text = String::from_utf8_lossy(lines);
    let mut tensors = BTreeMap::new();
    for line in text.lines() {
        let (name, shape) = line.rsplit_once(' ').unwrap_or((line, "2x2"));
        let shape: Vec<usize> = shape.split('x').filter_map(|side| side.parse().ok()).collect();
        let values = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
        if values.is_some_and(|values| values <= MOST_VALUES) && tensors.len() < 1000 {
            tensors.insert(name.to_owned(), Tensor::ones(shape, DType::F32, &Device::Cpu)?);
        }
    }
    Ok(::safetensors::serialize(&tensors, None)?)
}

/// Weights in memory.
struct Stored(HashMap<String, Tensor>);

impl WeightSource for Stored {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        Ok(self.0[name].reshape(shape)?)
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

/// The weights of the golden model that LoRAs change.
fn stored() -> &'static [(&'static str, Stored)] {
    static STORED: OnceLock<Vec<(&str, Stored)>> = OnceLock::new();
    let load = |(component, file): (&'static str, &str)| {
        let path = golden("models/sd15").join(component).join(file);
        (component, Stored(candle_core::safetensors::load(path, &Device::Cpu).unwrap_or_default()))
    };
    STORED.get_or_init(|| {
        let files = [("unet", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")];
        files.into_iter().map(load).collect()
    })
}

/// A PNG, JPEG or WebP file, with its texts. A PNG file whose chunks can be told apart gets the sums that belong to them.
fn picture(bytes: &[u8]) -> TestResult {
    /// Lossless WebP says any size in a few bytes, and to decode the largest that is read takes seconds.
    const MOST_PIXELS: u64 = 1 << 22;
    let size = guarded(|| image::ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_dimensions());
    if bytes.starts_with(b"RIFF")
        && let Ok(Ok((width, height))) = size
        && u64::from(width) * u64::from(height) > MOST_PIXELS
    {
        return Ok(());
    }
    let summed = chunks_of(bytes).map(|chunks| png_file(chunks.iter().map(|(name, data)| (name, data.as_slice()))));
    let bytes = summed.as_deref().unwrap_or(bytes);
    readers::picture(bytes);
    readers::picture_text(bytes);
    Ok(())
}

/// Images, then labels.
fn idx(bytes: &[u8]) -> TestResult {
    let parts = split(bytes);
    readers::idx(tempdir()?.path(), parts[0], parts.get(1).copied().unwrap_or_default())?;
    Ok(())
}

/// The files of a run, in the order of [`readers::runs::RunFiles`].
fn run_folder(bytes: &[u8]) -> TestResult {
    let parts: Vec<_> = split(bytes).into_iter().map(<[u8]>::to_vec).collect();
    readers::runs::run_folder(tempdir()?.path(), &parts)?;
    Ok(())
}

/// The log of a run, whose losses are drawn.
fn run_log(bytes: &[u8]) -> TestResult {
    readers::runs::run_log(tempdir()?.path(), bytes)?;
    Ok(())
}

/// A prompt, for the golden tokenizer.
fn prompt(bytes: &[u8]) -> TestResult {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    if TOKENIZER.get().is_none() {
        let read = Tokenizer::from_files(&ModelFiles::folder(&golden("models/sd15"))?, "tokenizer")?;
        let _ = TOKENIZER.set(read);
    }
    readers::prompt(TOKENIZER.get().ok_or("no tokenizer")?, bytes);
    Ok(())
}

/// The golden model.
pub fn model() -> TestResult<&'static LatentDiffusion> {
    static MODEL: OnceLock<LatentDiffusion> = OnceLock::new();
    if MODEL.get().is_none() {
        let builder = LatentDiffusion::builder().model_folder(golden("models/sd15"));
        let _ = MODEL.set(builder.device(DeviceChoice::Cpu).dtype(DTypeChoice::F32).build()?);
    }
    Ok(MODEL.get().ok_or("no model")?)
}

/// A request as JSON.
fn request(bytes: &[u8]) -> TestResult {
    readers::requests::request(model()?, bytes);
    Ok(())
}

/// The settings of a picture, as this program or others write them.
fn settings(bytes: &[u8]) -> TestResult {
    readers::requests::settings(model()?, tempdir()?.path(), bytes)?;
    Ok(())
}
