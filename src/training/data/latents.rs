//! Pictures as an autoencoder's latents: what latent diffusion is trained on.

use super::loader::BatchSource;
use super::shuffle::{EpochOrder, SplitMix64};
use super::{CaptionedPictures, PictureTokens};
use crate::checkpoints::{ModelFiles, SafetensorsFile};
use crate::files::replace_file;
use crate::images::Picture;
use crate::models::Autoencoder;
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

const MEAN: &str = "mean";
const STD: &str = "std";
/// What the latents of a file were made from.
const KEY: &str = "made_from";
/// Pixels that are encoded at once, about.
const PIXELS: usize = 1 << 17;

/// Which latents a set has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LatentOptions {
    /// Whether each picture has those of its mirror image too.
    pub flip: bool,
    /// Whether the standard deviations of the encoder's distributions are kept, so that latents can be drawn from them.
    pub deviations: bool,
}

/// The latents of a set of pictures as a diffusion model has them, scaled, in half precision.
#[derive(Debug, Clone)]
pub struct LatentSet {
    /// `[pictures, channels, height, width]`; with mirror images, those of all pictures follow.
    mean: Tensor,
    /// Of the same shape, if they are kept.
    std: Option<Tensor>,
    flip: bool,
}

/// What one training step sees.
#[derive(Debug, Clone)]
pub struct LatentBatch {
    /// The most likely latents, `[batch, channels, height, width]`, f32 on the CPU.
    pub mean: Tensor,
    /// The standard deviation of each, alike, where latents are drawn.
    pub std: Option<Tensor>,
    /// Each picture's caption as token ids, `[batch, tokens]` of u32.
    pub tokens: Tensor,
}

impl LatentSet {
    /// Encodes pictures, all at one height and width. `watch` is told how many are done and how many there are; breaking stops.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `watch` breaks; if a picture cannot be read, or its latents are not finite in half precision.
    pub fn encode(
        pictures: &CaptionedPictures,
        size: (usize, usize),
        autoencoder: &dyn Autoencoder,
        options: LatentOptions,
        watch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self> {
        let passes: &[bool] = if options.flip { &[false, true] } else { &[false] };
        let (count, step) = (pictures.len(), (PIXELS / (size.0 * size.1).max(1)).max(1));
        let (mut means, mut stds) = (Vec::new(), Vec::new());
        for (pass, &mirrored) in passes.iter().enumerate() {
            for start in (0..count).step_by(step) {
                if watch(pass * count + start, passes.len() * count).is_break() {
                    return Err(Error::Cancelled);
                }
                let end = (start + step).min(count);
                let read = |index: usize| tensor(&pictures.picture(index, size)?, mirrored);
                let batch: Vec<Tensor> = (start..end).into_par_iter().map(read).collect::<Result<_>>()?;
                let gaussian = autoencoder.encode(&Tensor::cat(&batch, 0)?)?;
                let space = autoencoder.latent_space();
                let half = |latents: &Tensor| -> Result<Tensor> { Ok(space.scaled(latents)?.to_dtype(DType::F16)?) };
                means.push(checked(half(&gaussian.mean)?, pictures, start)?);
                if options.deviations && !gaussian.is_certain() {
                    stds.push(half(&(gaussian.log_variance * 0.5)?.exp()?)?);
                }
            }
        }
        let std = if stds.is_empty() { None } else { Some(Tensor::cat(&stds, 0)?) };
        Ok(Self { mean: Tensor::cat(&means, 0)?, std, flip: options.flip })
    }

    /// Reads latents that [`Self::write`] wrote under the same key; `None` if there are none, or others.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn read(path: &Path, key: &str) -> Result<Option<Self>> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Ok(None);
        };
        if !path.is_file() {
            return Ok(None);
        }
        let file = SafetensorsFile::open(&ModelFiles::Folder(folder.to_path_buf()), name)?;
        if file.metadata(KEY) != Some(key) {
            return Ok(None);
        }
        let read = |name: &str| {
            let unusable = || {
                Error::malformed(
                    ErrorKind::File,
                    "file of latents",
                    path,
                    format!("{name} has values that are not finite"),
                )
            };
            file.read(name, DType::F16, &Device::Cpu)?.ok_or_else(unusable)
        };
        let std = file.tensors().iter().any(|stored| stored.name == STD).then(|| read(STD)).transpose()?;
        Ok(Some(Self { mean: read(MEAN)?, std, flip: file.metadata("flip") == Some("true") }))
    }

    /// Writes the latents, all or nothing, with a key that says what they were made from.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path, key: &str) -> Result<()> {
        let metadata = [(KEY.to_owned(), key.to_owned()), ("flip".to_owned(), self.flip.to_string())];
        let tensors = [(MEAN, Some(&self.mean)), (STD, self.std.as_ref())];
        let tensors = tensors.into_iter().filter_map(|(name, tensor)| Some((name, tensor?)));
        let bytes = safetensors::serialize(tensors, Some(HashMap::from(metadata)))
            .map_err(|e| Error::malformed(ErrorKind::File, "file of latents", path, e))?;
        replace_file(path, &bytes)
    }

    /// The number of pictures.
    pub fn pictures(&self) -> usize {
        self.mean.dims()[0] / if self.flip { 2 } else { 1 }
    }

    /// Channels, height and width of each.
    pub fn shape(&self) -> [usize; 3] {
        let dims = self.mean.dims();
        [dims[1], dims[2], dims[3]]
    }

    /// Mean and standard deviation of each channel over all pictures, by which a diffusion model's latents should have unit size.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn channel_statistics(&self) -> Result<Vec<(f64, f64)>> {
        let [channels, height, width] = self.shape();
        let mut sums = vec![(0.0, 0.0); channels];
        for image in 0..self.mean.dim(0)? {
            let values =
                self.mean.get(image)?.to_dtype(DType::F32)?.reshape((channels, height * width))?.to_vec2::<f32>()?;
            for (sum, values) in sums.iter_mut().zip(values) {
                for value in values {
                    *sum = (sum.0 + f64::from(value), sum.1 + f64::from(value).powi(2));
                }
            }
        }
        let count = (self.mean.dim(0)? * height * width) as f64;
        Ok(sums
            .into_iter()
            .map(|(sum, square)| (sum / count, (square / count - (sum / count).powi(2)).sqrt()))
            .collect())
    }

    /// Rows of a tensor in f32.
    fn rows(tensor: &Tensor, indices: &[u32]) -> Result<Tensor> {
        let indices = Tensor::from_slice(indices, indices.len(), &Device::Cpu)?;
        Ok(tensor.index_select(&indices, 0)?.to_dtype(DType::F32)?)
    }
}

/// A picture as an autoencoder sees it, `[1, 3, height, width]`.
fn tensor(picture: &Picture, mirrored: bool) -> Result<Tensor> {
    if !mirrored {
        return picture.to_tensor(&Device::Cpu);
    }
    let width = 3 * picture.width();
    let rows = picture.rgb().chunks_exact(width);
    let rgb = rows.flat_map(|row| row.rchunks_exact(3).flatten().copied()).collect();
    Picture::new(picture.width(), picture.height(), rgb)?.to_tensor(&Device::Cpu)
}

/// Latents of pictures from `start` on, which half precision must hold.
fn checked(latents: Tensor, pictures: &CaptionedPictures, start: usize) -> Result<Tensor> {
    let largest = latents.to_dtype(DType::F32)?.abs()?.flatten_from(1)?.max(1)?.to_vec1::<f32>()?;
    match largest.iter().position(|value| !value.is_finite()) {
        None => Ok(latents),
        Some(i) => {
            let what = format!("the latents of {}", pictures.pictures()[start + i].path.display());
            Err(Error::invalid(what, "not finite", "the autoencoder cannot encode it; take another one"))
        }
    }
}

/// The batches of a set of latents, each a function of the seed and its number alone, in the order of [`EpochOrder`]; of a
/// picture's captions one is drawn each time.
#[derive(Debug, Clone)]
pub struct LatentBatches {
    set: Arc<LatentSet>,
    /// Each picture's captions as token ids, all of one length.
    tokens: Arc<PictureTokens>,
    order: EpochOrder,
    seed: u64,
}

impl LatentBatches {
    /// The batches of a set in the order of a seed. `tokens` are each picture's captions, at least one, all of one length.
    ///
    /// # Errors
    /// If the batch size is 0, or captions and pictures do not fit each other.
    pub fn new(set: Arc<LatentSet>, tokens: Arc<PictureTokens>, batch_size: usize, seed: u64) -> Result<Self> {
        if tokens.len() != set.pictures() || tokens.iter().any(Vec::is_empty) {
            let fix = format!("there are latents of {} pictures, and each has one caption at least", set.pictures());
            return Err(Error::invalid("the number of captioned pictures", tokens.len(), fix));
        }
        Ok(Self { order: EpochOrder::new(set.pictures(), batch_size, seed)?, set, tokens, seed })
    }

    /// Batch `n`.
    ///
    /// # Errors
    /// If its tensors cannot be made.
    pub fn get(&mut self, n: u64) -> Result<LatentBatch> {
        let indices = self.order.indices(n);
        let first = self.order.place(n);
        let (mut rows, mut ids) = (Vec::with_capacity(indices.len()), Vec::new());
        for (i, &index) in indices.iter().enumerate() {
            // Other draws than those of the order, which has the seed itself.
            let mut generator = SplitMix64::numbered(!self.seed, first.wrapping_add(i as u64));
            let captions = &self.tokens[index];
            ids.extend_from_slice(&captions[generator.below(captions.len() as u64) as usize]);
            let mirrored = self.set.flip && generator.below(2) == 1;
            rows.push((index + if mirrored { self.set.pictures() } else { 0 }) as u32);
        }
        let length = ids.len() / indices.len();
        Ok(LatentBatch {
            mean: LatentSet::rows(&self.set.mean, &rows)?,
            std: self.set.std.as_ref().map(|std| LatentSet::rows(std, &rows)).transpose()?,
            tokens: Tensor::from_vec(ids, (indices.len(), length), &Device::Cpu)?,
        })
    }
}

impl BatchSource for LatentBatches {
    type Batch = LatentBatch;

    fn get(&mut self, n: u64) -> Result<LatentBatch> {
        Self::get(self, n)
    }
}
