//! The bytes of a safetensors file, always the same for the same contents.

use safetensors::SafeTensorError;
use safetensors::tensor::View;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Bytes of the number that says how long the header is.
const LENGTH: usize = 8;

/// Tensors as a safetensors file, with what the file says of itself in the order of its keys.
///
/// The library that writes the file takes those from a hash map, whose order is another one in each process: a run that goes on
/// would end with other bytes than one that was never stopped.
///
/// # Errors
/// If a tensor's bytes do not fit its shape.
pub fn safetensors_bytes<S: AsRef<str> + Ord + std::fmt::Display, V: View>(
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, SafeTensorError> {
    let mut bytes = safetensors::serialize(tensors, Some(metadata.clone().into_iter().collect()))?;
    let length = bytes.first_chunk::<LENGTH>().map_or(0, |length| u64::from_le_bytes(*length) as usize);
    if let Some(header) = bytes.get_mut(LENGTH..LENGTH + length) {
        let mut fields: Map<String, Value> = serde_json::from_slice(header)?;
        if let Some(Value::Object(said)) = fields.get_mut("__metadata__") {
            said.sort_keys();
        }
        // The same values in another order take as many bytes; what is left is padding.
        let sorted = serde_json::to_vec(&fields)?;
        if let Some(start) = header.get_mut(..sorted.len()) {
            start.copy_from_slice(&sorted);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    type TestResult = Result<(), Box<dyn std::error::Error>>;

    #[test]
    fn the_same_contents_are_the_same_bytes() -> TestResult {
        let metadata: BTreeMap<String, String> = (0..40).map(|i| (format!("key {i}"), format!("\"{i}\"\n"))).collect();
        let tensors = [("b", Tensor::new(&[1f32, 2.0], &Device::Cpu)?), ("a", Tensor::new(3f32, &Device::Cpu)?)];
        let bytes = safetensors_bytes(tensors.clone(), &metadata)?;
        // A hash map has another order each time that it is made.
        for _ in 0..5 {
            assert_eq!(safetensors_bytes(tensors.clone(), &metadata)?, bytes);
        }
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let said = header.metadata().clone().ok_or("no metadata")?;
        assert_eq!(said.into_iter().collect::<BTreeMap<_, _>>(), metadata);
        let read = safetensors::SafeTensors::deserialize(&bytes)?;
        assert_eq!(read.tensor("b")?.data(), [1f32, 2.0].map(f32::to_le_bytes).as_flattened());
        Ok(())
    }
}
