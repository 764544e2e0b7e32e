//! Writing GGUF files larger than memory: the header first, then one tensor after the other.

use super::super::mapped::all_finite;
use super::super::{ElementType, StoredTensor};
use super::BlockFormat;
use super::header::{ALIGNMENT, plain_type};
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;
use std::io::{BufWriter, Write};
use std::path::Path;

const VERSION: u32 = 3;

/// Numbers of types of the metadata.
const U32: u32 = 4;
const TEXT: u32 = 8;

/// The version of the block formats, which have not changed since 2023.
const QUANTIZATION_VERSION: u32 = 2;

/// Parts of names of matrices that other programs leave in half precision, for they are small and all else depends on them.
const PRECISE: [&str; 6] =
    ["time_embed.", "label_emb.", "token_embedding", "position_embedding", "positional_embedding", "time_embedding."];

/// How a tensor is stored in a file whose matrices are to be in a format: vectors in f32; what is no matrix, or has rows that no
/// block divides, in half precision; and rows that only shorter blocks divide in the next better format of those.
pub(crate) fn stored_as(name: &str, shape: &[usize], matrices: ElementType) -> ElementType {
    let half = ElementType::Plain(Dtype::F16);
    let format = match matrices {
        _ if shape.len() < 2 => return Dtype::F32.into(),
        ElementType::Plain(_) => return matrices,
        ElementType::Blocks(format) => format,
    };
    let &[_, row] = shape else { return half };
    if PRECISE.iter().any(|part| name.contains(part)) {
        return half;
    }
    let shorter = match format {
        BlockFormat::Q6_K => BlockFormat::Q8_0,
        BlockFormat::Q5_K => BlockFormat::Q5_1,
        BlockFormat::Q4_K => BlockFormat::Q5_0,
        _ => BlockFormat::Q4_0,
    };
    let fits = [format, shorter].into_iter().find(|format| row.is_multiple_of(format.values()));
    fits.map_or(half, ElementType::Blocks)
}

/// Writes tensors, whose values `tensor` gives in f32 by their number, and waits until they are on the disk. `architecture` is what
/// other programs know the kind of model by.
///
/// # Errors
/// If the file cannot be written, values are too large for their type or not finite, or a tensor has no whole blocks.
pub(crate) fn write_gguf(
    path: &Path,
    architecture: &str,
    tensors: &[StoredTensor],
    mut tensor: impl FnMut(usize) -> Result<Tensor>,
) -> Result<()> {
    let failed = |error| Error::io("write", path)(error);
    let mut file = BufWriter::new(std::fs::File::create(path).map_err(Error::io("create", path))?);
    file.write_all(&header(architecture, tensors)?).map_err(failed)?;
    for (i, StoredTensor { name, shape, dtype }) in tensors.iter().enumerate() {
        let values = tensor(i)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        if values.elem_count() != shape.iter().product::<usize>() {
            let fix = "its file changed while it was read; try again";
            let found = format!("{:?}", values.dims());
            return Err(Error::unusable(ErrorKind::Model, format!("the shape of {name}"), found, fix));
        }
        let bytes = encoded(&values, name, *dtype)?;
        let filled = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        file.write_all(&bytes).and_then(|()| file.write_all(&vec![0; filled])).map_err(failed)?;
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

fn header(architecture: &str, tensors: &[StoredTensor]) -> Result<Vec<u8>> {
    let mut bytes = b"GGUF".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(TEXT.to_le_bytes());
    text(&mut bytes, architecture);
    text(&mut bytes, "general.quantization_version");
    bytes.extend(U32.to_le_bytes());
    bytes.extend(QUANTIZATION_VERSION.to_le_bytes());
    let mut offset = 0;
    for StoredTensor { name, shape, dtype } in tensors {
        text(&mut bytes, name);
        // A number is a list of one.
        let dimensions: Vec<usize> = if shape.is_empty() { vec![1] } else { shape.iter().rev().copied().collect() };
        bytes.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|&dimension| bytes.extend((dimension as u64).to_le_bytes()));
        let number = number(*dtype);
        let size = dtype.bytes_of(shape.iter().product());
        let (Some(number), Some(size)) = (number, size) else {
            let fix = "take another number format";
            return Err(Error::invalid(format!("the type of {name} in a GGUF file"), dtype, fix));
        };
        bytes.extend(number.to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += size.next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    Ok(bytes)
}

/// The number of a type, of those that are written.
fn number(dtype: ElementType) -> Option<u32> {
    match dtype {
        ElementType::Plain(dtype @ (Dtype::F32 | Dtype::F16 | Dtype::BF16)) => {
            (0..=30).find(|&number| plain_type(number) == Some(dtype))
        }
        ElementType::Blocks(format) if format.can_be_written() => Some(format.number()),
        _ => None,
    }
}

fn encoded(values: &Tensor, name: &str, dtype: ElementType) -> Result<Vec<u8>> {
    let bytes = match dtype {
        ElementType::Blocks(format) => {
            let values = values.flatten_all()?.to_vec1::<f32>()?;
            // A scale is as large as the largest value at most.
            values.iter().all(|value| value.abs() <= half::f16::MAX.to_f32()).then(|| format.narrow(&values))
        }
        ElementType::Plain(_) => {
            let float = dtype.float_type().unwrap_or(DType::F32);
            let bytes = safetensors::View::data(&values.to_dtype(float)?).into_owned();
            all_finite(&bytes, float).then_some(bytes)
        }
    };
    bytes.ok_or_else(|| {
        let fix = "some of its values are too large for that type; take `dtype` bf16 or f32";
        Error::invalid(format!("the type of {name}"), dtype.to_string().to_lowercase(), fix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_matrix_of_whole_blocks_is_stored_otherwise() {
        let q4_k = ElementType::Blocks(BlockFormat::Q4_K);
        let stored = |name: &str, shape: &[usize]| stored_as(name, shape, q4_k).to_string();
        assert_eq!(stored("x.to_k.weight", &[1280, 768]), "Q4_K");
        assert_eq!(stored("x.to_q.weight", &[320, 320]), "Q5_0");
        assert_eq!(stored("x.to_q.weight", &[48, 48]), "F16");
        assert_eq!(stored("x.weight", &[320, 4, 3, 3]), "F16");
        assert_eq!(stored("x.norm.weight", &[320]), "F32");
        assert_eq!(stored("model.diffusion_model.time_embed.0.weight", &[1280, 320]), "F16");
        assert_eq!(stored("text_model.embeddings.token_embedding.weight", &[49408, 768]), "F16");
        assert_eq!(stored("conditioner.embedders.1.model.positional_embedding", &[77, 1280]), "F16");
        assert_eq!(stored_as("x.norm.weight", &[320], Dtype::F16.into()).to_string(), "F32");
        assert_eq!(stored_as("x.weight", &[320, 320], Dtype::BF16.into()).to_string(), "BF16");
    }
}
