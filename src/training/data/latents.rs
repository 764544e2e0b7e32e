//! Pictures as an autoencoder's latents: what latent diffusion is trained on.

use super::buckets::{BucketOrder, Buckets};
use super::loader::{BatchSource, HeldOutBatch, MOST_HELD_OUT};
use super::shuffle::{SplitMix64, evenly_spaced, hold_out};
use super::{CaptionedPictures, PictureTokens};
use crate::checkpoints::{ModelFiles, SafetensorsFile, safetensors_bytes};
use crate::files::replace_file;
use crate::images::Picture;
use crate::models::Autoencoder;
use crate::noise::TorchGenerator;
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// The tensors of each size, whose number follows.
const MEAN: &str = "mean.";
const STD: &str = "std.";
/// What a file says beside its tensors: of each size which pictures it has, what they were made from, and whether mirror images
/// are there.
const PICTURES: &str = "pictures.";
const KEY: &str = "made_from";
const FLIP: &str = "flip";
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
    /// Those of each size, at least one.
    buckets: Vec<BucketLatents>,
    flip: bool,
}

/// The latents of pictures of one size.
#[derive(Debug, Clone)]
struct BucketLatents {
    /// `[pictures, channels, height, width]`; with mirror images, those of all pictures follow.
    mean: Tensor,
    /// Of the same shape, if they are kept.
    std: Option<Tensor>,
    /// Which pictures of the set.
    pictures: Vec<usize>,
}

/// What one training step sees.
#[derive(Debug, Clone)]
pub struct LatentBatch {
    /// The most likely latents, `[batch, channels, height, width]`, f32 on the CPU.
    pub mean: Tensor,
    /// The standard deviation of each, alike, where latents are drawn.
    pub std: Option<Tensor>,
    /// Each picture's caption as token ids, or by whatever numbers the task knows it, `[batch, tokens]` of u32.
    pub tokens: Tensor,
}

impl LatentBatch {
    /// Latents drawn from the encoder's distributions, or their means where deviations are not kept.
    ///
    /// # Errors
    /// Never, for a set that was encoded or read.
    pub fn draw(&self, generator: &mut TorchGenerator) -> Result<Tensor> {
        let Some(std) = &self.std else { return Ok(self.mean.clone()) };
        let noise = Tensor::from_vec(generator.normal(std.elem_count()), std.dims(), std.device())?;
        Ok((&self.mean + (std * noise)?)?)
    }
}

impl LatentSet {
    /// Encodes pictures at the sizes of their buckets. `watch` is told how many are done and how many there are; breaking stops.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `watch` breaks; if a picture cannot be read, or its latents are not finite in half precision.
    pub fn encode(
        pictures: &CaptionedPictures,
        buckets: &Buckets,
        autoencoder: &dyn Autoencoder,
        options: LatentOptions,
        watch: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<Self> {
        let passes: &[bool] = if options.flip { &[false, true] } else { &[false] };
        let (mut done, total) = (0, passes.len() * pictures.len());
        let mut encoded = Vec::with_capacity(buckets.buckets().len());
        for bucket in buckets.buckets() {
            let step = (PIXELS / (bucket.size.0 * bucket.size.1).max(1)).max(1);
            let (mut means, mut stds) = (Vec::new(), Vec::new());
            for &mirrored in passes {
                for indices in bucket.pictures.chunks(step) {
                    if watch(done, total).is_break() {
                        return Err(Error::Cancelled);
                    }
                    let read = |&index: &usize| tensor(&pictures.picture(index, bucket.size)?, mirrored);
                    let batch: Vec<Tensor> = indices.par_iter().map(read).collect::<Result<_>>()?;
                    let gaussian = autoencoder.encode(&Tensor::cat(&batch, 0)?)?;
                    let space = autoencoder.latent_space();
                    let half =
                        |latents: &Tensor| -> Result<Tensor> { Ok(space.scaled(latents)?.to_dtype(DType::F16)?) };
                    means.push(checked(half(&gaussian.mean)?, pictures, indices)?);
                    if options.deviations && !gaussian.is_certain() {
                        stds.push(half(&(gaussian.log_variance * 0.5)?.exp()?)?);
                    }
                    done += indices.len();
                }
            }
            let std = if stds.is_empty() { None } else { Some(Tensor::cat(&stds, 0)?) };
            encoded.push(BucketLatents { mean: Tensor::cat(&means, 0)?, std, pictures: bucket.pictures.clone() });
        }
        Ok(Self { buckets: encoded, flip: options.flip })
    }

    /// Reads latents that [`Self::write`] wrote under the same key; `None` if there are none, or others.
    ///
    /// # Errors
    /// If the file is damaged, or holds no latents.
    pub fn read(path: &Path, key: &str) -> Result<Option<Self>> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Ok(None);
        };
        if !path.is_file() {
            return Ok(None);
        }
        let file = SafetensorsFile::open(&ModelFiles::Folder(folder.to_path_buf()), name)?;
        match file.metadata(KEY) {
            Some(known) if known == key => {}
            Some(_) => return Ok(None),
            None => {
                let fix = "it holds something else, which is not replaced; give the name of another one to `latents`";
                return Err(Error::unusable(ErrorKind::File, "the file of latents", path.display(), fix));
            }
        }
        let damaged = |reason: String| Error::malformed(ErrorKind::File, "file of latents", path, reason);
        let read = |name: &str| {
            let tensor = file.read(name, DType::F16, &Device::Cpu)?;
            tensor.ok_or_else(|| damaged(format!("{name} has values that are not finite")))
        };
        let stored: Vec<String> = file.tensors().into_iter().map(|stored| stored.name).collect();
        let flip = file.metadata(FLIP) == Some("true");
        let mut buckets = Vec::new();
        while let Some(pictures) = file.metadata(&format!("{PICTURES}{}", buckets.len())) {
            let number = buckets.len();
            let pictures: Vec<usize> = serde_json::from_str(pictures).map_err(|e| damaged(e.to_string()))?;
            let mean = read(&format!("{MEAN}{number}"))?;
            let name = format!("{STD}{number}");
            let std = stored.contains(&name).then(|| read(&name)).transpose()?;
            if pictures.is_empty() || mean.dim(0)? != pictures.len() * if flip { 2 } else { 1 } {
                return Err(damaged(format!(
                    "it names {} pictures and has latents of {}",
                    pictures.len(),
                    mean.dim(0)?
                )));
            }
            buckets.push(BucketLatents { mean, std, pictures });
        }
        if buckets.is_empty() { Err(damaged("it has none".into())) } else { Ok(Some(Self { buckets, flip })) }
    }

    /// Writes the latents, all or nothing, with a key that says what they were made from.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path, key: &str) -> Result<()> {
        let mut metadata = BTreeMap::from([(KEY.to_owned(), key.to_owned()), (FLIP.to_owned(), self.flip.to_string())]);
        let mut tensors = Vec::new();
        for (number, BucketLatents { mean, std, pictures }) in self.buckets.iter().enumerate() {
            metadata.insert(format!("{PICTURES}{number}"), json!(pictures).to_string());
            tensors.push((format!("{MEAN}{number}"), mean));
            tensors.extend(std.as_ref().map(|std| (format!("{STD}{number}"), std)));
        }
        let bytes = safetensors_bytes(tensors, &metadata)
            .map_err(|e| Error::malformed(ErrorKind::File, "file of latents", path, e))?;
        replace_file(path, &bytes)
    }

    /// The number of pictures.
    pub fn pictures(&self) -> usize {
        self.buckets.iter().map(|bucket| bucket.pictures.len()).sum()
    }

    /// Mean and standard deviation of each channel over all pictures: a diffusion model takes its data for such of 0 and 1.
    ///
    /// # Errors
    /// Never, for a set that was encoded or read.
    pub fn channel_statistics(&self) -> Result<Vec<(f64, f64)>> {
        let (mut sums, mut count) = (Vec::new(), 0);
        for mean in self.buckets.iter().map(|bucket| &bucket.mean) {
            let (images, channels, height, width) = mean.dims4()?;
            sums.resize(channels, (0.0, 0.0));
            count += images * height * width;
            for image in 0..images {
                let values = mean.get(image)?.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2::<f32>()?;
                for (sum, values) in sums.iter_mut().zip(values) {
                    for value in values {
                        *sum = (sum.0 + f64::from(value), sum.1 + f64::from(value).powi(2));
                    }
                }
            }
        }
        let count = count as f64;
        let moments =
            |(sum, square): (f64, f64)| (sum / count, (square / count - (sum / count).powi(2)).max(0.0).sqrt());
        Ok(sums.into_iter().map(moments).collect())
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

/// Latents of these pictures, which half precision must hold.
fn checked(latents: Tensor, pictures: &CaptionedPictures, indices: &[usize]) -> Result<Tensor> {
    let largest = latents.to_dtype(DType::F32)?.abs()?.flatten_from(1)?.max(1)?.to_vec1::<f32>()?;
    match largest.iter().position(|value| !value.is_finite()) {
        None => Ok(latents),
        Some(i) => {
            let what = format!("the latents of {}", pictures.pictures()[indices[i]].path.display());
            Err(Error::invalid(what, "not finite", "the autoencoder cannot encode it; take another one"))
        }
    }
}

/// The batches of a set of latents, each a function of the seed and its number alone, and of pictures of one size; of a picture's
/// captions one is drawn each time.
#[derive(Debug, Clone)]
pub struct LatentBatches {
    set: Arc<LatentSet>,
    /// Each picture's captions as token ids, all of one length.
    tokens: Arc<PictureTokens>,
    /// The buckets that batches are of, and which of their pictures are taken.
    taken: Vec<(usize, Vec<usize>)>,
    /// The same of what is held out.
    held_out: Vec<(usize, Vec<usize>)>,
    order: BucketOrder,
    batch_size: usize,
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
        let whole = |(number, bucket): (usize, &BucketLatents)| (number, (0..bucket.pictures.len()).collect());
        let taken: Vec<(usize, Vec<usize>)> = set.buckets.iter().enumerate().map(whole).collect();
        let order = BucketOrder::new(&counts(&taken), batch_size, seed)?;
        Ok(Self { set, tokens, taken, held_out: Vec::new(), order, batch_size, seed })
    }

    /// The same without a share of the pictures, which is held out.
    ///
    /// # Errors
    /// As [`hold_out`].
    pub fn holding_out(mut self, share: f64) -> Result<Self> {
        let (_, held_out) = hold_out(self.set.pictures(), share, self.seed)?;
        let part = |held: bool| {
            let of_bucket = |(number, bucket): (usize, &BucketLatents)| {
                let places = bucket.pictures.iter().enumerate();
                let places = places.filter(|(_, picture)| held_out.binary_search(picture).is_ok() == held);
                (number, places.map(|(place, _)| place).collect::<Vec<_>>())
            };
            let buckets = self.set.buckets.iter().enumerate().map(of_bucket);
            buckets.filter(|(_, places)| !places.is_empty()).collect::<Vec<_>>()
        };
        (self.taken, self.held_out) = (part(false), part(true));
        self.order = BucketOrder::new(&counts(&self.taken), self.batch_size, self.seed)?;
        Ok(self)
    }

    /// The same where the pictures from number `class` on are seen as often as those before it, however many there are of either
    /// and in whichever buckets they are: an epoch repeats the fewer ones. What is held out stays as it is.
    ///
    /// # Errors
    /// Never, for batches that could be made.
    pub fn balanced(mut self, class: usize) -> Result<Self> {
        let all: Vec<(usize, usize)> =
            (0..self.taken.len()).flat_map(|i| self.taken[i].1.iter().map(move |&place| (i, place))).collect();
        let number = |&(i, place): &(usize, usize)| self.set.buckets[self.taken[i].0].pictures[place];
        let order = balanced(&all.iter().map(number).collect::<Vec<_>>(), class);
        self.taken.iter_mut().for_each(|(_, places)| places.clear());
        for (i, place) in order.into_iter().map(|at| all[at]) {
            self.taken[i].1.push(place);
        }
        self.order = BucketOrder::new(&counts(&self.taken), self.batch_size, self.seed)?;
        Ok(self)
    }

    /// The captions of each picture that is trained on.
    pub fn captions(&self) -> Arc<PictureTokens> {
        if self.held_out.is_empty() {
            return self.tokens.clone();
        }
        let held = |(bucket, places): &(usize, Vec<usize>)| {
            let pictures = &self.set.buckets[*bucket].pictures;
            places.iter().map(|&place| pictures[place]).collect::<Vec<_>>()
        };
        let held: BTreeSet<usize> = self.held_out.iter().flat_map(held).collect();
        let trained = self.tokens.iter().enumerate().filter(|(picture, _)| !held.contains(picture));
        Arc::new(trained.map(|(_, captions)| captions.clone()).collect())
    }

    /// Batch `n`.
    ///
    /// # Errors
    /// If its tensors cannot be made.
    pub fn get(&mut self, n: u64) -> Result<LatentBatch> {
        let (bucket, indices) = self.order.batch(n);
        let (bucket, taken) = &self.taken[bucket];
        let places: Vec<usize> = indices.into_iter().map(|index| taken[index]).collect();
        self.batch(*bucket, &places, n.wrapping_mul(self.batch_size as u64))
    }

    /// Pictures of a bucket, which stand in the row of all batches from the place `first` on.
    fn batch(&self, bucket: usize, indices: &[usize], first: u64) -> Result<LatentBatch> {
        let bucket = &self.set.buckets[bucket];
        let (mut rows, mut ids) = (Vec::with_capacity(indices.len()), Vec::new());
        for (i, &index) in indices.iter().enumerate() {
            // Other draws than those of the order, which has the seed itself.
            let mut generator = SplitMix64::numbered(!self.seed, first.wrapping_add(i as u64));
            let captions = &self.tokens[bucket.pictures[index]];
            ids.extend_from_slice(&captions[generator.below(captions.len() as u64) as usize]);
            let mirrored = self.set.flip && generator.below(2) == 1;
            rows.push((index + if mirrored { bucket.pictures.len() } else { 0 }) as u32);
        }
        let length = ids.len() / indices.len();
        Ok(LatentBatch {
            mean: LatentSet::rows(&bucket.mean, &rows)?,
            std: bucket.std.as_ref().map(|std| LatentSet::rows(std, &rows)).transpose()?,
            tokens: Tensor::from_vec(ids, (indices.len(), length), &Device::Cpu)?,
        })
    }
}

/// Places among `pictures`, in which those from number `class` on and the others take turns.
fn balanced(pictures: &[usize], class: usize) -> Vec<usize> {
    let (others, own): (Vec<usize>, Vec<usize>) = (0..pictures.len()).partition(|&place| pictures[place] >= class);
    if own.is_empty() || others.is_empty() {
        return (0..pictures.len()).collect();
    }
    let turns = own.len().max(others.len());
    (0..turns).flat_map(|i| [own[i % own.len()], others[i % others.len()]]).collect()
}

impl BatchSource for LatentBatches {
    type Batch = LatentBatch;

    fn get(&mut self, n: u64) -> Result<LatentBatch> {
        Self::get(self, n)
    }

    /// Each with one of its captions, which stays.
    fn held_out(&mut self) -> Result<Vec<HeldOutBatch<LatentBatch>>> {
        // Of the buckets in their order, each has its share of what is looked at.
        let all: Vec<(usize, usize)> =
            self.held_out.iter().flat_map(|(bucket, places)| places.iter().map(|&place| (*bucket, place))).collect();
        let looked: Vec<_> = evenly_spaced(all.len(), MOST_HELD_OUT).into_iter().map(|i| all[i]).collect();
        let (mut batches, mut seen) = (Vec::new(), 0);
        for of_bucket in looked.chunk_by(|a, b| a.0 == b.0) {
            for piece in of_bucket.chunks(self.batch_size) {
                let places: Vec<usize> = piece.iter().map(|&(_, place)| place).collect();
                let batch = self.batch(piece[0].0, &places, seen)?;
                batches.push(HeldOutBatch { batch, items: piece.len() });
                seen += piece.len() as u64;
            }
        }
        Ok(batches)
    }
}

/// How many pictures each bucket has.
fn counts(buckets: &[(usize, Vec<usize>)]) -> Vec<usize> {
    buckets.iter().map(|(_, places)| places.len()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Latents of one value, `counts` pictures of each of several sizes, numbered in their order; each with its number as its caption.
    fn batches(counts: &[usize], batch_size: usize) -> Result<LatentBatches> {
        let mut first = 0;
        let bucket = |(i, &count): (usize, &usize)| {
            let mean = Tensor::zeros((count, 1, 1, i + 1), DType::F16, &Device::Cpu)?;
            first += count;
            Ok(BucketLatents { mean, std: None, pictures: (first - count..first).collect() })
        };
        let buckets = counts.iter().enumerate().map(bucket).collect::<Result<_>>()?;
        let tokens = (0..first as u32).map(|number| vec![vec![number]]).collect();
        LatentBatches::new(Arc::new(LatentSet { buckets, flip: false }), Arc::new(tokens), batch_size, 3)
    }

    fn numbers(batch: &LatentBatch) -> Result<Vec<u32>> {
        Ok(batch.tokens.flatten_all()?.to_vec1()?)
    }

    /// As many of each size as there are of it, from its beginning to its end, and a batch that is not full counts as what it has.
    #[test]
    fn what_is_looked_at_is_spread_over_what_is_held_out() -> Result<()> {
        let mut batches = batches(&[800, 400], 10)?.holding_out(0.5)?;
        let held: Vec<usize> = batches.held_out.iter().map(|(_, places)| places.len()).collect();
        let looked = batches.held_out()?;
        let mut of_size = [Vec::new(), Vec::new()];
        for HeldOutBatch { batch, items } in &looked {
            assert_eq!(numbers(batch)?.len(), *items);
            of_size[batch.mean.dim(3)? - 1].extend(numbers(batch)?);
        }
        assert_eq!(of_size[0].len() + of_size[1].len(), MOST_HELD_OUT);
        let share = held[0] as f64 / 600.0 * MOST_HELD_OUT as f64;
        assert!((of_size[0].len() as f64 - share).abs() <= 1.0, "{} of {held:?}", of_size[0].len());
        assert!(of_size[0][0] < 20 && of_size[0].last().is_some_and(|&last| last >= 780), "{:?}", of_size[0]);
        assert!(looked.iter().any(|held| held.items < 10), "256 in tens of two sizes");
        Ok(())
    }

    /// Nothing is learned of what is held out, words neither.
    #[test]
    fn captions_are_of_what_is_trained_on() -> Result<()> {
        let mut batches = batches(&[6, 4], 2)?.holding_out(0.3)?;
        let captions = batches.captions();
        let mut known: Vec<u32> = captions.iter().flatten().flatten().copied().collect();
        for held in batches.held_out()? {
            known.extend(numbers(&held.batch)?);
        }
        known.sort_unstable();
        assert_eq!((captions.len(), known), (7, (0..10).collect()));
        Ok(())
    }

    /// However the two kinds lie in buckets, an epoch has as many of the ones as of the others, and each of them as often as any
    /// other of its kind, or once more.
    #[test]
    fn two_kinds_are_in_balance_over_all_buckets() -> Result<()> {
        // Pictures 0 to 4 in the first size, 5 to 12 in the second; of the class are those from 9 on, which are in the second alone.
        let batches = batches(&[5, 8], 2)?.balanced(9)?;
        let mut seen = [0; 13];
        for (bucket, places) in &batches.taken {
            places.iter().for_each(|&place| seen[batches.set.buckets[*bucket].pictures[place]] += 1);
        }
        assert_eq!((seen[..9].iter().sum::<usize>(), seen[9..].iter().sum::<usize>()), (9, 9));
        assert!(seen[..9].iter().all(|&times| times == 1) && seen[9..].iter().all(|times| [2, 3].contains(times)));
        Ok(())
    }

    #[test]
    fn two_kinds_take_turns_and_the_fewer_come_again() {
        assert_eq!(balanced(&[0, 1, 2, 3, 4], 2), [0, 2, 1, 3, 0, 4]);
        assert_eq!(balanced(&[7, 1, 9], 8), [0, 2, 1, 2], "by the pictures' numbers, to places in the bucket");
        assert_eq!(balanced(&[5, 6], 2), [0, 1]);
        assert_eq!(balanced(&[0, 1], 2), [0, 1]);
    }
}
