//! The weights of one component of a model folder.

use super::mapped::float_type;
use super::{
    ComponentKind, ComponentNames, ModelFiles, StoredTensor, TensorFile, TensorNames, TensorPart, WeightReport,
};
use crate::layers::{Computation, Dense, Weight, WeightSource};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which of a component's files to take, if there are several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The full file, or the `.fp16` variant if there is no other.
    Full,
    /// The `.fp16` variant, or the full file if there is no other.
    Half,
}

/// A component's tensors: one file, several with an index, or a part of a file that holds a whole model.
///
/// As a [`WeightSource`] it goes on after a missing or mis-shaped tensor; [`Checkpoint::finish`] then reports
/// all that did not fit, and lets go of the files.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<Arc<TensorFile>>,
    file_names: Vec<String>,
    /// Name as the model asks for it, to the file and the name there.
    tensors: BTreeMap<String, Location>,
    /// For a file that calls them otherwise.
    names: Option<TensorNames>,
    /// Beginnings of names that models of this form have no use for.
    unused: Vec<String>,
    dtype: DType,
    keeps_halves: bool,
    headers_alone: bool,
    device: Device,
    asked: RefCell<BTreeSet<String>>,
    report: RefCell<WeightReport>,
}

/// Elements of the largest tensor that is stood in for; no real one has more.
const LARGEST_STAND_IN: usize = 1 << 28;

#[derive(Debug)]
struct Location {
    file: usize,
    stored: StoredTensor,
    part: TensorPart,
    /// Of the part, as the model has it.
    shape: Vec<usize>,
}

impl Location {
    /// `None` if the stored tensor has no such part.
    fn new(file: usize, stored: StoredTensor, part: TensorPart) -> Option<Self> {
        let mut shape = stored.shape.clone();
        match (part, shape.as_mut_slice()) {
            (TensorPart::Whole, _) => {}
            (TensorPart::Third(_), [rows, ..]) if *rows % 3 == 0 => *rows /= 3,
            (TensorPart::Transposed, [_, _]) => shape.reverse(),
            _ => return None,
        }
        Some(Self { file, stored, part, shape })
    }
}

impl Checkpoint {
    /// Opens the weights of `component`, a sub-folder of the layout, to be given as `dtype` on `device`.
    ///
    /// # Errors
    /// If there are none in a form that is read, or a file is damaged.
    pub fn open(
        files: &ModelFiles,
        component: &str,
        precision: Precision,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if let ModelFiles::Single { configs, weights, layout, .. } = files {
            let elsewhere = layout.is_network_alone(weights.file())
                && ComponentKind::of_folder(component) != ComponentKind::Network
                && weight_file(component, precision, |name| configs.exists(name)).is_some();
            return match elsewhere {
                true => Self::open(configs, component, precision, dtype, device),
                false => weights.component(component, configs, *layout, dtype, device),
            };
        }
        let file_names = weight_files(files, component, precision)?;
        let open = |name: &String| TensorFile::open(files, name).map(Arc::new);
        let opened = file_names.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (mut tensors, mut doubled) = (BTreeMap::new(), Vec::new());
        for (file, opened) in opened.iter().enumerate() {
            for stored in opened.tensors() {
                let name = current_name(&stored.name);
                add(&mut tensors, &mut doubled, name, Location::new(file, stored, TensorPart::Whole));
            }
        }
        let report = WeightReport {
            component: component.into(),
            files: file_names.iter().map(|name| files.path(name).display().to_string()).collect::<Vec<_>>().join(", "),
            doubled,
            ..WeightReport::default()
        };
        Ok(Self {
            files: opened,
            file_names,
            tensors,
            names: None,
            unused: Vec::new(),
            dtype,
            keeps_halves: false,
            headers_alone: false,
            device: device.clone(),
            asked: RefCell::default(),
            report: RefCell::new(report),
        })
    }

    /// The tensors of `component` in a file that holds several, by its own names. `model` is what messages call the model
    /// that the file holds.
    pub(super) fn of_part(
        (file, file_name): (&Arc<TensorFile>, &str),
        component: &str,
        ComponentNames { names, unused }: ComponentNames,
        model: Option<String>,
        dtype: DType,
        device: &Device,
    ) -> Self {
        let (mut tensors, mut doubled) = (BTreeMap::new(), Vec::new());
        for stored in file.tensors() {
            let Some(name) = stored.name.strip_prefix(&names.prefix) else { continue };
            for (name, part) in names.in_model(name) {
                let name = current_name(&name);
                add(&mut tensors, &mut doubled, name, Location::new(0, stored.clone(), part));
            }
        }
        let model = model.map(|name| format!(" ({name})")).unwrap_or_default();
        let files = format!("{}{model}", file.path().display());
        let report = WeightReport { component: component.into(), files, doubled, ..WeightReport::default() };
        Self {
            files: vec![file.clone()],
            file_names: vec![file_name.into()],
            tensors,
            names: Some(names),
            unused,
            dtype,
            keeps_halves: false,
            headers_alone: false,
            device: device.clone(),
            asked: RefCell::default(),
            report: RefCell::new(report),
        }
    }

    /// The same, but tensors that are stored in f16 or bf16 are given in the format that each has.
    #[must_use]
    pub fn keeping_halves(self) -> Self {
        Self { keeps_halves: true, ..self }
    }

    /// The same, but nothing is read of tensors that fit: each is given as zeros that take no memory. To see whether a model can
    /// be built.
    #[must_use]
    pub fn headers_alone(self) -> Self {
        Self { headers_alone: true, ..self }
    }

    /// The names of its files in the model folder.
    pub fn file_names(&self) -> &[String] {
        &self.file_names
    }

    /// What the headers say of every tensor: its name and shape as a model has them, and its stored element type.
    pub fn stored(&self) -> impl Iterator<Item = StoredTensor> {
        self.tensors.iter().map(|(name, Location { stored, shape, .. })| StoredTensor {
            name: name.clone(),
            shape: shape.clone(),
            dtype: stored.dtype,
        })
    }

    /// Whether a tensor is of the kind that models of this form leave alone.
    pub(crate) fn has_no_use_for(&self, name: &str) -> bool {
        name.ends_with("position_ids") || self.unused.iter().any(|prefix| name.starts_with(prefix))
    }

    /// What its files call a tensor.
    fn name_in_file(&self, name: &str) -> String {
        self.names.as_ref().map_or_else(|| name.into(), |names| names.in_file(name).0)
    }

    /// Ends loading: all that did not fit becomes one error. Tensors under the prefixes `unused` may have been
    /// left alone, as may buffers that are no weights.
    ///
    /// # Errors
    /// If anything was missing, unexpected, mis-shaped or not finite.
    pub fn finish(self, unused: &[&str]) -> Result<()> {
        let no_use: BTreeSet<String> = self.tensors.keys().filter(|name| self.has_no_use_for(name)).cloned().collect();
        let mut report = self.report.into_inner();
        let asked = self.asked.into_inner();
        let expected = |name: &String| {
            asked.contains(name) || no_use.contains(name) || unused.iter().any(|prefix| name.starts_with(prefix))
        };
        let unexpected: BTreeSet<String> = (self.tensors.into_iter())
            .filter(|(name, _)| !expected(name))
            .map(|(name, location)| if self.names.is_some() { location.stored.name } else { name })
            .collect();
        report.unexpected = unexpected.into_iter().collect();
        if report.is_empty() { Ok(()) } else { Err(Box::new(report).into()) }
    }

    /// Zeros that take no memory.
    fn stand_in(&self, shape: &[usize]) -> Result<Tensor> {
        Ok(Tensor::zeros(1, self.dtype, &self.device)?.broadcast_as(shape)?)
    }

    /// A tensor, where [`WeightSource::tensor`] goes on without what does not fit.
    ///
    /// # Errors
    /// If it is missing, of another shape or type, or not finite.
    pub(crate) fn sound_tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.read(name, shape)?;
        tensor.ok_or_else(|| Box::new(self.report.borrow().clone()).into())
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor>> {
        let mut report = self.report.borrow_mut();
        let Some(location) = self.tensors.get(name) else {
            report.missing.push(self.name_in_file(name));
            return Ok(None);
        };
        let stored = &location.stored;
        if !same_up_to_ones(&location.shape, shape) {
            report.mis_shaped.push((self.name_in_file(name), shape.to_vec(), location.shape.clone()));
            return Ok(None);
        }
        let dtype = match float_type(stored.dtype) {
            Some(half @ (DType::F16 | DType::BF16)) if self.keeps_halves => half,
            Some(_) => self.dtype,
            None => {
                report.wrong_type.push((self.name_in_file(name), format!("{:?}", stored.dtype)));
                return Ok(None);
            }
        };
        if self.headers_alone {
            return Ok(Some(self.stand_in(shape)?));
        }
        let file = &self.files[location.file];
        let tensor = match location.part {
            TensorPart::Whole => file.read(stored, dtype, &self.device)?,
            TensorPart::Third(third) => {
                let rows = location.shape[0];
                file.read_rows(stored, third * rows..(third + 1) * rows, dtype, &self.device)?
            }
            TensorPart::Transposed => {
                let read = file.read(stored, dtype, &self.device)?;
                read.map(|tensor| tensor.t()?.contiguous()).transpose()?
            }
        };
        match tensor {
            Some(tensor) => Ok(Some(tensor.reshape(shape)?)),
            None => {
                report.not_finite.push(self.name_in_file(name));
                Ok(None)
            }
        }
    }
}

impl WeightSource for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.asked.borrow_mut().insert(name.into());
        match self.read(name, shape)? {
            Some(tensor) => Ok(tensor),
            // What would be built from a stand-in of this size could not be held.
            None if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none_or(|n| n > LARGEST_STAND_IN) => {
                Err(Box::new(self.report.borrow().clone()).into())
            }
            // `finish` turns the note of it into an error.
            None => self.stand_in(shape),
        }
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        let tensor = self.tensor(name, shape)?;
        match self.headers_alone {
            // Laid out for a kernel it would take memory.
            true => Ok(Weight::new(Arc::new(Dense::new(tensor, computation.backend, computation.products)))),
            false => Weight::from_tensor(&tensor, computation),
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

/// Adds a tensor that there may be; of two with one name the first stays, and the name is noted.
fn add(tensors: &mut BTreeMap<String, Location>, doubled: &mut Vec<String>, name: String, location: Option<Location>) {
    match location {
        Some(_) if tensors.contains_key(&name) => doubled.push(name),
        Some(location) => {
            tensors.insert(name, location);
        }
        None => {}
    }
}

/// The file with a component's weights, or the index of its parts, among those that exist: safetensors before pickles,
/// and of those the variant of that precision before the other.
pub fn weight_file(component: &str, precision: Precision, exists: impl Fn(&str) -> bool) -> Option<String> {
    let stem = ComponentKind::of_folder(component).file_stem();
    let variants = match precision {
        Precision::Full => ["", ".fp16"],
        Precision::Half => [".fp16", ""],
    };
    let safetensors = variants.iter().flat_map(|variant| {
        [
            format!("{component}/{stem}{variant}.safetensors"),
            format!("{component}/{stem}{variant}.safetensors.index.json"),
            format!("{component}/{stem}.safetensors.index{variant}.json"),
        ]
    });
    // What was saved before there was safetensors.
    let pickled = if stem == "model" { "pytorch_model" } else { stem };
    let pickles = variants.iter().map(|variant| format!("{component}/{pickled}{variant}.bin"));
    safetensors.chain(pickles).find(|name| exists(name))
}

/// The files that hold a component's weights: the one found by [`weight_file`], or those that it names.
///
/// # Errors
/// If there is none, or an index is damaged or leads out of the folder.
pub fn weight_files(files: &ModelFiles, component: &str, precision: Precision) -> Result<Vec<String>> {
    match weight_file(component, precision, |name| files.exists(name)) {
        Some(index) if index.ends_with(".json") => shards(files, component, &index),
        Some(file) => Ok(vec![file]),
        None => {
            let stem = ComponentKind::of_folder(component).file_stem();
            let fix =
                format!("it has no safetensors file; the download may not be complete (expected {stem}.safetensors)");
            Err(Error::unusable(
                ErrorKind::Model,
                format!("the folder of the {component}"),
                files.path(component).display(),
                fix,
            ))
        }
    }
}

/// The files that an index names, each once, in order.
fn shards(files: &ModelFiles, component: &str, index: &str) -> Result<Vec<String>> {
    let malformed =
        |reason: String| Error::malformed(ErrorKind::Model, "safetensors index", &files.path(index), reason);
    let value: Value = serde_json::from_str(&files.read_text(index)?).map_err(|e| malformed(e.to_string()))?;
    let map = value["weight_map"].as_object().ok_or_else(|| malformed("it has no weight_map".into()))?;
    let mut names = BTreeSet::new();
    for file in map.values() {
        let file = file.as_str().ok_or_else(|| malformed(format!("{file} is no file name")))?;
        if file.is_empty() || file.contains(['/', '\\']) || file.starts_with('.') {
            return Err(malformed(format!("`{file}` leads out of the folder")));
        }
        names.insert(format!("{component}/{file}"));
    }
    if names.is_empty() {
        return Err(malformed("its weight_map names no file".into()));
    }
    Ok(names.into_iter().collect())
}

/// The present name of a tensor that older autoencoders call otherwise.
fn current_name(name: &str) -> String {
    const RENAMED: [(&str, &str); 4] =
        [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    if !name.contains(".attentions.") {
        return name.into();
    }
    for (old, new) in RENAMED {
        for parameter in [".weight", ".bias"] {
            if let Some(stem) = name.strip_suffix(parameter).and_then(|stem| stem.strip_suffix(old))
                && stem.ends_with('.')
            {
                return format!("{stem}{new}{parameter}");
            }
        }
    }
    name.into()
}

/// Whether two shapes differ at most by trailing ones, as a linear layer and a 1x1 convolution do.
fn same_up_to_ones(a: &[usize], b: &[usize]) -> bool {
    let strip = |shape: &[usize]| shape.iter().rposition(|&d| d != 1).map_or(0, |last| last + 1);
    a[..strip(a)] == b[..strip(b)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_attention_names_are_understood() {
        let renamed = |name: &str| current_name(&format!("decoder.mid_block.attentions.0.{name}"));
        assert_eq!(renamed("proj_attn.bias"), "decoder.mid_block.attentions.0.to_out.0.bias");
        assert_eq!(renamed("query.weight"), "decoder.mid_block.attentions.0.to_q.weight");
        assert_eq!(renamed("to_q.weight"), "decoder.mid_block.attentions.0.to_q.weight");
        assert_eq!(current_name("encoder.query.weight"), "encoder.query.weight");
    }

    #[test]
    fn a_matrix_may_be_stored_as_a_pointwise_convolution() {
        assert!(same_up_to_ones(&[8, 4, 1, 1], &[8, 4]));
        assert!(!same_up_to_ones(&[8, 4, 3, 3], &[8, 4]));
        assert!(same_up_to_ones(&[1], &[1]) && !same_up_to_ones(&[2], &[1]));
    }
}
