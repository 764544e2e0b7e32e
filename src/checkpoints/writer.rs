//! Writing safetensors files larger than memory: the header first, then one tensor after the other.

use super::ElementType;
use super::mapped::all_finite;
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use std::io::{BufWriter, Write};
use std::path::Path;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
}

impl Planned {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size_in_bytes()
    }
}

/// Writes the planned tensors, whose values `tensor` gives by their number, and waits until they are on the disk.
pub(crate) fn write_safetensors(
    path: &Path,
    planned: &[Planned],
    mut tensor: impl FnMut(usize) -> Result<Tensor>,
) -> Result<()> {
    let failed = |error| Error::io("write", path)(error);
    // Wide types first, so that every tensor starts at a multiple of its element's size.
    let mut order: Vec<usize> = (0..planned.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(planned[i].dtype.size_in_bytes()), &planned[i].name));
    let mut file = BufWriter::new(std::fs::File::create(path).map_err(Error::io("create", path))?);
    let header = header(planned, &order);
    file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header)).map_err(failed)?;
    for i in order {
        let Planned { name, shape, dtype } = &planned[i];
        let tensor = tensor(i)?.to_dtype(*dtype)?;
        if tensor.dims() != shape {
            let fix = "its file changed while it was read; try again";
            return Err(Error::unusable(
                ErrorKind::Model,
                format!("the shape of {name}"),
                format!("{:?}", tensor.dims()),
                fix,
            ));
        }
        file.write_all(&bytes_of(&tensor, name)?).map_err(failed)?;
    }
    let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
    file.sync_all().map_err(failed)
}

fn header(planned: &[Planned], order: &[usize]) -> Vec<u8> {
    let mut fields = Map::new();
    // PyTorch's programs look for it.
    fields.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0;
    for &i in order {
        let tensor = &planned[i];
        let end = start + tensor.bytes();
        let dtype = ElementType::of(tensor.dtype);
        fields.insert(
            tensor.name.clone(),
            json!({"dtype": dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, end]}),
        );
        start = end;
    }
    let mut header = Value::Object(fields).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// The little-endian bytes of a tensor.
fn bytes_of(tensor: &Tensor, name: &str) -> Result<Vec<u8>> {
    let bytes = safetensors::View::data(tensor).into_owned();
    if all_finite(&bytes, tensor.dtype()) {
        return Ok(bytes);
    }
    let fix = "some of its values are too large for that type; take `dtype` bf16 or f32";
    Err(Error::invalid(format!("the type of {name}"), format!("{:?}", tensor.dtype()).to_lowercase(), fix))
}
