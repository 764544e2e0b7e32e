//! Arrays of numbers in NumPy's `.npz` files: a zip file with an `.npy` file for each.

use super::mapped::Bytes;
use super::zip_file::{Entry, Failure, packed_entries};
use crate::files::{Existing, write_file, write_synced};
use crate::{Error, ErrorKind, Result};
use flate2::Crc;
use flate2::read::DeflateDecoder;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

const FORMAT: &str = ".npz file of NumPy";

/// Bytes of the largest file, and of the largest array, that is read.
const LARGEST: u64 = 1 << 30;

/// What an `.npy` file begins with.
const MAGIC: &[u8] = b"\x93NUMPY";

/// The header's length is filled up so that the values start at a multiple of this.
const ALIGNMENT: usize = 64;

/// An array.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NumpyArray {
    pub shape: Vec<usize>,
    /// Row by row.
    pub values: Vec<f64>,
}

/// Arrays of a file by their names, of those that are asked for and there: f64, f32 or whole numbers of 64 bits.
///
/// # Errors
/// If the file cannot be read, is damaged, or an array that is asked for has another type.
pub(crate) fn read_npz(path: &Path, names: &[&str]) -> Result<BTreeMap<String, NumpyArray>> {
    let malformed = |reason: String| Error::malformed(ErrorKind::File, FORMAT, path, reason);
    let size = path.metadata().map_err(Error::io("read", path))?.len();
    if size > LARGEST {
        return Err(malformed(format!("it has {size} bytes, and at most {LARGEST} are read")));
    }
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    if !bytes.starts_with(b"PK") {
        return Err(malformed("it is no zip file; give one that numpy.savez or this program wrote".into()));
    }
    let bytes = Bytes::Gathered(bytes);
    let mut arrays = BTreeMap::new();
    let entries = packed_entries(&bytes).map_err(|failure| match failure {
        Failure::Damaged(reason) => malformed(reason),
        Failure::Unreadable(error) => error,
    })?;
    for (name, entry) in entries {
        let Some(name) = name.strip_suffix(".npy").filter(|name| names.contains(name)) else { continue };
        let array = unpacked(&bytes, &entry).and_then(|bytes| array(&bytes));
        let array = array.map_err(|reason| malformed(format!("its array {name} {reason}")))?;
        arrays.insert(name.to_owned(), array);
    }
    Ok(arrays)
}

/// The bytes of an entry.
fn unpacked(file: &Bytes, Entry { range, size, deflated }: &Entry) -> Result<Vec<u8>, String> {
    let stored = file.part(range.clone()).map_err(|error| error.to_string())?;
    if !deflated {
        return Ok(stored.into_owned());
    }
    if *size > LARGEST {
        return Err(format!("has {size} bytes, and at most {LARGEST} are read"));
    }
    let mut bytes = Vec::new();
    let damaged = |error: std::io::Error| format!("cannot be unpacked ({error}); get the file again");
    // Memory is asked for as the values come, and no more than the directory says.
    DeflateDecoder::new(&*stored).take(size + 1).read_to_end(&mut bytes).map_err(damaged)?;
    match bytes.len() as u64 == *size {
        true => Ok(bytes),
        false => Err("has another length than its directory says; get the file again".into()),
    }
}

/// An array from an `.npy` file: version, length of the header, a Python dictionary, the values.
fn array(bytes: &[u8]) -> Result<NumpyArray, String> {
    let damaged = || "has no header of NumPy's; get the file again".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
    let (&[version, _], rest) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
    let (length, rest) = if version == 1 {
        rest.split_first_chunk::<2>().map(|(length, rest)| (u16::from_le_bytes(*length).into(), rest))
    } else {
        rest.split_first_chunk::<4>().map(|(length, rest)| (u32::from_le_bytes(*length) as usize, rest))
    }
    .ok_or_else(damaged)?;
    let (header, values) = rest.split_at_checked(length).ok_or_else(damaged)?;
    let header = std::str::from_utf8(header).map_err(|_| damaged())?;
    let after =
        |key: &str| header.split_once(key).map(|(_, rest)| rest.trim_start().trim_start_matches(':').trim_start());
    let descr = after("'descr'").and_then(|rest| rest.split('\'').nth(1)).ok_or_else(damaged)?;
    let columns_first = after("'fortran_order'").ok_or_else(damaged)?.starts_with("True");
    let shape = after("'shape'").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).ok_or_else(damaged)?.0;
    let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape = sizes.map(|size| size.parse().map_err(|_| damaged())).collect::<Result<Vec<usize>, _>>()?;
    let values: Vec<f64> = match descr {
        "<f8" => numbers(values, f64::from_le_bytes),
        "<f4" => numbers(values, |bytes| f32::from_le_bytes(bytes).into()),
        "<i8" => numbers(values, |bytes| i64::from_le_bytes(bytes) as f64),
        other => return Err(format!("is of type {other}; float64, float32 and int64 are read")),
    };
    if shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size)) != Some(values.len()) {
        return Err(format!("has {} values for the shape {shape:?}; get the file again", values.len()));
    }
    match (columns_first, shape.as_slice()) {
        (true, &[rows, columns]) => {
            let row = |row: usize| (0..columns).map(move |column| column * rows + row);
            Ok(NumpyArray { values: (0..rows).flat_map(row).map(|at| values[at]).collect(), shape })
        }
        (true, [_, _, ..]) => {
            Err("has its first index in the innermost place, which is not read; save it in C order".into())
        }
        _ => Ok(NumpyArray { shape, values }),
    }
}

fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)).collect()
}

/// Writes arrays as f64, not packed, all or nothing. Returns whether the file was written, which it is not if there is one and that
/// is to be kept.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_npz(path: &Path, existing: Existing, arrays: &[(&str, NumpyArray)]) -> Result<bool> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, array) in arrays {
        let name = format!("{name}.npy");
        let bytes = npy(array);
        let mut crc = Crc::new();
        crc.update(&bytes);
        let start = file.len() as u32;
        // Version, flags, method, time, date (the first that there is), sum, both lengths, those of name and extensions.
        let mut about = Vec::new();
        for number in [20u16, 0, 0, 0, 0x21] {
            about.extend(number.to_le_bytes());
        }
        for number in [crc.sum(), bytes.len() as u32, bytes.len() as u32] {
            about.extend(number.to_le_bytes());
        }
        about.extend((name.len() as u16).to_le_bytes());
        about.extend(0u16.to_le_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(&about);
        file.extend(name.as_bytes());
        file.extend(bytes);
        directory.extend(b"PK\x01\x02");
        directory.extend(20u16.to_le_bytes());
        directory.extend(&about);
        // No comment, the first disk, no attributes.
        directory.extend([0u8; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = file.len() as u32;
    let count = (arrays.len() as u16).to_le_bytes();
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count);
    file.extend(count);
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend(0u16.to_le_bytes());
    write_file(path, existing, |path| write_synced(path, &file))
}

/// An array as an `.npy` file of version 1.
fn npy(NumpyArray { shape, values }: &NumpyArray) -> Vec<u8> {
    let sizes: Vec<String> = shape.iter().map(|size| format!("{size},")).collect();
    let mut header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({}), }}", sizes.join(" "));
    let before = MAGIC.len() + 4;
    let length = (before + header.len() + 1).next_multiple_of(ALIGNMENT) - before;
    header.extend(std::iter::repeat_n(' ', length - header.len() - 1));
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file<T>(bytes: &[u8], then: impl FnOnce(&Path) -> T) -> Result<T> {
        let file = tempfile::NamedTempFile::new().map_err(Error::io("create", Path::new("file")))?;
        std::fs::write(file.path(), bytes).map_err(Error::io("write", file.path()))?;
        Ok(then(file.path()))
    }

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        let a = NumpyArray { shape: vec![2, 3], values: vec![1.0, -2.5, 1e300, 0.0, f64::MIN_POSITIVE, 3.0] };
        let b = NumpyArray { shape: vec![1], values: vec![7.0] };
        let c = NumpyArray { shape: vec![], values: vec![5.0] };
        let arrays = [("a", a.clone()), ("of.b", b.clone()), ("c", c.clone())];
        in_file(b"", |path| {
            assert!(write_npz(path, Existing::GivesWay, &arrays)?);
            let read = read_npz(path, &["a", "of.b", "c", "d"])?;
            assert_eq!(read, [("a", a), ("of.b", b), ("c", c)].map(|(name, array)| (name.to_owned(), array)).into());
            assert!(!write_npz(path, Existing::Stays, &[])?);
            // Whatever is cut off, the end is missing.
            let whole = std::fs::read(path).map_err(Error::io("read", path))?;
            for length in [0, 1, 30, 200, whole.len() - 1] {
                assert!(in_file(&whole[..length], |path| read_npz(path, &["a"]).is_err())?, "{length}");
            }
            Ok(())
        })?
    }

    #[test]
    fn arrays_are_read_by_columns_too() {
        let npy = |descr: &str, order: &str, shape: &str, values: &[u8]| {
            let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
            let length = (header.len() as u32).to_le_bytes();
            array(&[MAGIC, &[2, 0], &length, header.as_bytes(), values].concat())
        };
        let values: Vec<u8> = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let want = NumpyArray { shape: vec![2, 3], values: vec![1.0, 3.0, 5.0, 2.0, 4.0, 6.0] };
        assert_eq!(npy("<f4", "True", "(2, 3)", &values), Ok(want));
        assert!(npy("<f4", "False", "(2, 4)", &values).is_err_and(|e| e.contains("6 values")));
        assert!(npy("<c8", "False", "(6,)", &values).is_err_and(|e| e.contains("<c8")));
        assert!(array(b"\x93NUMPY\x01\0\xff\xff{").is_err_and(|e| e.contains("header")));
    }
}
