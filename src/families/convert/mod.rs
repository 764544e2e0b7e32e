//! From any form of a model to a folder in diffusers layout, or to one file in the original layout.

mod completeness;
mod output;

use super::{Component, Families};
use crate::checkpoints::{
    Checkpoint, ComponentKind, ElementType, ModelFiles, Planned, Precision, SingleFile, StoredTensor, TensorPart,
    stored_as, write_gguf, write_safetensors,
};
use crate::files::{Existing, write_file, write_folder, write_synced};
use crate::text::TokenizerFiles;
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use output::Form;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Writes a model as a folder in diffusers layout, its weights as `dtype`, or as they are stored. It is read back before it takes
/// its place. A folder that is there gives way if it is to, is a model as this function writes it and holds nothing else, and
/// only once the new one is whole.
///
/// # Errors
/// If the place is not free, or is, holds or lies in what the model is read from; if the model could not be loaded, for tensors
/// that are missing, damaged or too many; if a tensor does not fit the type, or the disk is full. What was there stays.
pub fn convert_to_folder(files: &ModelFiles, folder: &Path, dtype: Option<DType>, existing: Existing) -> Result<()> {
    output::check(files, folder, Form::Folder, existing)?;
    completeness::check(files)?;
    let components = components(files, dtype)?;
    let placed = write_folder(folder, existing, |staged| {
        for component in &components {
            let at = staged.join(component.part.folder);
            std::fs::create_dir_all(&at).map_err(Error::io("create", &at))?;
            copy_config(files, staged, component.part.folder, "config.json")?;
            let stem = component.part.kind.file_stem();
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
        for name in output::SETTINGS.into_iter().filter(|name| files.exists(name)) {
            match name.split_once('/') {
                Some((component, file)) => copy_config(files, staged, component, file)?,
                None => copy(files, staged, name)?,
            }
        }
        let mut tokenizers = Families::built_in().components().into_iter().filter_map(|component| component.tokenizer);
        tokenizers.try_for_each(|tokenizer| copy_tokenizer(files, staged, tokenizer))?;
        completeness::check(&ModelFiles::folder(staged)?)
    })?;
    if placed { Ok(()) } else { Err(taken(folder)) }
}

/// Of a name that was free when the work began.
fn taken(output: &Path) -> Error {
    let fix = "another process made it while this one worked, and it stays; choose another `output`";
    Error::unusable(ErrorKind::File, "the output", output.display(), fix)
}

/// The form of one file with a whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileFormat {
    /// safetensors, in a number format, or as the weights are stored.
    Safetensors(Option<DType>),
    /// GGUF, with its matrices in a number format. Vectors are in f32; matrices whose rows have no whole blocks are in another of
    /// GGML's formats or in f16, as are convolutions and embeddings.
    Gguf(ElementType),
}

impl From<Option<DType>> for FileFormat {
    fn from(dtype: Option<DType>) -> Self {
        Self::Safetensors(dtype)
    }
}

/// Writes the weights of a model as one file in the layout of the code base that trained Stable Diffusion. It is read back before
/// it takes its place. A file that is there gives way if it is to and is a model, and only once the new one is whole.
///
/// # Errors
/// As [`convert_to_folder`].
pub fn convert_to_file(
    files: &ModelFiles,
    path: &Path,
    format: impl Into<FileFormat>,
    existing: Existing,
) -> Result<()> {
    let format = format.into();
    output::check(files, path, Form::File, existing)?;
    completeness::check(files)?;
    let components = components(files, if let FileFormat::Safetensors(dtype) = format { dtype } else { None })?;
    let layout = Families::built_in().file_layout(files);
    // By their names in the file: the component and its tensors that are joined there.
    let mut joined: BTreeMap<String, (usize, Vec<(TensorPart, Planned)>)> = BTreeMap::new();
    for (i, component) in components.iter().enumerate() {
        let names = layout.names_to_write(component.part.folder, files)?;
        for tensor in &component.tensors {
            let (name, part) = names.in_file(&component.diffusers_name(&tensor.name));
            joined.entry(name).or_insert_with(|| (i, Vec::new())).1.push((part, tensor.clone()));
        }
    }
    let mut outputs = Vec::with_capacity(joined.len());
    let mut sources = Vec::with_capacity(joined.len());
    for (name, (i, mut parts)) in joined {
        parts.sort_by_key(|(part, _)| if let TensorPart::Third(third) = part { *third } else { 0 });
        outputs.push(Planned { name, shape: components[i].shape_in_file(&parts), dtype: parts[0].1.dtype });
        sources.push((i, parts));
    }
    let dtype = components[0].tensors[0].dtype;
    let marks = layout.marks(files)?;
    outputs.extend(marks.iter().map(|&(name, number)| match number {
        Some(_) => Planned { name: name.into(), shape: Vec::new(), dtype: DType::F32 },
        None => Planned { name: name.into(), shape: vec![0], dtype },
    }));
    let placed = write_file(path, existing, |staged| {
        let tensor = |i: usize| match sources.get(i) {
            Some((component, parts)) => components[*component].joined(parts, &outputs[i].shape),
            None => {
                let number = marks[i - sources.len()].1.unwrap_or_default();
                Ok(Tensor::full(number as f32, outputs[i].shape.as_slice(), &Device::Cpu)?)
            }
        };
        match format {
            FileFormat::Safetensors(_) => write_safetensors(staged, &outputs, tensor)?,
            FileFormat::Gguf(matrices) => {
                let stored = outputs.iter().map(|Planned { name, shape, .. }| StoredTensor {
                    name: name.clone(),
                    dtype: stored_as(name, shape, matrices),
                    shape: shape.clone(),
                });
                let architecture = Families::built_in().detect(files)?.family.id();
                write_gguf(staged, architecture, &stored.collect::<Vec<_>>(), tensor)?;
            }
        }
        let configs = match files {
            ModelFiles::Single { configs, .. } => configs.clone(),
            files => Arc::new(files.clone()),
        };
        let (weights, scheduler) = (SingleFile::open(staged)?, Default::default());
        completeness::check(&ModelFiles::Single { configs, weights, layout, scheduler })
    })?;
    if placed { Ok(()) } else { Err(taken(path)) }
}

/// A component and the tensors that its model has.
struct Converted {
    part: Component,
    checkpoint: Checkpoint,
    tensors: Vec<Planned>,
}

fn components(files: &ModelFiles, dtype: Option<DType>) -> Result<Vec<Converted>> {
    let mut components = Vec::new();
    let known = Families::built_in().components();
    for &part in known.iter().filter(|part| files.exists(&format!("{}/config.json", part.folder))) {
        let checkpoint = Checkpoint::open(files, part.folder, Precision::Full, DType::F32, &Device::Cpu)?;
        let tensors: Vec<Planned> = (checkpoint.stored())
            .filter(|tensor| !checkpoint.has_no_use_for(&tensor.name))
            .filter_map(|tensor| {
                // Those of other types are none that a network asks for. f64 holds nothing that one was trained to.
                let stored = tensor.dtype.float_type()?;
                let stored = if stored == DType::F64 { DType::F32 } else { stored };
                Some(Planned { name: tensor.name, shape: tensor.shape, dtype: dtype.unwrap_or(stored) })
            })
            .collect();
        if tensors.is_empty() {
            let fix = "it has a configuration and no weights; get the model again";
            return Err(Error::unusable(ErrorKind::Model, format!("the {}", part.folder), "empty", fix));
        }
        components.push(Converted { part, checkpoint, tensors });
    }
    if components.is_empty() {
        let folders: Vec<_> = known.iter().map(|part| part.folder).collect();
        let fix = format!("it has none of the folders {} with a config.json", folders.join(", "));
        return Err(Error::unusable(ErrorKind::Model, "the model", files.path("").display(), fix));
    }
    Ok(components)
}

impl Converted {
    /// Newer transformers leave out the beginning of a text encoder's names.
    fn diffusers_name(&self, name: &str) -> String {
        let of_text = self.part.kind == ComponentKind::TextEncoder;
        let bare = of_text && !name.starts_with("text_model.") && !name.starts_with("text_projection.");
        if bare { format!("text_model.{name}") } else { name.into() }
    }

    /// The autoencoder's attention is made of linear layers in diffusers and of pointwise convolutions in the original.
    fn is_pointwise(&self, name: &str) -> bool {
        self.part.kind == ComponentKind::Autoencoder
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
        self.checkpoint.sound_tensor(name, shape)
    }

    /// The shape of what parts are put together to.
    fn shape_in_file(&self, parts: &[(TensorPart, Planned)]) -> Vec<usize> {
        let (part, first) = &parts[0];
        let mut shape = first.shape.clone();
        match (part, shape.as_mut_slice()) {
            (TensorPart::Third(_), [rows, ..]) => *rows = parts.iter().map(|(_, part)| part.shape[0]).sum(),
            (TensorPart::Transposed, _) => shape.reverse(),
            (_, [_, _]) if self.is_pointwise(&first.name) => shape.extend([1, 1]),
            _ => {}
        }
        shape
    }

    fn joined(&self, parts: &[(TensorPart, Planned)], shape: &[usize]) -> Result<Tensor> {
        let read = |planned: &Planned| self.tensor(&planned.name, &planned.shape);
        match &parts[0] {
            (TensorPart::Whole, planned) => Ok(read(planned)?.reshape(shape)?),
            (TensorPart::Transposed, planned) => Ok(read(planned)?.t()?.contiguous()?),
            (TensorPart::Third(_), _) => {
                let thirds = parts.iter().map(|(_, planned)| read(planned)).collect::<Result<Vec<_>>>()?;
                Ok(Tensor::cat(&thirds, 0)?)
            }
        }
    }
}

fn copy(files: &ModelFiles, folder: &Path, name: &str) -> Result<()> {
    write(folder, name, &files.read(name)?)
}

/// A component's configuration; where the one file of the weights says otherwise of itself, with that.
fn copy_config(files: &ModelFiles, folder: &Path, component: &'static str, name: &str) -> Result<()> {
    if let ModelFiles::Single { configs, .. } = files {
        let fields = files.config(component, name)?;
        if fields.fields() != configs.config(component, name)?.fields() {
            let text = format!("{:#}\n", Value::Object(fields.fields().clone()));
            return write(folder, &format!("{component}/{name}"), text.as_bytes());
        }
    }
    copy(files, folder, &format!("{component}/{name}"))
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
    let found = TokenizerFiles::read(files, tokenizer)?;
    if found.is_empty() { Ok(()) } else { found.write(&folder.join(tokenizer)) }
}
