//! A folder of pictures as a data set.

use super::ImageSet;
use super::captioned::training_part;
use super::image_set::checked_size;
use super::listing::{Listing, list};
use super::planes::Planes;
use crate::images::{CropBox, Photo};
use crate::{Error, ErrorKind, Result};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// How pictures of a folder become a set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FolderOptions {
    /// Side of the square that each picture is made to: its centre is cut out, then resampled (Lanczos). Without it, all
    /// have to be of one size.
    pub resize: Option<usize>,
    /// Channels of the set, 1 or 3. Without it, 1 if every picture is grey, else 3.
    pub channels: Option<usize>,
}

/// Whether [`read_folder`] finds a picture in a folder, or in the folder `train` in it if there is one.
pub fn has_pictures(folder: &Path) -> bool {
    list(&training_part(folder)).is_ok()
}

/// Pictures that are decoded before one that failed is reported.
const CHUNK: usize = 512;

/// Reads a folder of PNG, JPEG and WebP files, in the order of their names.
///
/// Labels come from a `metadata.jsonl` in it, one JSON object a line with `file_name` and `label` (or `class`), and
/// texts from its `text` (or `caption`), as in Hugging Face's imagefolder; or else from the names of sub-folders.
/// Classes are in the order of their names, by number if all are numbers. Hidden files and files of other kinds are
/// passed over, links are followed.
///
/// # Errors
/// If there is no picture, one cannot be read, sizes differ, labels are not clear, or the set is larger than
/// [`LARGEST_SET`](super::LARGEST_SET).
pub fn read_folder(folder: &Path, options: FolderOptions) -> Result<ImageSet> {
    let FolderOptions { resize, channels } = options;
    if let Some(side) = resize.filter(|side| !(1..=4096).contains(side)) {
        return Err(Error::invalid("the side to resize to", side, "give from 1 to 4096 pixels"));
    }
    if let Some(channels) = channels.filter(|channels| ![1, 3].contains(channels)) {
        return Err(Error::invalid("the number of channels", channels, "pictures are read as 1 (grey) or 3 (RGB)"));
    }
    let Listing { paths, labels, classes, captions, .. } = list(folder)?;
    let decoded = decode(&paths, options)?;
    let channels = channels.unwrap_or(if decoded.iter().all(|planes| planes.channels == 1) { 1 } else { 3 });
    let (height, width) = (decoded[0].height, decoded[0].width);
    let mut pixels = Vec::with_capacity(checked_size(paths.len(), [channels, height, width])?);
    for planes in decoded {
        // One plane stands for three, if other pictures have colours.
        (0..channels / planes.channels).for_each(|_| pixels.extend_from_slice(&planes.values));
    }
    let mut set = ImageSet::new([channels, height, width], pixels)?;
    if let Some(labels) = labels {
        set = set.with_labels(labels, classes)?;
    }
    match captions {
        Some(captions) => set.with_captions(captions),
        None => Ok(set),
    }
}

/// Decodes all pictures, at least one. The first that fails, in their order, is the one reported.
fn decode(paths: &[PathBuf], options: FolderOptions) -> Result<Vec<Planes>> {
    let first = planes(&paths[0], options)?;
    let (width, height) = (first.width, first.height);
    checked_size(paths.len(), [options.channels.unwrap_or(3), height, width])?;
    let mut all = Vec::with_capacity(paths.len());
    all.push(first);
    for chunk in paths[1..].chunks(CHUNK) {
        let decoded: Vec<_> = chunk.par_iter().map(|path| planes(path, options)).collect();
        for (decoded, path) in decoded.into_iter().zip(chunk) {
            let decoded = decoded?;
            if (decoded.width, decoded.height) != (width, height) {
                let value = format!("{width}x{height} in {}", paths[0].display());
                let other = format!("{}x{} in {}", decoded.width, decoded.height, path.display());
                let fix = "all pictures of a set have one size; make them so, or give `resize`, which cuts out \
                           each one's centre and resamples it to N by N";
                return Err(Error::unusable(
                    ErrorKind::File,
                    "the pictures' size",
                    format!("{value} and {other}"),
                    fix,
                ));
            }
            all.push(decoded);
        }
    }
    Ok(all)
}

fn planes(path: &Path, FolderOptions { resize, channels }: FolderOptions) -> Result<Planes> {
    let photo = Photo::read(path)?;
    let grey = photo.color().is_grey();
    let mut picture = photo.to_picture();
    if let Some(size) = resize {
        let (width, height) = (picture.width(), picture.height());
        let side = width.min(height);
        let centre = CropBox { left: (width - side) / 2, top: (height - side) / 2, width: side, height: side };
        picture = picture.crop(&centre)?.resized(size, size)?;
    }
    Ok(Planes::new(&picture, grey, channels))
}
