//! The directory of a zip file whose entries are stored, not compressed: the form that PyTorch saves in.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of the record that ends a zip file, without its comment.
const END: usize = 22;

/// The longest comment that may follow it.
const LONGEST_COMMENT: usize = 0xffff;

/// A field of 32 bits that says: look into the 64-bit extension.
const ELSEWHERE: u64 = 0xffff_ffff;

/// Reads little-endian numbers at checked places.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        let end = at.checked_add(N);
        let slice = end.and_then(|end| self.0.get(at..end)).and_then(|slice| slice.try_into().ok());
        slice.ok_or_else(|| format!("it ends before byte {at} of its directory; it is truncated, get it again"))
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

/// The place of each entry's bytes.
///
/// # Errors
/// If the directory is damaged, or an entry is compressed or encrypted.
pub(super) fn entries(file: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let reader = Reader(file);
    let (count, mut at) = directory(file)?;
    let mut entries = BTreeMap::new();
    for _ in 0..count {
        if reader.bytes(at)? != *b"PK\x01\x02" {
            return Err("its directory is damaged; get it again".into());
        }
        let (flags, method) = (reader.u16(at + 8)?, reader.u16(at + 10)?);
        let [name_length, extra_length, comment_length] =
            [reader.u16(at + 28)?, reader.u16(at + 30)?, reader.u16(at + 32)?];
        let name_end = at + 46 + name_length;
        let name = file.get(at + 46..name_end).and_then(|name| std::str::from_utf8(name).ok());
        let name = name.ok_or("its directory has a name that is no text; get it again")?.to_owned();
        if method != 0 || flags & 1 != 0 {
            return Err(format!("its entry {name} is compressed or encrypted, which PyTorch never does"));
        }
        let mut numbers = [reader.u32(at + 24)?, reader.u32(at + 20)?, reader.u32(at + 42)?];
        widen(reader, &mut numbers, name_end, extra_length)?;
        let [size, stored_size, header] = numbers;
        if size != stored_size {
            return Err(format!("its entry {name} has two lengths, {size} and {stored_size}; get it again"));
        }
        let range =
            contents(reader, file.len(), header, size).map_err(|reason| format!("its entry {name} {reason}"))?;
        if entries.insert(name.clone(), range).is_some() {
            return Err(format!("it has two entries called {name}"));
        }
        at = name_end + extra_length + comment_length;
    }
    Ok(entries)
}

/// The number of entries and where their list starts.
fn directory(file: &[u8]) -> Result<(u64, usize), String> {
    let reader = Reader(file);
    let earliest = file.len().saturating_sub(END + LONGEST_COMMENT);
    let end = (earliest..=file.len().saturating_sub(END)).rev().find(|&at| file[at..].starts_with(b"PK\x05\x06"));
    let end = end.ok_or("its directory, which comes last, is missing; it is truncated, get it again")?;
    let (mut count, mut start) = (reader.u16(end + 10)? as u64, reader.u32(end + 16)?);
    if let Some(locator) = end.checked_sub(20).filter(|&at| file[at..].starts_with(b"PK\x06\x07")) {
        let wide = place(reader.u64(locator + 8)?)?;
        if reader.bytes(wide)? != *b"PK\x06\x06" {
            return Err("its 64-bit directory is damaged; get it again".into());
        }
        (count, start) = (reader.u64(wide + 32)?, reader.u64(wide + 48)?);
    }
    // Each entry takes 46 bytes and more.
    if count > file.len() as u64 / 46 {
        return Err(format!("its directory promises {count} entries, for which it has no room; get it again"));
    }
    Ok((count, place(start)?))
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
fn contents(reader: Reader<'_>, length: usize, header: u64, size: u64) -> Result<Range<usize>, String> {
    let header = place(header)?;
    if reader.bytes(header)? != *b"PK\x03\x04" {
        return Err("has no header; get the file again".into());
    }
    let start = header + 30 + reader.u16(header + 26)? + reader.u16(header + 28)?;
    let end = start.checked_add(place(size)?).filter(|&end| end <= length);
    end.map(|end| start..end).ok_or_else(|| "goes beyond the end; the file is truncated, get it again".into())
}

/// A place in a file, far enough from the largest number that small sums cannot overflow.
fn place(number: u64) -> Result<usize, String> {
    usize::try_from(number)
        .ok()
        .filter(|&n| n < usize::MAX / 4)
        .ok_or_else(|| format!("its directory points to byte {number}; get it again"))
}
