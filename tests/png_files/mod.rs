//! PNG files chunk by chunk.
#![allow(dead_code)] // every test binary uses a part

/// What a PNG file begins with.
const MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A PNG file of these chunks.
pub fn png_file<'a>(chunks: impl IntoIterator<Item = (&'a [u8; 4], &'a [u8])>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for (name, data) in chunks {
        let mut crc = flate2::Crc::new();
        crc.update(name);
        crc.update(data);
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend([&name[..], data, &crc.sum().to_be_bytes()[..]].concat());
    }
    bytes
}

/// The chunks of a PNG file that is whole.
pub fn chunks_of(file: &[u8]) -> Option<Vec<([u8; 4], Vec<u8>)>> {
    let mut rest = file.strip_prefix(MAGIC)?;
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (name, after) = after.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        chunks.push((*name, after.get(..length)?.to_vec()));
        rest = after.get(length + 4..)?;
    }
    Some(chunks)
}
