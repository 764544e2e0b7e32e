//! Values that a computation puts aside on the disk.

use crate::kernels::is_dry_run;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that are converted at a time.
const PIECE: usize = 1 << 20;

/// A file without a name, which the system removes with the process, however that ends. Places that are freed are used again for as
/// many values.
#[derive(Debug)]
pub(crate) struct ScratchFile {
    file: File,
    folder: PathBuf,
    /// Where the next place begins if none is free.
    end: u64,
    /// The beginnings of free places, by their values.
    free: BTreeMap<usize, Vec<u64>>,
}

/// Where values are in a [`ScratchFile`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    start: u64,
    values: usize,
}

impl ScratchFile {
    /// In the folder that the environment names for temporary files, or in the system's for large ones.
    ///
    /// # Errors
    /// If none can be made there.
    pub fn new() -> Result<Self> {
        let folder = folder();
        let file = tempfile::tempfile_in(&folder).map_err(Error::io("create a temporary file in", &folder))?;
        Ok(Self { file, folder, end: 0, free: BTreeMap::new() })
    }

    /// Puts values aside.
    ///
    /// # Errors
    /// If the disk is full or fails.
    pub fn write(&mut self, values: &[f32]) -> Result<Place> {
        let start = self.free.get_mut(&values.len()).and_then(Vec::pop).unwrap_or(self.end);
        self.end = self.end.max(start + size_of_val(values) as u64);
        if is_dry_run() {
            return Ok(Place { start, values: values.len() });
        }
        let mut bytes = vec![0; PIECE.min(size_of_val(values))];
        let mut write = || {
            self.file.seek(SeekFrom::Start(start))?;
            values.chunks(PIECE / size_of::<f32>()).try_for_each(|values| {
                let bytes = &mut bytes[..size_of_val(values)];
                let each = bytes.as_chunks_mut().0.iter_mut().zip(values);
                each.for_each(|(bytes, value): (&mut [u8; 4], _)| *bytes = value.to_ne_bytes());
                self.file.write_all(bytes)
            })
        };
        write().map_err(Error::io("write a temporary file in", &self.folder))?;
        Ok(Place { start, values: values.len() })
    }

    /// Reads values that were put aside.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn read(&mut self, place: &Place) -> Result<Vec<f32>> {
        if is_dry_run() {
            return Ok(vec![0.0; place.values]);
        }
        let mut values = Vec::with_capacity(place.values);
        let mut bytes = vec![0; PIECE.min(place.values * size_of::<f32>())];
        let mut read = || {
            self.file.seek(SeekFrom::Start(place.start))?;
            while values.len() < place.values {
                let count = (place.values - values.len()).min(PIECE / size_of::<f32>());
                let bytes = &mut bytes[..count * size_of::<f32>()];
                self.file.read_exact(bytes)?;
                values.extend(bytes.as_chunks().0.iter().map(|bytes: &[u8; 4]| f32::from_ne_bytes(*bytes)));
            }
            Ok(())
        };
        read().map_err(Error::io("read a temporary file in", &self.folder))?;
        Ok(values)
    }

    /// Gives a place back.
    pub fn free(&mut self, place: Place) {
        self.free.entry(place.values).or_default().push(place.start);
    }
}

/// Where files may be large: the general folder is in memory on many systems.
fn folder() -> PathBuf {
    let of_large_files = Path::new("/var/tmp");
    let is_named = std::env::var_os("TMPDIR").is_some();
    if !is_named && of_large_files.is_dir() { of_large_files.to_path_buf() } else { std::env::temp_dir() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_places_are_used_again() -> Result<()> {
        let mut scratch = ScratchFile::new()?;
        // The middle one is of several pieces, and the last of not quite one.
        let values = |count: usize, sign: f32| (0..count).map(|i| sign * (i as f32 + 0.1)).collect::<Vec<f32>>();
        let kept = [values(3, 1.0), values(700_001, 1.0), values(0, 1.0), values(262_143, 1.0)];
        let mut places = kept.iter().map(|values| scratch.write(values)).collect::<Result<Vec<_>>>()?;
        for (values, place) in kept.iter().zip(&places) {
            assert!(scratch.read(place)? == *values);
        }
        let end = scratch.end;
        scratch.free(places.remove(1));
        let again = scratch.write(&values(700_001, -1.0))?;
        assert_eq!(scratch.end, end);
        assert!(scratch.read(&again)? == values(700_001, -1.0));
        assert!(scratch.read(&places[0])? == kept[0] && scratch.read(&places[2])? == kept[3]);
        Ok(())
    }
}
