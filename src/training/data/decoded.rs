//! Pictures as an autoencoder gives them back, which are made once.

use super::judged::planes;
use super::{ImageSet, JudgedPictures, permutation};
use crate::checkpoints::safetensors_bytes;
use crate::files::replace_file;
use crate::images::Picture;
use crate::models::Autoencoder;
use crate::{Device, Error, ErrorKind, Result, Tensor};
use rayon::prelude::*;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// Pictures that go through an autoencoder at a time.
const BATCH: usize = 8;
/// What the file says its pictures were made from.
const KEY: &str = "key";
/// The numbers of the pictures, and their bytes.
const INDICES: &str = "indices";
const PIXELS: &str = "pixels";

/// Some pictures of a set, encoded, decoded, and averaged to the size that a judge looks at: they have the faults of generated ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedPictures {
    /// Which pictures of the set, in ascending order.
    indices: Vec<usize>,
    set: ImageSet,
}

impl DecodedPictures {
    /// A share of a set's pictures, chosen by a seed; one at least.
    ///
    /// # Errors
    /// If the share is not above 0 and at most 1.
    pub fn choose(pictures: &JudgedPictures, share: f64, seed: u64) -> Result<Vec<usize>> {
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::invalid(
                "the share of pictures that are decoded",
                share,
                "take more than 0 and at most 1",
            ));
        }
        let count = ((share * pictures.len() as f64).round() as usize).max(1);
        // Another order than any epoch has.
        let mut chosen = permutation(pictures.len(), seed, u64::MAX);
        chosen.truncate(count);
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// Encodes and decodes pictures, by their numbers in ascending order. `watch` is told how many are done and how many there are;
    /// breaking stops.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `watch` breaks; if a picture cannot be read, or its side is no multiple of the factor of latents.
    pub fn make(
        pictures: &JudgedPictures,
        indices: Vec<usize>,
        autoencoder: &dyn Autoencoder,
        watch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self> {
        let (side, factor) = (pictures.side(), autoencoder.latent_space().factor);
        if !side.is_multiple_of(factor) {
            let fix = format!("the autoencoder takes multiples of {factor}; give such a number to `resize`");
            return Err(Error::invalid("the side of the pictures", side, fix));
        }
        let size = pictures.averaged().height();
        let mut pixels = Vec::with_capacity(indices.len() * 3 * size * size);
        for (done, indices_of_batch) in indices.chunks(BATCH).enumerate() {
            if watch(done * BATCH, indices.len()).is_break() {
                return Err(Error::Cancelled);
            }
            let read = |&index: &usize| pictures.picture(index)?.to_tensor(&Device::Cpu);
            let batch: Vec<Tensor> = indices_of_batch.par_iter().map(read).collect::<Result<_>>()?;
            let decoded = autoencoder.decode(autoencoder.encode(&Tensor::cat(&batch, 0)?)?.mode())?;
            for picture in Picture::from_tensor(&decoded)? {
                pixels.extend(planes(&picture.averaged(size, size)?));
            }
        }
        Ok(Self { indices, set: ImageSet::new([3, size, size], pixels)? })
    }

    /// Reads pictures that [`Self::write`] wrote under the same key; `None` if there are none, or others.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn read(path: &Path, key: &str) -> Result<Option<Self>> {
        if !path.is_file() {
            return Ok(None);
        }
        let damaged = |reason: &str| Error::malformed(ErrorKind::File, "file of decoded pictures", path, reason);
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e.to_string()))?;
        let said = |name: &str| header.metadata().as_ref().and_then(|said| said.get(name));
        if said(KEY).map(String::as_str) != Some(key) {
            return Ok(None);
        }
        let indices = said(INDICES).and_then(|text| serde_json::from_str::<Vec<usize>>(text).ok());
        let indices = indices.ok_or_else(|| damaged("it does not say which pictures it has"))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e.to_string()))?;
        let stored = file.tensor(PIXELS).map_err(|e| damaged(&e.to_string()))?;
        match *stored.shape() {
            [count, channels, height, width] if count == indices.len() && count > 0 => {
                let set = ImageSet::new([channels, height, width], stored.data().to_vec())?;
                if set.len() == count { Ok(Some(Self { indices, set })) } else { Err(damaged("it has no bytes")) }
            }
            _ => Err(damaged("it has other pictures than it says")),
        }
    }

    /// Writes the pictures, all or nothing, with a key that says what they were made from.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path, key: &str) -> Result<()> {
        let indices = serde_json::Value::from(self.indices.clone()).to_string();
        let metadata = BTreeMap::from([(KEY.to_owned(), key.to_owned()), (INDICES.to_owned(), indices)]);
        let shape = (self.set.len(), self.set.channels(), self.set.height(), self.set.width());
        let pixels: Vec<u8> = (0..self.set.len()).filter_map(|i| self.set.pixels(i)).flatten().copied().collect();
        let tensor = Tensor::from_vec(pixels, shape, &Device::Cpu)?;
        let bytes = safetensors_bytes([(PIXELS, &tensor)], &metadata)
            .map_err(|e| Error::malformed(ErrorKind::File, "file of decoded pictures", path, e))?;
        replace_file(path, &bytes)
    }

    /// The pictures, in the order of their numbers.
    pub fn set(&self) -> &ImageSet {
        &self.set
    }

    /// The bytes of the set's picture `index`, `[channel, row, column]`, if it is one of these.
    pub fn pixels(&self, index: usize) -> Option<&[u8]> {
        self.indices.binary_search(&index).ok().and_then(|place| self.set.pixels(place))
    }
}
