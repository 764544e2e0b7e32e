//! The weights of one component of a model folder.

use super::weight_files::has_weights;
use super::{
    ComponentNames, ElementType, ModelFiles, Precision, StoredTensor, TensorFile, TensorNames, TensorPart,
    WeightReport, weight_files,
};
use crate::kernels::{EightBitSums, MatmulPrecision, RoundedTo};
use crate::layers::{Backend, Computation, Dense, Packed, Weight, WeightSource};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// In which form a checkpoint gives its matrices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Held {
    /// In the element type that is asked for.
    #[default]
    AsAsked,
    /// In half precision, or for the kernels in blocks, where they are stored so, which changes no value.
    AsStored,
    /// The same, and what the kernels multiply with is [rounded](crate::kernels::EightBits) if it is not stored in blocks. Products
    /// are in [whole numbers](EightBitSums::Whole).
    Rounded(RoundedTo),
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
    held: Held,
    headers_alone: bool,
    device: Device,
    asked: RefCell<BTreeSet<String>>,
    report: RefCell<WeightReport>,
    stand_ins: RefCell<StandIns>,
}

/// Elements and number of the tensors that are stood in for beside so many as the files have: a configuration that asks for
/// more is of another model, and what would be built of it need not fit into memory.
const SPARED_ELEMENTS: usize = 1 << 22;
const SPARED_TENSORS: usize = 1000;

/// What stands in for tensors that are missing or mis-shaped.
#[derive(Debug, Default)]
struct StandIns {
    tensors: usize,
    elements: usize,
    /// How many elements the files have, once it was counted.
    held: Option<usize>,
}

#[derive(Debug, Clone)]
struct Location {
    file: usize,
    stored: StoredTensor,
    part: TensorPart,
    /// Of the part, as the model has it.
    shape: Vec<usize>,
    /// What the values are multiplied by: a number, or one for each row of the stored tensor; and in which file it is.
    scale: Option<(usize, StoredTensor)>,
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
        Some(Self { file, stored, part, shape, scale: None })
    }

    /// Those of the stored tensor that it is.
    fn rows(&self) -> Range<usize> {
        match self.part {
            TensorPart::Third(third) => third * self.shape[0]..(third + 1) * self.shape[0],
            TensorPart::Whole | TensorPart::Transposed => 0..self.stored.shape.first().copied().unwrap_or(1),
        }
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
            if !layout.holds(weights.file(), component) && has_weights(configs, component, precision) {
                return Self::open(configs, component, precision, dtype, device);
            }
            let found = layout.component(weights.file(), component, configs)?;
            return weights.component(component, found, *layout, dtype, device);
        }
        if let ModelFiles::Replaced { model, component: replaced, weights, layout } = files {
            if component != *replaced {
                return Self::open(model, component, precision, dtype, device);
            }
            let found = layout.alone(weights.file(), component, model)?;
            return weights.component(component, found, *layout, dtype, device);
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
            tensors: with_scales(tensors),
            names: None,
            unused: Vec::new(),
            dtype,
            held: Held::AsAsked,
            headers_alone: false,
            device: device.clone(),
            asked: RefCell::default(),
            report: RefCell::new(report),
            stand_ins: RefCell::default(),
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
            tensors: with_scales(tensors),
            names: Some(names),
            unused,
            dtype,
            held: Held::AsAsked,
            headers_alone: false,
            device: device.clone(),
            asked: RefCell::default(),
            report: RefCell::new(report),
            stand_ins: RefCell::default(),
        }
    }

    /// The same, but matrices are given in another form. Tensors that are stored in f16 or bf16 are then given in the format that
    /// each has.
    #[must_use]
    pub fn held(self, held: Held) -> Self {
        Self { held, ..self }
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

    /// What the headers say of every tensor: its name and shape as a model has them, and its stored element type; of one that is
    /// multiplied by a scale that of the product.
    pub fn stored(&self) -> impl Iterator<Item = StoredTensor> {
        self.tensors.iter().map(|(name, Location { stored, shape, scale, .. })| StoredTensor {
            name: name.clone(),
            shape: shape.clone(),
            dtype: if scale.is_some() { Dtype::F32.into() } else { stored.dtype },
        })
    }

    /// The bytes of all tensors as they are stored, of those that are parts of others once for each part; scales beside.
    pub fn stored_bytes(&self) -> usize {
        let bytes = |location: &Location| location.stored.dtype.bytes_of(location.shape.iter().product());
        self.tensors.values().filter_map(bytes).sum()
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
        // What was not asked for may be what was not built.
        report.unexpected = unexpected.into_iter().filter(|_| !report.and_more).collect();
        if report.is_empty() { Ok(()) } else { Err(Box::new(report).into()) }
    }

    /// Ends loading with what was built, or with why it was not: weights that did not fit explain a failure better than the failure
    /// itself; where all fitted that were asked for until then, those that nobody asked for say nothing.
    ///
    /// # Errors
    /// As [`Self::finish`], and the failure.
    pub fn finish_with<T>(self, built: Result<T>, unused: &[&str]) -> Result<T> {
        if built.is_err() && self.report.borrow().is_empty() {
            return built;
        }
        self.finish(unused)?;
        built
    }

    /// Zeros that take no memory.
    fn zeros(&self, shape: &[usize]) -> Result<Tensor> {
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
        let dtype = match stored.dtype.float_type() {
            Some(half @ (DType::F16 | DType::BF16)) if self.held != Held::AsAsked && location.scale.is_none() => half,
            Some(_) => self.dtype,
            None => {
                report.wrong_type.push((self.name_in_file(name), stored.dtype.to_string()));
                return Ok(None);
            }
        };
        if self.headers_alone {
            return Ok(Some(self.zeros(shape)?));
        }
        let tensor = self.read_part(location, dtype)?;
        match tensor {
            Some(tensor) => Ok(Some(tensor.reshape(shape)?)),
            None => {
                report.not_finite.push(self.name_in_file(name));
                Ok(None)
            }
        }
    }

    /// A weight in eight bits, if it is held so. Nothing is noted of one that cannot be: it is read otherwise then.
    fn eight_bits(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Option<Packed>> {
        let is_for_kernels = computation.backend == Backend::Kernels && computation.products == MatmulPrecision::Full;
        if self.held == Held::AsAsked || !is_for_kernels || self.headers_alone {
            return Ok(None);
        }
        let found = self.tensors.get(name).filter(|location| same_up_to_ones(&location.shape, shape));
        let Some(location) = found else { return Ok(None) };
        if let (ElementType::Blocks(format), None) = (location.stored.dtype, &location.scale) {
            let depth: usize = shape.iter().skip(1).product();
            let is_matrix = shape.iter().skip(2).all(|&side| side == 1) && location.part != TensorPart::Transposed;
            if !is_matrix || !depth.is_multiple_of(format.values()) {
                return Ok(None);
            }
            let blocks = self.files[location.file].eight_bits(&location.stored, location.rows())?;
            let sums = match self.held {
                Held::Rounded(_) => EightBitSums::Whole,
                Held::AsAsked | Held::AsStored => EightBitSums::Full,
            };
            return blocks.map(|blocks| Packed::of_eight_bits(&blocks, shape, sums)).transpose();
        }
        let Held::Rounded(to) = self.held else { return Ok(None) };
        if !Packed::can_be_rounded(shape) {
            return Ok(None);
        }
        let Some(weight) = self.read_part(location, DType::F32)? else { return Ok(None) };
        Packed::rounded(&weight.reshape(shape)?, to)
    }

    /// The values of a part in an element type, in the order that the model has them.
    fn read_part(&self, location: &Location, dtype: DType) -> Result<Option<Tensor>> {
        let Location { file, stored, part, scale, .. } = location;
        let (file, rows) = (&self.files[*file], location.rows());
        let read = match scale {
            None => file.read_rows(stored, rows, dtype, &self.device)?,
            Some((of_file, scale)) => {
                // The product is rounded once.
                let values = file.read_rows(stored, rows.clone(), DType::F32, &Device::Cpu)?;
                let scale = self.scale(&self.files[*of_file], scale, stored, rows)?;
                let product = values.zip(scale).map(|(values, scale)| values.broadcast_mul(&scale)).transpose()?;
                product.map(|product| product.to_dtype(dtype)?.to_device(&self.device)).transpose()?
            }
        };
        match part {
            TensorPart::Transposed => Ok(read.map(|tensor| tensor.t()?.contiguous()).transpose()?),
            _ => Ok(read),
        }
    }

    /// What some rows of a stored tensor are multiplied by.
    fn scale(
        &self,
        file: &TensorFile,
        scale: &StoredTensor,
        stored: &StoredTensor,
        rows: Range<usize>,
    ) -> Result<Option<Tensor>> {
        let Some(values) = file.read(scale, DType::F32, &Device::Cpu)? else { return Ok(None) };
        let mut shape = vec![1; stored.shape.len()];
        let values = values.flatten_all()?;
        if values.elem_count() == 1 {
            return Ok(Some(values.reshape(shape)?));
        }
        if Some(&values.elem_count()) != stored.shape.first() {
            let reason = format!(
                "{} has shape {:?}, and one number is read, or one for each row of {:?}",
                scale.name, scale.shape, stored.shape
            );
            return Err(Error::malformed(ErrorKind::Model, "file of weights", file.path(), reason));
        }
        shape[0] = rows.len();
        Ok(Some(values.narrow(0, rows.start, rows.len())?.reshape(shape)?))
    }

    /// What stands in for a tensor that does not fit and takes no memory; `finish` turns the note of it into an error. What is built
    /// of it may take some, so there is an end to it.
    fn stand_in(&self, shape: &[usize]) -> Result<Tensor> {
        let elements = |shape: &[usize]| shape.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        let mut stand_ins = self.stand_ins.borrow_mut();
        let count = || self.tensors.values().map(|location| elements(&location.shape)).fold(0, usize::saturating_add);
        let held = *stand_ins.held.get_or_insert_with(count);
        stand_ins.tensors += 1;
        stand_ins.elements = stand_ins.elements.saturating_add(elements(shape));
        if stand_ins.tensors > self.tensors.len() + SPARED_TENSORS
            || stand_ins.elements > held.saturating_add(SPARED_ELEMENTS)
        {
            let mut report = self.report.borrow_mut();
            report.and_more = true;
            return Err(Box::new(report.clone()).into());
        }
        self.zeros(shape)
    }
}

impl WeightSource for Checkpoint {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.asked.borrow_mut().insert(name.into());
        match self.read(name, shape)? {
            Some(tensor) => Ok(tensor),
            None => self.stand_in(shape),
        }
    }

    fn weight(&self, name: &str, shape: &[usize], computation: Computation) -> Result<Weight> {
        if let Some(packed) = self.eight_bits(name, shape, computation)? {
            self.asked.borrow_mut().insert(name.into());
            return Ok(Weight::new(Arc::new(packed)));
        }
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

/// Endings of the names of what a weight of eight bits is multiplied by: those of ComfyUI's files and of others.
const SCALES: [&str; 2] = [".scale_weight", ".weight_scale"];

/// Endings of what stands beside such weights and is no part of a model that computes in more bits.
const BESIDE_SCALED: [&str; 4] = [".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8"];

/// The tensors of a component, weights of eight bits with their scales; what else stands beside these is left out.
fn with_scales(mut tensors: BTreeMap<String, Location>) -> BTreeMap<String, Location> {
    let eight_bits =
        |location: &Location| matches!(location.stored.dtype, ElementType::Plain(Dtype::F8_E4M3 | Dtype::F8_E5M2));
    if !tensors.values().any(eight_bits) {
        return tensors;
    }
    let stem = |name: &str| SCALES.iter().find_map(|ending| name.strip_suffix(ending)).map(str::to_owned);
    let scales: Vec<_> =
        tensors.keys().filter_map(|name| Some((name.clone(), format!("{}.weight", stem(name)?)))).collect();
    for (name, weight) in scales {
        if !tensors.get(&weight).is_some_and(eight_bits) {
            continue;
        }
        let scale = tensors.remove(&name).map(|location| (location.file, location.stored));
        if let Some(weight) = tensors.get_mut(&weight) {
            weight.scale = scale;
        }
    }
    tensors.retain(|name, _| !BESIDE_SCALED.iter().any(|ending| name.ends_with(ending)));
    tensors
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
