//! Pictures with what they show, on which a judge is trained.

use super::captioned::fitted;
use super::image_set::{checked_size, scaled};
use super::listing::{METADATA, in_line, list};
use super::shuffle::{EpochOrder, SplitMix64};
use super::{BatchSource, DecodedPictures, ImageSet};
use crate::files::hexadecimal;
use crate::images::{Photo, Picture};
use crate::models::judge::{JudgeClasses, Labels, Shown, Unsaid};
use crate::noise::TorchGenerator;
use crate::{Device, Error, ErrorKind, Result, Tensor};
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Channels of pictures.
const CHANNELS: usize = 3;
/// Pictures that are decoded before one that failed is reported.
const CHUNK: usize = 512;

/// Pictures with what they show, in memory at the size that a judge looks at.
#[derive(Debug)]
pub struct JudgedPictures {
    files: PictureFiles,
    shown: Vec<Shown>,
    averaged: ImageSet,
}

/// The files of pictures that are squares of one size.
#[derive(Debug)]
struct PictureFiles {
    paths: Vec<PathBuf>,
    /// The line of each in the list.
    lines: Vec<usize>,
    list: PathBuf,
    side: usize,
    /// Whether pictures of another size are made to it.
    resizes: bool,
}

impl PictureFiles {
    fn read(&self, index: usize) -> Result<Picture> {
        let fix = format!("there are {}", self.paths.len());
        let path = self.paths.get(index).ok_or_else(|| Error::invalid("the number of a picture", index, fix))?;
        let photo = Photo::read(path).map_err(|error| in_line(&error, &self.list, self.lines[index]))?;
        let (picture, side) = (photo.to_picture(), self.side);
        if self.resizes {
            return fitted(picture, (side, side));
        }
        match (picture.width(), picture.height()) == (side, side) {
            true => Ok(picture),
            false => {
                let value = format!("{}x{} in {}", picture.width(), picture.height(), path.display());
                let fix = format!(
                    "all are squares of one size, here {side}x{side}; give `resize` to cut out each one's centre and resample it"
                );
                Err(Error::invalid("the pictures' size", value, fix))
            }
        }
    }
}

impl JudgedPictures {
    /// Reads the pictures of a folder, in the order of their names, and averages them to squares of `sample_size`.
    ///
    /// A `metadata.jsonl` in it has an object `shows` in each line, in the form of [`Shown`]. The pictures are squares of one size;
    /// with `resize` each one's centre is cut out and resampled to it first.
    ///
    /// # Errors
    /// If there is no such list, a line does not say what its picture shows, or a picture cannot be used; the message names the
    /// line.
    pub fn read(folder: &Path, resize: Option<usize>, sample_size: usize) -> Result<Self> {
        if let Some(side) = resize.filter(|side| !(1..=4096).contains(side)) {
            return Err(Error::invalid("the side to resize to", side, "give from 1 to 4096 pixels"));
        }
        let metadata = folder.join(METADATA);
        if !metadata.is_file() {
            let fix = "a judge is trained on pictures of which a metadata.jsonl says under shows what they show";
            return Err(Error::missing(format!("the list {}", metadata.display()), "missing", fix));
        }
        let listing = list(folder)?;
        let fail = |line: usize, reason: String| {
            Error::malformed(ErrorKind::File, "list of pictures", &metadata, format!("line {line}: {reason}"))
        };
        let shown = listing.shows.iter().zip(&listing.lines).map(|(shows, &line)| match shows {
            Some(Value::Object(fields)) => {
                Shown::from_json(fields).map_err(|reason| fail(line, format!("under shows, {reason}")))
            }
            Some(other) => Err(fail(line, format!("shows is {other}; it must be an object"))),
            None => Err(fail(line, "it does not say under shows what its picture shows".into())),
        });
        let shown = shown.collect::<Result<_>>()?;
        let (paths, lines) = (listing.paths, listing.lines);
        let mut files = PictureFiles { paths, lines, list: metadata, side: 0, resizes: resize.is_some() };
        files.side = match resize {
            Some(side) => side,
            None => {
                Photo::read(&files.paths[0]).map_err(|error| in_line(&error, &files.list, files.lines[0]))?.height()
            }
        };
        let averaged = averaged(&files, sample_size)?;
        Ok(Self { files, shown, averaged })
    }

    /// The number of pictures; never 0.
    #[allow(clippy::len_without_is_empty)] // a set has at least one picture
    pub fn len(&self) -> usize {
        self.shown.len()
    }

    /// What each shows.
    pub fn shown(&self) -> &[Shown] {
        &self.shown
    }

    /// Height and width of the pictures as an autoencoder gets them, in pixels.
    pub fn side(&self) -> usize {
        self.files.side
    }

    /// The pictures at the size that a judge looks at.
    pub fn averaged(&self) -> &ImageSet {
        &self.averaged
    }

    /// A picture as an autoencoder gets it, from its file.
    ///
    /// # Errors
    /// If there is no such picture, it cannot be read, or is no square of the size of all.
    pub fn picture(&self, index: usize) -> Result<Picture> {
        self.files.read(index)
    }

    /// The SHA-256 of the averaged pictures and of what they show, in hexadecimal: what a resumed run compares.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(self.averaged.fingerprint());
        hasher.update((self.files.side as u64).to_le_bytes());
        for shown in &self.shown {
            hasher.update(format!("{shown:?}\n"));
        }
        hexadecimal(&hasher.finalize())
    }
}

fn averaged(files: &PictureFiles, size: usize) -> Result<ImageSet> {
    let indices: Vec<usize> = (0..files.paths.len()).collect();
    let mut pixels = Vec::with_capacity(checked_size(indices.len(), [CHANNELS, size, size])?);
    for chunk in indices.chunks(CHUNK) {
        let read = |&index: &usize| Ok(planes(&files.read(index)?.averaged(size, size)?));
        // The first that fails, in their order, is the one reported.
        let read: Vec<Result<Vec<u8>>> = chunk.par_iter().map(read).collect();
        for planes in read {
            pixels.extend(planes?);
        }
    }
    ImageSet::new([CHANNELS, size, size], pixels)
}

/// A picture's bytes, `[channel, row, column]`.
pub(super) fn planes(picture: &Picture) -> Vec<u8> {
    (0..CHANNELS).flat_map(|channel| picture.rgb().iter().skip(channel).step_by(CHANNELS).copied()).collect()
}

/// Random changes of a picture of the size that a judge looks at, which make it right on generated pictures too.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct JudgeAugmentation {
    /// The most pixels that a picture is moved by along each axis; what comes in repeats its edge.
    pub shift: usize,
    /// How much of the mean of each three by three pixels, weighted 1, 2, 1 along each axis, is mixed in at most, 0 to 1.
    pub blur: f64,
    /// The largest standard deviation of noise, where 2 is from black to white.
    pub noise: f64,
}

impl JudgeAugmentation {
    /// Whether every value can be used.
    ///
    /// # Errors
    /// If one cannot; the message names it.
    pub fn check(&self) -> Result<()> {
        match () {
            () if !(0.0..=1.0).contains(&self.blur) => Err(Error::invalid("`blur`", self.blur, "give from 0 to 1")),
            () if !(0.0..=2.0).contains(&self.noise) => Err(Error::invalid("`noise`", self.noise, "give from 0 to 2")),
            () => Ok(()),
        }
    }

    /// Changes a picture in place of which all planes are squares of `side`.
    fn apply(&self, pixels: &[u8], out: &mut [f32], side: usize, generator: &mut SplitMix64) {
        let mut offset = || generator.below(2 * self.shift as u64 + 1) as isize - self.shift as isize;
        let (down, right) = (offset(), offset());
        let mut share = || generator.below(1 << 24) as f64 / f64::from(1 << 24);
        let (blur, noise) = (self.blur * share(), self.noise * share());
        let from = |at: usize, by: isize| at.saturating_add_signed(-by).min(side - 1);
        for (out, plane) in out.chunks_exact_mut(side * side).zip(pixels.chunks_exact(side * side)) {
            for (y, row) in out.chunks_exact_mut(side).enumerate() {
                let source = &plane[side * from(y, down)..][..side];
                row.iter_mut().enumerate().for_each(|(x, value)| *value = scaled(source[from(x, right)]));
            }
            if blur > 0.0 {
                blurred(out, side, blur as f32);
            }
        }
        if noise > 0.0 {
            let drawn = TorchGenerator::new(generator.next_u64()).normal(out.len());
            out.iter_mut().zip(drawn).for_each(|(value, noise_value)| *value += noise as f32 * noise_value);
        }
    }
}

/// Mixes so much of the weighted mean of each value's neighbours in, the edge's values repeated outside.
fn blurred(plane: &mut [f32], side: usize, share: f32) {
    let at = |values: &[f32], i: usize, step: usize| {
        let along = if step == 1 { i % side } else { i / side };
        let before = if along == 0 { values[i] } else { values[i - step] };
        let after = if along + 1 == side { values[i] } else { values[i + step] };
        (before + 2.0 * values[i] + after) / 4.0
    };
    let rows: Vec<f32> = (0..plane.len()).map(|i| at(plane, i, 1)).collect();
    plane.iter_mut().enumerate().for_each(|(i, value)| *value += share * (at(&rows, i, side) - *value));
}

/// What one training step of a judge sees.
#[derive(Debug, Clone)]
pub struct JudgeBatch {
    /// `[batch, 3, sample_size, sample_size]`, f32 about `[-1, 1]`, on the CPU.
    pub images: Tensor,
    /// The classes of each.
    pub labels: Vec<Labels>,
}

/// The batches of a set, each a function of the seed and its number alone, in the order of [`EpochOrder`].
#[derive(Debug)]
pub struct JudgeBatches {
    pictures: Arc<JudgedPictures>,
    decoded: Option<DecodedPictures>,
    labels: Vec<Labels>,
    augmentation: JudgeAugmentation,
    seed: u64,
    order: EpochOrder,
}

impl JudgeBatches {
    /// The batches of pictures in the order of a seed. Those of `decoded` come as an autoencoder gives them back.
    ///
    /// # Errors
    /// If the batch size is 0, or a batch goes beyond the limit of memory.
    pub fn new(
        pictures: Arc<JudgedPictures>,
        decoded: Option<DecodedPictures>,
        classes: &JudgeClasses,
        augmentation: JudgeAugmentation,
        (batch_size, seed): (usize, u64),
    ) -> Result<Self> {
        let order = EpochOrder::new(pictures.len(), batch_size, seed)?;
        let side = pictures.averaged().height();
        checked_size(batch_size, [4 * CHANNELS, side, side])?;
        let labels = pictures.shown().iter().map(|shown| classes.labels(shown, Unsaid::IsUsual).0).collect();
        Ok(Self { pictures, decoded, labels, augmentation, seed, order })
    }
}

impl BatchSource for JudgeBatches {
    type Batch = JudgeBatch;

    fn get(&mut self, n: u64) -> Result<JudgeBatch> {
        let (indices, first) = (self.order.indices(n), self.order.place(n));
        let side = self.pictures.averaged().height();
        let mut values = vec![0f32; indices.len() * CHANNELS * side * side];
        let pairs = values.par_chunks_exact_mut(CHANNELS * side * side).zip(&indices).enumerate();
        pairs.for_each(|(i, (out, &index))| {
            let decoded = self.decoded.as_ref().and_then(|decoded| decoded.pixels(index));
            let Some(pixels) = decoded.or_else(|| self.pictures.averaged().pixels(index)) else { return };
            // Other draws than those of the order, which has the seed itself.
            let mut generator = SplitMix64::numbered(!self.seed, first.wrapping_add(i as u64));
            self.augmentation.apply(pixels, out, side, &mut generator);
        });
        let images = Tensor::from_vec(values, (indices.len(), CHANNELS, side, side), &Device::Cpu)?;
        Ok(JudgeBatch { images, labels: indices.iter().map(|&index| self.labels[index]).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is drawn is within its bounds, and a picture of one colour is only moved and blurred into itself.
    #[test]
    fn changes_keep_what_a_picture_shows() {
        let side = 8;
        let apply = |augmentation: JudgeAugmentation, pixels: &[u8], seed| {
            let mut out = vec![0f32; pixels.len()];
            augmentation.apply(pixels, &mut out, side, &mut SplitMix64::new(seed));
            out
        };
        let even = vec![200u8; 3 * side * side];
        let soft = JudgeAugmentation { shift: 3, blur: 1.0, noise: 0.0 };
        assert!(apply(soft, &even, 1).iter().all(|&value| (value - scaled(200)).abs() < 1e-6));
        let bright = |pixel: usize| if pixel == 4 * side + 4 { 255 } else { 0 };
        let dot: Vec<u8> = (0..3 * side * side).map(|i| bright(i % (side * side))).collect();
        let mut places = std::collections::BTreeSet::new();
        for seed in 0..400 {
            let moved = apply(JudgeAugmentation { shift: 2, ..JudgeAugmentation::default() }, &dot, seed);
            let at = moved.iter().position(|&value| value > 0.0).unwrap_or_default();
            places.insert((at / side, at % side));
            // The blur keeps the sum, as long as the dot is not at the edge.
            let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value) + 1.0).sum::<f64>();
            let soft = apply(JudgeAugmentation { shift: 2, blur: 1.0, noise: 0.0 }, &dot, seed);
            assert!((sum(&soft) - sum(&moved)).abs() < 1e-4);
        }
        let expected: std::collections::BTreeSet<_> = (2..=6).flat_map(|y| (2..=6).map(move |x| (y, x))).collect();
        assert_eq!(places, expected);
        let noisy = apply(JudgeAugmentation { noise: 0.5, ..JudgeAugmentation::default() }, &even, 3);
        let deviation = noisy.iter().map(|&value| (value - scaled(200)).powi(2)).sum::<f32>() / noisy.len() as f32;
        assert!(deviation > 0.0 && deviation.sqrt() < 0.6);
    }
}
