//! The directory of a zip file: the form that PyTorch and NumPy save in.

use super::mapped::Bytes;
use crate::{Error, ErrorKind};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Bytes of the record that ends a zip file, without its comment.
const END: usize = 22;

/// The longest comment that may follow it.
const LONGEST_COMMENT: usize = 0xffff;

/// Bytes of the record before it that tells where the 64-bit one is, where there is one.
const LOCATOR: usize = 20;

/// Bytes of the 64-bit record.
const WIDE: usize = 56;

/// Bytes of an entry's own header, without its name.
const HEADER: usize = 30;

/// Bytes; that of a model has some hundred for each tensor.
const LARGEST_DIRECTORY: usize = 64 << 20;

/// The method of compression that NumPy uses.
const DEFLATE: usize = 8;

/// A field of 32 bits that says: look into the 64-bit extension.
const ELSEWHERE: u64 = 0xffff_ffff;

/// Why a file cannot be taken apart.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is not as it should be.
    Damaged(String),
    /// It cannot be read.
    Unreadable(Error),
}

impl Failure {
    /// As an error of the file.
    pub fn of(self, kind: &'static str, path: &Path) -> Error {
        match self {
            Self::Damaged(reason) => Error::malformed(ErrorKind::Model, kind, path, reason),
            Self::Unreadable(error) => error,
        }
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Damaged(reason)
    }
}

impl From<&str> for Failure {
    fn from(reason: &str) -> Self {
        Self::Damaged(reason.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Unreadable(error)
    }
}

/// Reads little-endian numbers of a part of a file, at checked places, which count from its beginning.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        let end = at.checked_add(N);
        let slice = end.and_then(|end| self.0.get(at..end)).and_then(|slice| slice.try_into().ok());
        slice.ok_or_else(|| format!("its directory ends before its byte {at}; it is truncated, get it again"))
    }

    fn u16(&self, at: usize) -> Result<usize, String> {
        Ok(u16::from_le_bytes(self.bytes(at)?).into())
    }

    fn u32(&self, at: usize) -> Result<u64, String> {
        Ok(u32::from_le_bytes(self.bytes(at)?).into())
    }

    fn u64(&self, at: usize) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.bytes(at)?))
    }
}

/// An entry of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The place of its bytes.
    pub range: Range<usize>,
    /// How many there are when they are unpacked.
    pub size: u64,
    /// Whether they are packed, by the method called deflate.
    pub deflated: bool,
}

/// The place of each entry's bytes, none of which is packed.
///
/// # Errors
/// If the directory is damaged, or an entry is compressed or encrypted.
pub(super) fn entries(file: &Bytes) -> Result<BTreeMap<String, Range<usize>>, Failure> {
    let entries = packed_entries(file)?.into_iter();
    let stored = entries.map(|(name, Entry { range, deflated, .. })| match deflated {
        true => Err(Failure::Damaged(format!("its entry {name} is compressed or encrypted, which PyTorch never does"))),
        false => Ok((name, range)),
    });
    stored.collect()
}

/// Each entry.
///
/// # Errors
/// If the directory is damaged, or an entry is encrypted or packed by another method than deflate.
pub(super) fn packed_entries(file: &Bytes) -> Result<BTreeMap<String, Entry>, Failure> {
    let (count, directory) = directory(file)?;
    let directory = file.part(directory)?;
    let reader = Reader(&directory);
    let mut at = 0;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        if reader.bytes(at)? != *b"PK\x01\x02" {
            return Err("its directory is damaged; get it again".into());
        }
        let (flags, method) = (reader.u16(at + 8)?, reader.u16(at + 10)?);
        let [name_length, extra_length, comment_length] =
            [reader.u16(at + 28)?, reader.u16(at + 30)?, reader.u16(at + 32)?];
        let name_end = at + 46 + name_length;
        let name = directory.get(at + 46..name_end).and_then(|name| std::str::from_utf8(name).ok());
        let name = name.ok_or("its directory has a name that is no text; get it again")?.to_owned();
        let deflated = method == DEFLATE;
        if (method != 0 && !deflated) || flags & 1 != 0 {
            return Err(format!("its entry {name} is compressed or encrypted, which is not read").into());
        }
        let mut numbers = [reader.u32(at + 24)?, reader.u32(at + 20)?, reader.u32(at + 42)?];
        widen(reader, &mut numbers, name_end, extra_length)?;
        let [size, stored_size, header] = numbers;
        if size != stored_size && !deflated {
            return Err(format!("its entry {name} has two lengths, {size} and {stored_size}; get it again").into());
        }
        let range = contents(file, &name, header, stored_size)?;
        if entries.insert(name.clone(), Entry { range, size, deflated }).is_some() {
            return Err(format!("it has two entries called {name}").into());
        }
        at = name_end + extra_length + comment_length;
    }
    Ok(entries)
}

/// The number of entries and where their list is.
fn directory(file: &Bytes) -> Result<(u64, Range<usize>), Failure> {
    let first = file.len().saturating_sub(LOCATOR + END + LONGEST_COMMENT);
    let last = file.part(first..file.len())?;
    let reader = Reader(&last);
    let earliest = last.len().saturating_sub(END + LONGEST_COMMENT);
    let end = (earliest..=last.len().saturating_sub(END)).rev().find(|&at| last[at..].starts_with(b"PK\x05\x06"));
    let end = end.ok_or("its directory, which comes last, is missing; it is truncated, get it again")?;
    let (mut count, mut start) = (reader.u16(end + 10)? as u64, reader.u32(end + 16)?);
    if let Some(locator) = end.checked_sub(LOCATOR).filter(|&at| last[at..].starts_with(b"PK\x06\x07")) {
        let wide = place(reader.u64(locator + 8)?)?;
        let wide = file.part(wide.min(file.len())..(wide + WIDE).min(file.len()))?;
        let reader = Reader(&wide);
        if reader.bytes(0)? != *b"PK\x06\x06" {
            return Err("its 64-bit directory is damaged; get it again".into());
        }
        (count, start) = (reader.u64(32)?, reader.u64(48)?);
    }
    // Each entry takes 46 bytes and more.
    if count > file.len() as u64 / 46 {
        return Err(format!("its directory promises {count} entries, for which it has no room; get it again").into());
    }
    let (start, end) = (place(start)?, first + end);
    if start > end || end - start > LARGEST_DIRECTORY {
        return Err(format!("its directory cannot be from byte {start} to byte {end}; get it again").into());
    }
    Ok((count, start..end))
}

/// Fills in the numbers that stand in the 64-bit extension, in its order: size, stored size, place of the header.
fn widen(reader: Reader<'_>, numbers: &mut [u64; 3], extra: usize, length: usize) -> Result<(), String> {
    let mut at = extra;
    while at + 4 <= extra + length {
        let (kind, size) = (reader.u16(at)?, reader.u16(at + 2)?);
        if kind == 1 {
            let mut field = at + 4;
            for number in numbers.iter_mut().filter(|number| **number == ELSEWHERE) {
                *number = reader.u64(field)?;
                field += 8;
            }
        }
        at += 4 + size;
    }
    Ok(())
}

/// The bytes after an entry's own header.
fn contents(file: &Bytes, name: &str, header: u64, size: u64) -> Result<Range<usize>, Failure> {
    let header = place(header)?;
    let bytes = file.part(header.min(file.len())..(header + HEADER).min(file.len()))?;
    if !bytes.starts_with(b"PK\x03\x04") {
        return Err(format!("its entry {name} has no header; get the file again").into());
    }
    let reader = Reader(&bytes);
    let start = header + HEADER + reader.u16(26)? + reader.u16(28)?;
    let end = start.checked_add(place(size)?).filter(|&end| end <= file.len());
    let end =
        end.ok_or_else(|| format!("its entry {name} goes beyond the end; the file is truncated, get it again"))?;
    Ok(start..end)
}

/// A place in a file, far enough from the largest number that small sums cannot overflow.
fn place(number: u64) -> Result<usize, String> {
    usize::try_from(number)
        .ok()
        .filter(|&n| n < usize::MAX / 4)
        .ok_or_else(|| format!("its directory points to byte {number}; get it again"))
}
