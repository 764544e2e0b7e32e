//! One file that `torch.save` wrote: `.ckpt`, `.pt`, `.pth`, `.bin`.

use super::mapped::Bytes;
use super::pickle::{self, Id, Node, Pickle, PickledTensor};
use super::safetensors_file::{check_count, check_shape};
use super::torch_stream;
use super::zip_file::{self, Failure};
use super::{ModelFiles, StoredTensor};
use crate::Result;
use safetensors::tensor::Dtype;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A pickle of tensors whose values lie in a zip file's entries, or before PyTorch 1.6 behind it. Nothing of the pickle is run.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    bytes: Bytes,
    tensors: Found,
    global_step: Option<i64>,
}

/// Where a dictionary has those of its tensors that count, if it has other things too: models, textual inversions,
/// T2I-Adapters; of several, those that come first here. Elsewhere they are where most of them are.
const TENSORS: [&str; 8] =
    ["state_dict", "string_to_param", "adapter", "params_ema", "params", "model_state_dict", "model", "module"];

/// Dictionaries within dictionaries that are looked into.
const DEPTH: usize = 3;

/// What parallel training puts before all names.
const PARALLEL: &str = "module.";

/// What a pickle's values are stored as, if it says so.
const LITTLE: &[u8] = b"little";

/// Where the values of a tensor are in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The bytes from the first value to the last.
    pub range: Range<usize>,
    /// For each dimension, how many elements lie between one place and the next; `None` if values follow one another in the
    /// order of the indices.
    pub strides: Option<Vec<usize>>,
}

type Found = BTreeMap<String, (StoredTensor, Place)>;

impl TorchFile {
    /// Opens a file of a model.
    ///
    /// # Errors
    /// If it cannot be opened, is damaged, or its pickle holds more than tensors in dictionaries.
    pub fn open(files: &ModelFiles, name: &str) -> Result<Self> {
        let path = files.path(name);
        let bytes = Bytes::open(files, name)?;
        let (tensors, global_step) = read(&bytes).map_err(|failure| failure.of("PyTorch file", &path))?;
        Ok(Self { path, bytes, tensors, global_step })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors.
    pub fn tensors(&self) -> Vec<StoredTensor> {
        self.tensors.values().map(|(stored, _)| stored.clone()).collect()
    }

    /// The number of training steps that stands beside the weights.
    pub fn global_step(&self) -> Option<i64> {
        self.global_step
    }

    pub(super) fn place(&self, name: &str) -> Option<Place> {
        self.tensors.get(name).map(|(_, place)| place.clone())
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The pickle of a zip file, and the place of each storage's values by its key.
fn of_zip(file: &Bytes) -> Result<(Pickle, BTreeMap<String, Range<usize>>), Failure> {
    let entries = zip_file::entries(file)?;
    // All entries lie in one folder, whose name is the file's when it was written.
    let pickle = entries.iter().find(|(name, _)| name.as_str() == "data.pkl" || name.ends_with("/data.pkl"));
    let (pickle_name, range) = pickle.ok_or("it is a zip file without a data.pkl; PyTorch did not save it")?;
    let folder = &pickle_name[..pickle_name.len() - "data.pkl".len()];
    if let Some(order) = entries.get(&format!("{folder}byteorder"))
        && !file.part(order.start..order.end.min(order.start + LITTLE.len()))?.starts_with(LITTLE)
    {
        return Err("its values are big-endian; save it again on an ordinary machine".into());
    }
    if range.len() > pickle::LARGEST {
        return Err(
            format!("its pickle has {} bytes; {} is the most that is read", range.len(), pickle::LARGEST).into()
        );
    }
    let pickle = Pickle::read(&file.part(range.clone())?)?;
    let values = format!("{folder}data/");
    let places =
        entries.iter().filter_map(|(name, place)| Some((name.strip_prefix(&values)?.to_owned(), place.clone())));
    Ok((pickle, places.collect()))
}

/// The tensors of a file and where their values are, and how long it was trained if it says so.
fn read(file: &Bytes) -> Result<(Found, Option<i64>), Failure> {
    let start = file.part(0..file.len().min(torch_stream::MAGIC.len()))?;
    let (pickle, places) = if *start == *torch_stream::MAGIC { torch_stream::read(file)? } else { of_zip(file)? };
    if pickle.pairs(pickle.root).is_none() {
        return Err("its pickle is no dictionary of tensors; get it as safetensors".into());
    }
    let (_, root) = fullest(&pickle, pickle.root, DEPTH, &mut HashSet::new());
    let mut found = BTreeMap::new();
    for (name, tensor) in tensors(&pickle, root) {
        let Node::Storage(of_storage, key, count) = pickle.nodes[tensor.storage] else { continue };
        check_shape(name, &tensor.shape)?;
        let storage = pickle.text(key).and_then(|key| places.get(key));
        let storage =
            storage.ok_or_else(|| format!("its tensor {name} refers to values that are not there; get it again"))?;
        if count.checked_mul(bytes_of(of_storage)) != Some(storage.len()) {
            let reason = format!("should have {count} values and has {} bytes; get the file again", storage.len());
            return Err(format!("its tensor {name} {reason}").into());
        }
        let dtype = tensor.dtype.unwrap_or(of_storage);
        let place = values(tensor, dtype, storage).map_err(|reason| format!("its tensor {name} {reason}"))?;
        let stored = StoredTensor { name: name.into(), shape: tensor.shape.clone(), dtype: dtype.into() };
        found.insert(name.to_owned(), (stored, place));
        check_count(found.len())?;
    }
    if !found.is_empty() && found.keys().all(|name| name.starts_with(PARALLEL)) {
        found = found.into_iter().map(|(name, tensor)| (name[PARALLEL.len()..].to_owned(), tensor)).collect();
        found.iter_mut().for_each(|(name, (stored, _))| stored.name.clone_from(name));
    }
    let global_step = match pickle.get(pickle.root, "global_step").map(|id| &pickle.nodes[id]) {
        Some(Node::Int(step)) => Some(*step),
        _ => None,
    };
    Ok((found, global_step))
}

/// The named tensors of a dictionary.
fn tensors(pickle: &Pickle, dict: Id) -> impl Iterator<Item = (&str, &PickledTensor)> {
    pickle.pairs(dict).unwrap_or_default().iter().filter_map(|&(key, value)| match &pickle.nodes[value] {
        Node::Tensor(tensor) => Some((pickle.text(key)?, tensor.as_ref())),
        _ => None,
    })
}

/// The dictionary whose tensors count among one and those in it, and how many they are. Each is looked into once.
fn fullest(pickle: &Pickle, dict: Id, depth: usize, seen: &mut HashSet<Id>) -> (usize, Id) {
    if !seen.insert(dict) {
        return (0, dict);
    }
    let mut within = |id: Id| if depth == 0 { (0, id) } else { fullest(pickle, id, depth - 1, seen) };
    let named = TENSORS.iter().filter_map(|name| pickle.get(dict, name)).map(&mut within).find(|&(count, _)| count > 0);
    if let Some(found) = named {
        return found;
    }
    let own = tensors(pickle, dict).count();
    if own > 0 || depth == 0 {
        return (own, dict);
    }
    let others = pickle.pairs(dict).unwrap_or_default().iter().filter(|(key, _)| pickle.text(*key).is_some());
    // Of two that are as full, the first.
    let better = |best: (usize, Id), (count, id)| if count > best.0 { (count, id) } else { best };
    others.map(|&(_, value)| within(value)).fold((own, dict), better)
}

pub(super) fn bytes_of(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}

/// The place of a tensor's values in the file.
fn values(tensor: &PickledTensor, dtype: Dtype, storage: &Range<usize>) -> Result<Place, String> {
    let size = bytes_of(dtype);
    let count = storage.len() / size;
    let elements = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let end = elements.and_then(|n| n.checked_add(tensor.offset)).filter(|&end| end <= count);
    let (Some(elements), Some(_)) = (elements, end) else {
        return Err(format!("has shape {:?} and only {count} values; get the file again", tensor.shape));
    };
    let start = storage.start + tensor.offset * size;
    if tensor.strides.len() != tensor.shape.len() {
        return Err(format!("has shape {:?} and the strides {:?}; get the file again", tensor.shape, tensor.strides));
    }
    if elements == 0 || contiguous(&tensor.shape, &tensor.strides) {
        return Ok(Place { range: start..start + elements * size, strides: None });
    }
    let mut steps =
        tensor.shape.iter().zip(&tensor.strides).map(|(&dimension, &stride)| (dimension - 1).checked_mul(stride));
    let last = steps.try_fold(tensor.offset, |sum, step| sum.checked_add(step?)).filter(|&last| last < count);
    let last = last.ok_or_else(|| {
        format!(
            "of shape {:?} has the strides {:?} and only {count} values; get the file again",
            tensor.shape, tensor.strides
        )
    })?;
    Ok(Place { range: start..storage.start + (last + 1) * size, strides: Some(tensor.strides.clone()) })
}

/// Whether values follow one another in the order of the indices; where a dimension is 1 its stride means nothing.
fn contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1usize;
    shape.iter().zip(strides).rev().all(|(&dimension, &stride)| {
        let fits = dimension <= 1 || stride == expected;
        expected = dimension.max(1).saturating_mul(expected);
        fits
    })
}
