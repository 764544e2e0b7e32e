//! The form of `torch.save` before PyTorch 1.6: pickles one after the other, then the values of each storage behind their number.

use super::mapped::Bytes;
use super::pickle::{self, Node, Pickle};
use super::torch_file::bytes_of;
use super::zip_file::Failure;
use std::collections::BTreeMap;
use std::ops::Range;

/// What such a file begins with: the pickle of a number that nothing else begins with.
pub(super) const MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// Pickles before that of the model: of that number, of a version, and of the machine that wrote the file.
const BEFORE: usize = 3;

/// Bytes of the number of values.
const COUNT: usize = size_of::<u64>();

/// The pickle of a file that begins so, and the place of each storage's values by its key.
pub(super) fn read(file: &Bytes) -> Result<(Pickle, BTreeMap<String, Range<usize>>), Failure> {
    let start = file.part(0..file.len().min(pickle::LARGEST))?;
    let mut at = 0;
    let mut next = || {
        let (pickle, length) = Pickle::read_first(&start[at..])?;
        at += length;
        Ok::<_, String>(pickle)
    };
    for _ in 0..BEFORE {
        next()?;
    }
    let (model, keys) = (next()?, next()?);
    let Node::List(listed) = &keys.nodes[keys.root] else {
        return Err("its values are not listed; the file is damaged, get it again".into());
    };
    let stored = model.nodes.iter().filter_map(|node| match node {
        Node::Storage(dtype, key, _) => Some((model.text(*key)?, bytes_of(*dtype))),
        _ => None,
    });
    let stored: BTreeMap<&str, usize> = stored.collect();
    let mut places = BTreeMap::new();
    for key in listed.iter().filter_map(|&key| keys.text(key)) {
        let truncated = || format!("it ends within its values {key}; it is truncated, get it again");
        let values = at + COUNT;
        if values > file.len() {
            return Err(truncated().into());
        }
        let count = file.part(at..values)?.iter().rev().fold(0u64, |count, &byte| count << 8 | u64::from(byte));
        let size = stored.get(key).ok_or_else(|| format!("its values {key} are of no tensor; the file is damaged"))?;
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(*size));
        let end = length.and_then(|length| values.checked_add(length)).filter(|&end| end <= file.len());
        at = end.ok_or_else(truncated)?;
        places.insert(key.to_owned(), values..at);
    }
    Ok((model, places))
}
