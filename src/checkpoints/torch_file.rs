//! One file that `torch.save` wrote: `.ckpt`, `.pt`, `.pth`, `.bin`.

use super::mapped::Bytes;
use super::pickle::{Node, Pickle, PickledTensor};
use super::zip_file::{self, Failure};
use super::{ModelFiles, StoredTensor};
use crate::Result;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A pickle of tensors whose values lie in a zip file's entries. Nothing of the pickle is run.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    bytes: Bytes,
    tensors: Found,
    global_step: Option<i64>,
}

/// Where a dictionary has those of its tensors that count, if it has other things too: models, textual inversions,
/// T2I-Adapters.
const TENSORS: [&str; 3] = ["state_dict", "string_to_param", "adapter"];

/// What a pickle's values are stored as, if it says so.
const LITTLE: &[u8] = b"little";

/// Bytes; those of models have some hundred thousand.
const LARGEST_PICKLE: usize = 256 << 20;

type Found = BTreeMap<String, (StoredTensor, Range<usize>)>;

impl TorchFile {
    /// Opens a file of a model.
    ///
    /// # Errors
    /// If it cannot be opened, is damaged, is of the form before PyTorch 1.6, or its pickle holds more than tensors in
    /// dictionaries.
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

    pub(super) fn range(&self, name: &str) -> Option<Range<usize>> {
        self.tensors.get(name).map(|(_, range)| range.clone())
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The tensors of a file and where their values are, and how long it was trained if it says so.
fn read(file: &Bytes) -> Result<(Found, Option<i64>), Failure> {
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
    if range.len() > LARGEST_PICKLE {
        return Err(format!("its pickle has {} bytes, which none of a model has", range.len()).into());
    }
    let pickle = Pickle::read(&file.part(range.clone())?)?;
    let root = TENSORS.into_iter().find_map(|name| pickle.get(pickle.root, name)).unwrap_or(pickle.root);
    let Some(pairs) = pickle.pairs(root) else {
        return Err("its pickle is no dictionary of tensors; get it as safetensors".into());
    };
    let mut found = BTreeMap::new();
    for &(key, value) in pairs {
        let (Some(name), Node::Tensor(tensor)) = (pickle.text(key), &pickle.nodes[value]) else { continue };
        let Node::Storage(dtype, storage, count) = &pickle.nodes[tensor.storage] else { continue };
        let place = (entries.get(&format!("{folder}data/{storage}")))
            .ok_or_else(|| format!("its tensor {name} refers to values that are not there; get it again"))?;
        let range = values(tensor, *dtype, *count, place).map_err(|reason| format!("its tensor {name} {reason}"))?;
        let stored = StoredTensor { name: name.into(), shape: tensor.shape.clone(), dtype: *dtype };
        found.insert(name.to_owned(), (stored, range));
    }
    let global_step = match pickle.get(pickle.root, "global_step").map(|id| &pickle.nodes[id]) {
        Some(Node::Int(step)) => Some(*step),
        _ => None,
    };
    Ok((found, global_step))
}

/// The place of a tensor's values in the file.
fn values(tensor: &PickledTensor, dtype: Dtype, count: usize, storage: &Range<usize>) -> Result<Range<usize>, String> {
    let size = dtype.bitsize() / 8;
    if count.checked_mul(size) != Some(storage.len()) {
        return Err(format!("should have {count} values and has {} bytes; get the file again", storage.len()));
    }
    let elements = tensor.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let end = elements.and_then(|n| n.checked_add(tensor.offset)).filter(|&end| end <= count);
    let (Some(elements), Some(_)) = (elements, end) else {
        return Err(format!("has shape {:?} and only {count} values; get the file again", tensor.shape));
    };
    if tensor.strides.len() != tensor.shape.len() || !contiguous(&tensor.shape, &tensor.strides) {
        return Err(format!(
            "of shape {:?} is stored with the strides {:?}, out of order; save it again with .contiguous()",
            tensor.shape, tensor.strides
        ));
    }
    let start = storage.start + tensor.offset * size;
    Ok(start..start + elements * size)
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
