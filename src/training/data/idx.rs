//! The IDX files of MNIST (LeCun, Cortes and Burges), Fashion-MNIST (Xiao et al. 2017) and others alike.

use super::ImageSet;
use super::image_set::checked_size;
use crate::files::hexadecimal;
use crate::{Error, ErrorKind, Result};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What a network is trained on.
    Train,
    /// What it is judged by.
    Test,
}

/// The files as they are published: images and labels for training, then for testing.
pub const IDX_FILES: [&str; 4] = [
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
];

const KIND: &str = "IDX file";
/// Zero, zero, "unsigned bytes", the number of dimensions.
const IMAGES: u32 = 0x0000_0803;
const LABELS: u32 = 0x0000_0801;

impl Split {
    /// The published names of its images and labels.
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Train => [IDX_FILES[0], IDX_FILES[1]],
            Self::Test => [IDX_FILES[2], IDX_FILES[3]],
        }
    }
}

/// Whether a folder has any of the files.
pub fn has_idx(folder: &Path) -> bool {
    IDX_FILES.iter().any(|name| find_idx(folder, name).is_some())
}

/// Reads a part of a set in IDX files: `train-images-idx3-ubyte` and so on, plain or compressed by gzip, also with
/// the dot that some copies have, `train-images.idx3-ubyte`. The classes' names are their numbers.
///
/// # Errors
/// If a file is missing, is no IDX file, or ends early; or images and labels are not of the same number.
pub fn read_idx(folder: &Path, split: Split) -> Result<ImageSet> {
    let [images, labels] = split.names().map(|name| find_idx(folder, name).ok_or_else(|| missing(folder, name)));
    let (images, labels) = (images?, labels?);
    let ([count, height, width], pixels) = read::<3>(&images, IMAGES, "images")?;
    let ([label_count], bytes) = read::<1>(&labels, LABELS, "labels")?;
    if count != label_count {
        let reason = format!(
            "it has {label_count} labels, and {} has {count} images; take both from the same set",
            images.display()
        );
        return Err(Error::malformed(ErrorKind::File, KIND, &labels, reason));
    }
    let classes = bytes.iter().max().map_or(0, |&largest| u32::from(largest) + 1);
    let labels = bytes.into_iter().map(u32::from).collect();
    ImageSet::new([1, height, width], pixels)?.with_labels(labels, (0..classes).map(|c| c.to_string()).collect())
}

/// The file of a folder that stands for a published name: itself, decompressed, or with a dot.
pub fn find_idx(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = name.trim_end_matches(".gz");
    let dotted = plain.replace("-idx", ".idx");
    let names = [plain.to_owned(), name.to_owned(), dotted.clone(), format!("{dotted}.gz")];
    names.into_iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

fn missing(folder: &Path, name: &str) -> Error {
    let fix = format!(
        "MNIST is {}: give the folder that has them, or add `download` to fetch them into it; Fashion-MNIST has the \
         same names (on Debian in the package dataset-fashion-mnist, below /usr/share/datasets)",
        IDX_FILES.join(", ")
    );
    Error::unusable(ErrorKind::File, format!("the file {}", folder.join(name).display()), "missing", fix)
}

/// The dimensions and values of a file. Memory is asked for as the values come, so a header that promises more
/// than the file has costs nothing.
fn read<const N: usize>(path: &Path, magic: u32, what: &str) -> Result<([usize; N], Vec<u8>)> {
    let mut reader = open(path)?;
    let fail = |e: io::Error, part: &str| match e.kind() {
        io::ErrorKind::UnexpectedEof => Error::malformed(
            ErrorKind::File,
            KIND,
            path,
            format!("it ends within {part}; it is truncated, get it again"),
        ),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            Error::malformed(ErrorKind::File, "gzip file", path, format!("{e}; it is damaged, get it again"))
        }
        _ => Error::io("read", path)(e),
    };
    let mut word = || -> io::Result<u32> {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    };
    let found = word().map_err(|e| fail(e, "its header"))?;
    if found != magic {
        let reason = format!("it starts with {found:#010x}, and a file of {what} with {magic:#010x}");
        return Err(Error::malformed(ErrorKind::File, KIND, path, reason));
    }
    let mut dims = [0usize; N];
    for dim in &mut dims {
        *dim = word().map_err(|e| fail(e, "its header"))? as usize;
    }
    if dims.contains(&0) {
        return Err(Error::malformed(
            ErrorKind::File,
            KIND,
            path,
            format!("its header gives the dimensions {dims:?}, which hold nothing"),
        ));
    }
    let side = |i: usize| dims.get(i).copied().unwrap_or(1);
    let expected = checked_size(dims[0], [1, side(1), side(2)]).map_err(|e| {
        Error::malformed(ErrorKind::File, KIND, path, format!("its header gives the dimensions {dims:?}: {e}"))
    })?;
    let mut values = Vec::new();
    // One byte more than there should be, which also makes gzip compare its checksum.
    let read = reader.take(expected as u64 + 1).read_to_end(&mut values);
    read.map_err(|e| fail(e, &format!("the {expected} bytes of {what}")))?;
    if values.len() != expected {
        let more = if values.len() > expected { "more".into() } else { values.len().to_string() };
        let reason = format!("its header promises {expected} bytes of {what} and it has {more}; get it again");
        return Err(Error::malformed(ErrorKind::File, KIND, path, reason));
    }
    Ok((dims, values))
}

/// The SHA-256 of what a file holds, decompressed if it is compressed, in hexadecimal: the same for every way of
/// compressing it.
///
/// # Errors
/// If it cannot be read, or holds more than [`LARGEST_SET`](super::LARGEST_SET).
pub fn contents_sha256(path: &Path) -> Result<String> {
    let mut reader = open(path)?.take(super::LARGEST_SET + 1);
    let (mut hasher, mut total) = (Sha256::new(), 0u64);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                total += count as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                return Err(Error::malformed(
                    ErrorKind::File,
                    "gzip file",
                    path,
                    format!("{e}; it is damaged, get it again"),
                ));
            }
        }
    }
    if total > super::LARGEST_SET {
        return Err(Error::malformed(ErrorKind::File, KIND, path, "it holds more than any data set that is read"));
    }
    Ok(hexadecimal(&hasher.finalize()))
}

/// The contents of a file, decompressed if it starts as gzip does, whatever its name says.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let fail = || Error::io("read", path);
    let mut file = File::open(path).map_err(fail())?;
    let mut start = [0; 2];
    let compressed = file.read_exact(&mut start).is_ok() && start == [0x1f, 0x8b];
    file.rewind().map_err(fail())?;
    let reader = BufReader::with_capacity(1 << 16, file);
    Ok(if compressed { Box::new(GzDecoder::new(reader)) } else { Box::new(reader) })
}
