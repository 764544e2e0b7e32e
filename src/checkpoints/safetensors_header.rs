//! The header of a safetensors file.
//!
//! The format's own library reads it too, by way of a copy of all values that takes many times their bytes.

use super::safetensors_file::{check_count, check_shape};
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use std::collections::HashMap;
use std::fmt;

/// What the file says of itself, a text under each name.
const SAID: &str = "__metadata__";

/// Reads a header, in memory of a small multiple of its length, and checks that its tensors lie one behind the other.
pub(super) fn parse(json: &[u8]) -> Result<Metadata, serde_json::Error> {
    serde_json::from_slice(json).map(|Header(metadata)| metadata)
}

struct Header(Metadata);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut said = None;
        let mut tensors: HashMap<String, TensorInfo> = HashMap::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == SAID {
                said = map.next_value()?;
                continue;
            }
            let info: TensorInfo = map.next_value()?;
            check_shape(&name, &info.shape).map_err(A::Error::custom)?;
            tensors.insert(name, info);
            check_count(tensors.len()).map_err(A::Error::custom)?;
        }
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        Metadata::new(said, tensors).map(Header).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_the_formats_library_reads() -> Result<(), serde_json::Error> {
        let json = br#"{"b":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]},"__metadata__":{"format":"pt"},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   "#;
        let (own, other): (Metadata, Metadata) = (parse(json)?, serde_json::from_slice(json)?);
        assert_eq!(own.metadata(), other.metadata());
        assert_eq!(own.offset_keys(), other.offset_keys());
        assert_eq!(format!("{:?}", own.info("b")), format!("{:?}", other.info("b")));
        for damaged in [
            &br#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,5]}}"#[..],
            br#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            br#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
            br#"{"a":1}"#,
            b"[]",
        ] {
            assert!(parse(damaged).is_err() && serde_json::from_slice::<Metadata>(damaged).is_err());
        }
        // Of no values, and yet its strides cannot be computed.
        let empty = br#"{"a":{"dtype":"F32","shape":[0,4294967296,4294967296,2],"data_offsets":[0,0]}}"#;
        assert!(parse(empty).is_err_and(|error| error.to_string().contains("tensor a has shape [0, 4294967296")));
        Ok(())
    }
}
