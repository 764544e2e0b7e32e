//! From any form of a model to a folder in diffusers layout, or to one file in the original layout.

use super::mapped::float_type;
use super::names::{Names, Part};
use super::writer::{Planned, write_safetensors};
use super::{Checkpoint, ModelFiles, Precision};
use crate::conditioning::{clip_vocabulary, unpacked_merges};
use crate::config::ConfigFields;
use crate::files::{replace_folder, staged_name, sync_folder, write_synced};
use crate::layers::{Activation, WeightSource};
use crate::models::{AutoencoderConfig, ClipTextConfig, UNet2DConditionConfig};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The components that hold weights.
const COMPONENTS: [&str; 4] = ["text_encoder", "text_encoder_2", "unet", "vae"];

/// What a folder holds beside weights and the components' configurations.
const SETTINGS: [&str; 3] = ["model_index.json", "scheduler/scheduler_config.json", "defaults.json"];
const TOKENIZERS: [&str; 2] = ["tokenizer", "tokenizer_2"];
const TOKENIZER_FILES: [&str; 5] =
    ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"];

/// Tensors without values by which files of Stable Diffusion XL say what their network predicts.
const MARKS: [&str; 2] = ["v_pred", "ztsnr"];

/// Writes a model as a folder in diffusers layout, its weights as `dtype`, or as they are stored. A folder that is there
/// gives way, and only once the new one is whole.
///
/// # Errors
/// If the model has no component with weights, a tensor is damaged or does not fit the type, or the disk is full.
pub fn convert_to_folder(files: &ModelFiles, folder: &Path, dtype: Option<DType>) -> Result<()> {
    let components = components(files, dtype)?;
    replace_folder(folder, |staged| {
        for component in &components {
            let at = staged.join(component.name);
            std::fs::create_dir_all(&at).map_err(Error::io("create", &at))?;
            copy(files, staged, &format!("{}/config.json", component.name))?;
            let stem = if component.is_text_encoder() { "model" } else { "diffusion_pytorch_model" };
            let tensors = component.tensors.iter();
            let tensors: Vec<_> = tensors
                .map(|tensor| Planned {
                    name: component.diffusers_name(&tensor.name),
                    shape: component.diffusers_shape(&tensor.name, &tensor.shape),
                    dtype: tensor.dtype,
                })
                .collect();
            write_safetensors(&at.join(format!("{stem}.safetensors")), &tensors, |i| {
                component.tensor(&component.tensors[i].name, &tensors[i].shape)
            })?;
        }
        for name in SETTINGS.into_iter().filter(|name| files.exists(name)) {
            copy(files, staged, name)?;
        }
        TOKENIZERS.iter().try_for_each(|tokenizer| copy_tokenizer(files, staged, tokenizer))
    })
}

/// Writes the weights of a model as one file in the layout of the code base that trained Stable Diffusion, as `dtype`, or
/// as they are stored. A file that is there gives way, and only once the new one is whole.
///
/// # Errors
/// As [`convert_to_folder`].
pub fn convert_to_file(files: &ModelFiles, path: &Path, dtype: Option<DType>) -> Result<()> {
    let components = components(files, dtype)?;
    let refines = !components.iter().any(|component| component.name == "text_encoder");
    // By their names in the file: the component and its tensors that are joined there.
    let mut joined: BTreeMap<String, (usize, Vec<(Part, Planned)>)> = BTreeMap::new();
    for (i, component) in components.iter().enumerate() {
        let names = component.names_in_file(files, refines)?;
        for tensor in &component.tensors {
            let (name, part) = names.in_file(&component.diffusers_name(&tensor.name));
            joined.entry(name).or_insert_with(|| (i, Vec::new())).1.push((part, tensor.clone()));
        }
    }
    let mut outputs = Vec::with_capacity(joined.len());
    let mut sources = Vec::with_capacity(joined.len());
    for (name, (i, mut parts)) in joined {
        parts.sort_by_key(|(part, _)| if let Part::Third(third) = part { *third } else { 0 });
        outputs.push(Planned { name, shape: components[i].shape_in_file(&parts), dtype: parts[0].1.dtype });
        sources.push((i, parts));
    }
    outputs.extend(marks(files, components[0].tensors[0].dtype)?);
    let staged = staged_name(path);
    let written = write_safetensors(&staged, &outputs, |i| match sources.get(i) {
        Some((component, parts)) => components[*component].joined(parts, &outputs[i].shape),
        None => Ok(Tensor::zeros(outputs[i].shape.as_slice(), DType::F32, &Device::Cpu)?),
    });
    let placed = || {
        std::fs::rename(&staged, path).map_err(Error::io("write", path))?;
        path.parent().map_or(Ok(()), sync_folder)
    };
    written.and_then(|()| placed()).inspect_err(|_| {
        // Whether this works or not, the first error tells more.
        let _ = std::fs::remove_file(&staged);
    })
}

/// A component and the tensors that its model has.
struct Component {
    name: &'static str,
    checkpoint: Checkpoint,
    tensors: Vec<Planned>,
}

fn components(files: &ModelFiles, dtype: Option<DType>) -> Result<Vec<Component>> {
    let mut components = Vec::new();
    for name in COMPONENTS.into_iter().filter(|name| files.exists(&format!("{name}/config.json"))) {
        let checkpoint = Checkpoint::open(files, name, Precision::Full, DType::F32, &Device::Cpu)?;
        let tensors: Vec<Planned> = (checkpoint.stored())
            .filter(|tensor| !checkpoint.has_no_use_for(&tensor.name))
            .filter_map(|tensor| {
                // f64 holds nothing that a network was trained to.
                let stored = float_type(tensor.dtype)?;
                let stored = if stored == DType::F64 { DType::F32 } else { stored };
                Some(Planned { name: tensor.name, shape: tensor.shape, dtype: dtype.unwrap_or(stored) })
            })
            .collect();
        if tensors.is_empty() {
            let fix = "it has a configuration and no weights; get the model again";
            return Err(Error::invalid(format!("the {name}"), "empty", fix));
        }
        components.push(Component { name, checkpoint, tensors });
    }
    if components.is_empty() {
        let fix = format!("it has none of the folders {} with a config.json", COMPONENTS.join(", "));
        return Err(Error::invalid("the model", files.path("").display(), fix));
    }
    Ok(components)
}

impl Component {
    fn is_text_encoder(&self) -> bool {
        self.name.starts_with("text_encoder")
    }

    /// Newer transformers leave out the beginning of a text encoder's names.
    fn diffusers_name(&self, name: &str) -> String {
        let bare = self.is_text_encoder() && !name.starts_with("text_model.") && !name.starts_with("text_projection.");
        if bare { format!("text_model.{name}") } else { name.into() }
    }

    /// The autoencoder's attention is made of linear layers in diffusers and of pointwise convolutions in the original.
    fn is_pointwise(&self, name: &str) -> bool {
        self.name == "vae"
            && name.contains(".attentions.")
            && [".to_q.", ".to_k.", ".to_v.", ".to_out."].iter().any(|part| name.contains(part))
            && name.ends_with("weight")
    }

    fn diffusers_shape(&self, name: &str, shape: &[usize]) -> Vec<usize> {
        match shape {
            [outputs, inputs, 1, 1] if self.is_pointwise(name) => vec![*outputs, *inputs],
            _ => shape.to_vec(),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint.tensor(name, shape)
    }

    /// The shape of what parts are put together to.
    fn shape_in_file(&self, parts: &[(Part, Planned)]) -> Vec<usize> {
        let (part, first) = &parts[0];
        let mut shape = first.shape.clone();
        match (part, shape.as_mut_slice()) {
            (Part::Third(_), [rows, ..]) => *rows = parts.iter().map(|(_, part)| part.shape[0]).sum(),
            (Part::Transposed, _) => shape.reverse(),
            (_, [_, _]) if self.is_pointwise(&first.name) => shape.extend([1, 1]),
            _ => {}
        }
        shape
    }

    fn joined(&self, parts: &[(Part, Planned)], shape: &[usize]) -> Result<Tensor> {
        let read = |planned: &Planned| self.tensor(&planned.name, &planned.shape);
        match &parts[0] {
            (Part::Whole, planned) => Ok(read(planned)?.reshape(shape)?),
            (Part::Transposed, planned) => Ok(read(planned)?.t()?.contiguous()?),
            (Part::Third(_), _) => {
                let thirds = parts.iter().map(|(_, planned)| read(planned)).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::cat(&thirds, 0)?)
            }
        }
    }

    /// What a file with all components calls this one's tensors. Text encoders with the erf GELU are OpenCLIP's.
    fn names_in_file(&self, files: &ModelFiles, refines: bool) -> Result<Names> {
        let name = format!("{}/config.json", self.name);
        let fields = ConfigFields::from_json(self.name, &files.read_text(&name)?, &files.path(&name))?;
        let xl = files.exists("text_encoder_2/config.json");
        Ok(match self.name {
            "unet" => Names::of_unet(&UNet2DConditionConfig::from_fields(&fields)?, "model.diffusion_model."),
            "vae" => Names::of_autoencoder(&AutoencoderConfig::from_fields(&fields)?, "first_stage_model."),
            "text_encoder_2" => {
                let place = if refines { "conditioner.embedders.0.model." } else { "conditioner.embedders.1.model." };
                Names::of_open_clip(&ClipTextConfig::from_fields(&fields)?, true, place)
            }
            _ if xl => Names::plain("conditioner.embedders.0.transformer."),
            _ => {
                let config = ClipTextConfig::from_fields(&fields)?;
                match config.hidden_act {
                    Activation::Gelu => Names::of_open_clip(&config, false, "cond_stage_model.model."),
                    _ => Names::plain("cond_stage_model.transformer."),
                }
            }
        })
    }
}

/// For a model of XL that predicts v: what a file has no configuration to say with.
fn marks(files: &ModelFiles, dtype: DType) -> Result<Vec<Planned>> {
    const SCHEDULER: &str = "scheduler/scheduler_config.json";
    if !files.exists("text_encoder_2/config.json") || !files.exists(SCHEDULER) {
        return Ok(Vec::new());
    }
    let fields = ConfigFields::from_json("scheduler", &files.read_text(SCHEDULER)?, &files.path(SCHEDULER))?;
    let field = |name: &str| fields.fields().get(name).cloned().unwrap_or(Value::Null);
    let count = match (field("prediction_type") == "v_prediction", field("rescale_betas_zero_snr") == true) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    };
    Ok(MARKS[..count].iter().map(|&name| Planned { name: name.into(), shape: vec![0], dtype }).collect())
}

fn copy(files: &ModelFiles, folder: &Path, name: &str) -> Result<()> {
    write(folder, name, &files.read(name)?)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    write_synced(&path, bytes)
}

/// A tokenizer's files; from compressed merges alone, the two classic ones.
fn copy_tokenizer(files: &ModelFiles, folder: &Path, tokenizer: &str) -> Result<()> {
    for name in TOKENIZER_FILES.map(|name| format!("{tokenizer}/{name}")) {
        if files.exists(&name) {
            copy(files, folder, &name)?;
        }
    }
    let packed = format!("{tokenizer}/merges.txt.gz");
    if files.exists(&packed) && !files.exists(&format!("{tokenizer}/merges.txt")) {
        let unpacked = unpacked_merges(&files.read(&packed)?);
        let merges = unpacked.map_err(|e| Error::malformed("list of merges", &files.path(&packed), e))?;
        let vocabulary = clip_vocabulary(&merges).into_iter().zip(0u32..);
        let vocabulary: Map<String, Value> = vocabulary.map(|(token, id)| (token, id.into())).collect();
        write(folder, &format!("{tokenizer}/vocab.json"), Value::from(vocabulary).to_string().as_bytes())?;
        write(folder, &format!("{tokenizer}/merges.txt"), merges.as_bytes())?;
    }
    Ok(())
}
