//! Files as `torch.save` writes them, from the descriptions of zip and of pickle: a second implementation.
#![allow(dead_code)] // every test binary uses a part

use candle_core::{DType, Tensor};
use std::collections::BTreeMap;

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// A zip file of stored entries.
pub fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let (place, size) = (file.len() as u32, bytes.len() as u32);
        // From version, flags and method to the two lengths; the checksum is not looked at.
        let mut common = Vec::from([0u8; 14]);
        common[0] = 20;
        common.extend(size.to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend(0u16.to_le_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*bytes);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0u8; 10]);
        directory.extend(place.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (file.len() as u32, entries.len() as u16);
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count.to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend(0u16.to_le_bytes());
    file
}

/// A text.
pub fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

/// A tuple of whole numbers.
pub fn integers(pickle: &mut Vec<u8>, values: &[usize]) {
    pickle.push(b'(');
    for &value in values {
        pickle.push(b'J');
        pickle.extend((value as u32).to_le_bytes());
    }
    pickle.push(b't');
}

/// What `torch.save` writes for one tensor of f32, its values in the entry `key`.
pub fn tensor(pickle: &mut Vec<u8>, key: &str, shape: &[usize], strides: &[usize]) {
    view(pickle, key, shape.iter().product(), 0, (shape, strides));
}

/// The same of a tensor that is a part of `count` values, from the one at `offset` on.
pub fn view(pickle: &mut Vec<u8>, key: &str, count: usize, offset: u8, (shape, strides): (&[usize], &[usize])) {
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(pickle, "storage");
    pickle.extend(b"ctorch\nFloatStorage\n");
    text(pickle, key);
    text(pickle, "cpu");
    pickle.push(b'J');
    pickle.extend((count as u32).to_le_bytes());
    pickle.extend([b't', b'Q', b'K', offset]);
    integers(pickle, shape);
    integers(pickle, strides);
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

/// The strides of values that follow one another.
pub fn contiguous(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect()
}

/// A checkpoint as PyTorch Lightning leaves it.
pub fn checkpoint(tensors: &BTreeMap<String, Tensor>) -> TestResult<Vec<u8>> {
    let mut pickle = b"\x80\x02}(".to_vec();
    text(&mut pickle, "global_step");
    pickle.extend(b"K\x07");
    text(&mut pickle, "state_dict");
    pickle.extend(b"}(");
    let mut data = Vec::new();
    for (i, (name, value)) in tensors.iter().enumerate() {
        text(&mut pickle, name);
        tensor(&mut pickle, &i.to_string(), value.dims(), &contiguous(value.dims()));
        let values = value.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        data.push((format!("archive/data/{i}"), values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()));
    }
    pickle.extend(b"uu.");
    let mut entries = vec![("archive/data.pkl", pickle.as_slice())];
    entries.extend(data.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    Ok(zip(&entries))
}

/// A file with this pickle, and six values.
pub fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    zip(&[("archive/data.pkl", pickle), ("archive/data/0", &[0; 24])])
}
