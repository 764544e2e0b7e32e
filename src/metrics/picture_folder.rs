//! Features of the pictures of a folder.

use super::extraction::{Extraction, Kept, PictureSet};
use super::feature_network::FeatureNetwork;
use crate::images::{ColorType, Photo, Samples};
use crate::models::Watch;
use crate::training::data::{ImageSet, Split, has_idx, picture_files, read_idx};
use crate::{Error, Result};
use rayon::prelude::*;
use std::ops::ControlFlow;
use std::path::Path;

/// Picture files that are decoded at a time.
const DECODED: usize = 64;

/// Features of the pictures of a folder: IDX files (MNIST), or PNG, JPEG and WebP files, as training reads them. Files are read
/// a few at a time, so the memory does not depend on their number.
///
/// # Errors
/// [`Error::Cancelled`] if `watch` breaks; if there is no picture, one cannot be read, or sizes differ.
pub fn features_of_folder(
    network: &dyn FeatureNetwork,
    folder: &Path,
    split: Split,
    kept: Kept,
    watch: &mut Watch<'_>,
) -> Result<PictureSet> {
    let mut extraction = Extraction::new(network, kept);
    if has_idx(folder) {
        let set = read_idx(folder, split)?;
        for index in 0..set.len() {
            extraction.add(&photo(&set, index)?, &format!("{} (number {index})", folder.display()))?;
            told(watch(index + 1, set.len()))?;
        }
        return extraction.finish();
    }
    let paths = picture_files(folder, split)?;
    let mut done = 0;
    for chunk in paths.chunks(DECODED) {
        let photos: Vec<_> = chunk.par_iter().map(|path| Photo::read(path)).collect();
        for (photo, path) in photos.into_iter().zip(chunk) {
            extraction.add(&photo?, &path.display().to_string())?;
            done += 1;
            told(watch(done, paths.len()))?;
        }
    }
    extraction.finish()
}

/// A grey picture of a set.
fn photo(set: &ImageSet, index: usize) -> Result<Photo> {
    let bytes = set.pixels(index).unwrap_or_default().to_vec();
    Photo::new(set.width(), set.height(), ColorType::Grey, Samples::Eight(bytes))
}

fn told(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Cancelled) } else { Ok(()) }
}
