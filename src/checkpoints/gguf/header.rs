//! What stands before the values of a GGUF file.

use super::super::mapped::Bytes;
use super::super::safetensors_file::{LONGEST_HEADER, check_count, check_shape};
use super::{BlockFormat, ElementType, StoredTensor};
use crate::Result;
use safetensors::tensor::Dtype;
use std::collections::BTreeMap;
use std::ops::Range;

/// What is read first; most headers are shorter.
const FIRST_READ: usize = 256 << 10;

/// Where values start if the file does not say it: at multiples of this many bytes.
pub(super) const ALIGNMENT: usize = 32;
const MOST_ALIGNMENT: usize = 1 << 20;

/// The most dimensions that GGML has.
const MOST_DIMENSIONS: u32 = 4;

/// Before the name of a tensor that was laid out otherwise so that blocks fit, an entry with its true shape (ComfyUI-GGUF).
const TRUE_SHAPE: &str = "comfy.gguf.orig_shape.";

/// An entry of the metadata; of what nothing here has a use for, nothing is kept.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Whole(u64),
    Text(String),
    Wholes(Vec<u64>),
    Other,
}

/// Tensors and where their values are in the file, by name.
pub(super) type Tensors = BTreeMap<String, (StoredTensor, Range<usize>)>;

/// A header that agrees with the length of its file.
#[derive(Debug)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    /// Each tensor and its place. Shapes are in the order of other files, the outermost dimension first.
    pub tensors: Tensors,
}

/// Why no header could be read.
enum Failure {
    /// It goes on after what was given.
    Short,
    Damaged(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

/// Reads the header of a file; what is wrong with it is the inner error.
pub(super) fn read(file: &Bytes) -> Result<std::result::Result<Header, String>> {
    let mut length = FIRST_READ.min(file.len());
    loop {
        match parse(&file.part(0..length)?, file.len()) {
            Ok(header) => return Ok(Ok(header)),
            Err(Failure::Damaged(reason)) => return Ok(Err(reason)),
            Err(Failure::Short) if length == file.len() => {
                return Ok(Err(format!("it ends within its header, after {length} bytes; get it again")));
            }
            Err(Failure::Short) if length >= LONGEST_HEADER => {
                return Ok(Err(format!("its header is longer than {LONGEST_HEADER} bytes; no model's is")));
            }
            Err(Failure::Short) => length = (length * 4).min(LONGEST_HEADER).min(file.len()),
        }
    }
}

/// Reads from a header one thing after the other.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> std::result::Result<&'a [u8], Failure> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len()).ok_or(Failure::Short)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], Failure> {
        Ok(self.take(N)?.try_into().unwrap_or([0; N]))
    }

    fn u32(&mut self) -> std::result::Result<u32, Failure> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> std::result::Result<u64, Failure> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> std::result::Result<String, Failure> {
        let length = self.u64()?;
        let length = usize::try_from(length).ok().filter(|&length| length <= LONGEST_HEADER);
        let length = length.ok_or_else(|| "a text in its header has an impossible length".to_owned())?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| Failure::Damaged("a text in its header is not UTF-8".into()))
    }

    /// A value of the metadata of a type by its number; arrays within arrays are none that are known.
    fn value(&mut self, kind: u32, is_in_array: bool) -> std::result::Result<Value, Failure> {
        Ok(match kind {
            0 | 1 | 7 => Value::Whole(u64::from(self.take(1)?[0])),
            2 | 3 => Value::Whole(u64::from(u16::from_le_bytes(self.array()?))),
            4 => Value::Whole(u64::from(self.u32()?)),
            // Negative ones are none that anything here reads.
            5 => u64::try_from(i32::from_le_bytes(self.array()?)).map_or(Value::Other, Value::Whole),
            11 => u64::try_from(i64::from_le_bytes(self.array()?)).map_or(Value::Other, Value::Whole),
            10 => Value::Whole(self.u64()?),
            6 => self.take(4).map(|_| Value::Other)?,
            12 => self.take(8).map(|_| Value::Other)?,
            8 => Value::Text(self.text()?),
            9 if !is_in_array => {
                let (kind, count) = (self.u32()?, self.u64()?);
                // The few dimensions of a shape are kept.
                let mut wholes = Vec::new();
                for _ in 0..count {
                    match self.value(kind, true)? {
                        Value::Whole(whole) if wholes.len() < 16 => wholes.push(whole),
                        _ => {}
                    }
                }
                if wholes.len() as u64 == count { Value::Wholes(wholes) } else { Value::Other }
            }
            _ => return Err(format!("its header has a value of the unknown type {kind}").into()),
        })
    }
}

fn parse(bytes: &[u8], length: usize) -> std::result::Result<Header, Failure> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err("it does not begin with GGUF".to_owned().into());
    }
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        let reason = match version.swap_bytes() {
            2 | 3 => "it was written on a machine with the other order of bytes; get it from another place".into(),
            _ => format!("it has version {version}, and 2 and 3 are read; get a newer file"),
        };
        return Err(reason.into());
    }
    let (tensor_count, entries) = (reader.u64()?, reader.u64()?);
    check_count(usize::try_from(tensor_count).unwrap_or(usize::MAX))?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let name = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind, false)?;
        metadata.insert(name, value);
    }
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        let name = reader.text()?;
        let dimensions = reader.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(format!("its tensor {name} has {dimensions} dimensions").into());
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            shape.push(usize::try_from(reader.u64()?).map_err(|_| format!("its tensor {name} is too large"))?);
        }
        shape.reverse();
        let (kind, offset) = (reader.u32()?, reader.u64()?);
        infos.push((name, shape, kind, offset));
    }
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(&Value::Whole(alignment)) if alignment.is_power_of_two() && alignment <= MOST_ALIGNMENT as u64 => {
            alignment as usize
        }
        Some(_) => return Err("its general.alignment is no power of two that a file has".to_owned().into()),
    };
    let data = reader.at.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, shape, kind, offset) in infos {
        let dtype = element_type(kind).ok_or_else(|| {
            format!(
                "its tensor {name} has the format {}, which is not read; get it in q8_0, q6_k, q5_k, q4_k or another of those that \
                 image models come in",
                unread(kind)
            )
        })?;
        check_shape(&name, &shape)?;
        let values: usize = shape.iter().product();
        // Blocks lie within rows.
        let row = shape.last().copied().unwrap_or(1);
        let bytes = dtype.bytes_of(row).and_then(|_| dtype.bytes_of(values));
        let bytes =
            bytes.ok_or_else(|| format!("its tensor {name} of shape {shape:?} has no whole blocks of {dtype}"))?;
        let start = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data));
        let place = start.and_then(|start| Some(start..start.checked_add(bytes)?));
        let Some(place) = place.filter(|place| place.end <= length) else {
            return Err(format!(
                "the {bytes} bytes of its tensor {name} begin {offset} after byte {data}, and the file has {length}; it may be \
                 truncated, get it again"
            )
            .into());
        };
        if !place.start.is_multiple_of(alignment) {
            return Err(format!("its tensor {name} begins at byte {}, no multiple of {alignment}", place.start).into());
        }
        let shape = true_shape(&metadata, &name, values)?.unwrap_or(shape);
        check_shape(&name, &shape)?;
        let stored = StoredTensor { name: name.clone(), shape, dtype };
        if let Some((twin, _)) = tensors.insert(name, (stored, place)) {
            return Err(format!("it has two tensors {}", twin.name).into());
        }
    }
    check_places(&tensors, data, alignment, length)?;
    Ok(Header { metadata, tensors })
}

/// The shape that a tensor had before it was laid out so that blocks fit, if it was.
fn true_shape(
    metadata: &BTreeMap<String, Value>,
    name: &str,
    values: usize,
) -> std::result::Result<Option<Vec<usize>>, String> {
    let Some(entry) = metadata.get(&format!("{TRUE_SHAPE}{name}")) else { return Ok(None) };
    let shape = match entry {
        Value::Wholes(shape) => shape.iter().map(|&dimension| usize::try_from(dimension).ok()).collect(),
        _ => None,
    };
    let fits = |shape: &Vec<usize>| shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) == Some(values);
    let fault = || format!("the shape of its tensor {name}, {TRUE_SHAPE}{name}, does not fit its {values} values");
    shape.filter(fits).map(Some).ok_or_else(fault)
}

/// That no two tensors share bytes, and that nothing but what fills up to the alignment follows the last.
fn check_places(tensors: &Tensors, data: usize, alignment: usize, length: usize) -> std::result::Result<(), String> {
    let mut places: Vec<_> = tensors.iter().map(|(name, (_, place))| (place.start, place.end, name)).collect();
    places.sort_unstable();
    let mut end = data;
    for (start, next, name) in places {
        if start < end {
            return Err(format!("its tensor {name} begins within another; get it again"));
        }
        end = next;
    }
    if length > end.saturating_add(alignment) && !tensors.is_empty() {
        return Err(format!(
            "it ends at byte {end} by its header, and {} bytes follow, which no program that saves weights writes; get it again",
            length - end
        ));
    }
    Ok(())
}

/// What a number of GGML's means.
fn element_type(kind: u32) -> Option<ElementType> {
    let block = || BlockFormat::ALL.into_iter().find(|format| format.number() == kind).map(ElementType::Blocks);
    plain_type(kind).map(ElementType::Plain).or_else(block)
}

/// The same of types without blocks.
pub(super) fn plain_type(kind: u32) -> Option<Dtype> {
    Some(match kind {
        0 => Dtype::F32,
        1 => Dtype::F16,
        24 => Dtype::I8,
        25 => Dtype::I16,
        26 => Dtype::I32,
        27 => Dtype::I64,
        28 => Dtype::F64,
        30 => Dtype::BF16,
        _ => return None,
    })
}

/// The name of a format that is not read.
fn unread(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {kind}"),
    };
    name.into()
}
