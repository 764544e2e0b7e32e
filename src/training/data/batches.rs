//! Which images a batch has.

use super::image_set::{ImageSet, scaled};
use super::loader::{BatchSource, HeldOutBatch, MOST_HELD_OUT};
use super::shuffle::{EpochOrder, SplitMix64, evenly_spaced, hold_out};
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::sync::Arc;

/// What one training step sees.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[batch, channels, height, width]`, f32 in `[-1, 1]`, on the CPU.
    pub images: Tensor,
    /// `[batch]` of u32, if the images are labelled.
    pub labels: Option<Tensor>,
    /// The images' places in the set.
    pub indices: Vec<usize>,
}

/// Random changes of an image that keep what it shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Augmentation {
    /// Whether half of the images are mirrored left to right.
    pub flip: bool,
    /// The most pixels that an image is moved by along each axis; what comes in is its first pixel's value.
    pub shift: usize,
    /// The side of the square that is cut out of an image at a random place, if not all of it is taken.
    pub crop: Option<usize>,
}

/// The batches of a set, each a function of the seed and its number alone, in the order of [`EpochOrder`].
#[derive(Debug, Clone)]
pub struct Batches {
    set: Arc<ImageSet>,
    seed: u64,
    augmentation: Augmentation,
    order: EpochOrder,
    batch_size: usize,
    /// The images that are taken, if not all, and those that are held out.
    parts: Option<(Vec<usize>, Vec<usize>)>,
}

impl Batches {
    /// The batches of a set in the order of a seed.
    ///
    /// # Errors
    /// If the batch size is 0, or so large that a batch goes beyond the limit of memory.
    pub fn new(set: Arc<ImageSet>, batch_size: usize, seed: u64) -> Result<Self> {
        let order = EpochOrder::new(set.len(), batch_size, seed)?;
        super::image_set::checked_size(batch_size, [4 * set.channels(), set.height(), set.width()])?;
        Ok(Self { set, seed, augmentation: Augmentation::default(), order, batch_size, parts: None })
    }

    /// The same without a share of the images, which is held out.
    ///
    /// # Errors
    /// As [`hold_out`].
    pub fn holding_out(mut self, share: f64) -> Result<Self> {
        let (trained, held_out) = hold_out(self.set.len(), share, self.seed)?;
        self.order = EpochOrder::new(trained.len(), self.batch_size, self.seed)?;
        self.parts = Some((trained, held_out));
        Ok(self)
    }

    /// The same with images changed at random, by the stream of the seed and the image's place in the row.
    ///
    /// # Errors
    /// If squares are cut out that are empty or larger than an image.
    pub fn with_augmentation(mut self, augmentation: Augmentation) -> Result<Self> {
        let (height, width) = (self.set.height(), self.set.width());
        if let Some(side) = augmentation.crop
            && (side == 0 || side > height.min(width))
        {
            let fix = format!("the images have {width}x{height} pixels; take a side of 1 to {}", height.min(width));
            return Err(Error::invalid("the squares that are cut out of images", side, fix));
        }
        self.augmentation = augmentation;
        Ok(self)
    }

    /// The set.
    pub fn set(&self) -> &Arc<ImageSet> {
        &self.set
    }

    /// Batches until every image has been seen `epochs` times, the last one rounded up.
    pub fn in_epochs(&self, epochs: u64) -> u64 {
        self.order.in_epochs(epochs)
    }

    /// The epoch, counted from 0, in which batch `n` starts.
    pub fn epoch(&self, n: u64) -> u64 {
        self.order.epoch(n)
    }

    /// The images of batch `n`, by their places in the set.
    pub fn indices(&mut self, n: u64) -> Vec<usize> {
        let places = self.order.indices(n);
        match &self.parts {
            Some((trained, _)) => places.into_iter().map(|place| trained[place]).collect(),
            None => places,
        }
    }

    /// Batch `n`.
    ///
    /// # Errors
    /// If its tensors cannot be made.
    pub fn get(&mut self, n: u64) -> Result<Batch> {
        let indices = self.indices(n);
        self.batch(indices, self.order.place(n), self.augmentation)
    }

    /// Images that stand in the row of all epochs from the place `first` on.
    fn batch(&self, indices: Vec<usize>, first: u64, augmentation: Augmentation) -> Result<Batch> {
        let size @ (height, width) = (self.set.height(), self.set.width());
        let cut = augmentation.crop.map_or(size, |side| (side, side));
        // Other draws than those of the order, which has the seed itself.
        let seed = !self.seed;
        let images = self.set.transformed(&indices, cut, |i, pixels, out| {
            let mut generator = SplitMix64::numbered(seed, first.wrapping_add(i as u64));
            let change = Change::draw(augmentation, size, &mut generator);
            let planes = out.chunks_exact_mut(cut.0 * cut.1).zip(pixels.chunks_exact(height * width));
            planes.for_each(|(out, plane)| change.apply(plane, width, out, cut.1));
        })?;
        let labels = self.set.labels().map(|labels| {
            let labels: Vec<u32> = indices.iter().map(|&index| labels[index]).collect();
            Tensor::from_vec(labels, indices.len(), &Device::Cpu)
        });
        Ok(Batch { images, labels: labels.transpose()?, indices })
    }
}

impl BatchSource for Batches {
    type Batch = Batch;

    fn get(&mut self, n: u64) -> Result<Batch> {
        Self::get(self, n)
    }

    /// As they are, but for squares that are cut out of them.
    fn held_out(&mut self) -> Result<Vec<HeldOutBatch<Batch>>> {
        let Some((_, held_out)) = &self.parts else { return Ok(Vec::new()) };
        let augmentation = Augmentation { crop: self.augmentation.crop, ..Augmentation::default() };
        let places = evenly_spaced(held_out.len(), MOST_HELD_OUT);
        let images: Vec<usize> = places.into_iter().map(|place| held_out[place]).collect();
        let batch = |(i, piece): (usize, &[usize])| {
            let batch = self.batch(piece.to_vec(), self.order.place(i as u64), augmentation)?;
            Ok(HeldOutBatch { batch, items: piece.len() })
        };
        images.chunks(self.batch_size).enumerate().map(batch).collect()
    }
}

/// What happens to one image.
struct Change {
    flip: bool,
    /// Pixels down and to the right.
    shift: (isize, isize),
    /// The first row and column that is kept.
    corner: (usize, usize),
}

impl Change {
    fn draw(augmentation: Augmentation, (height, width): (usize, usize), generator: &mut SplitMix64) -> Self {
        let Augmentation { flip, shift, crop } = augmentation;
        let mut offset = || generator.below(2 * shift as u64 + 1) as isize - shift as isize;
        let shift = (offset(), offset());
        let flip = flip && generator.below(2) == 1;
        let mut start = |length: usize| crop.map_or(0, |side| generator.below((length - side) as u64 + 1) as usize);
        Self { flip, shift, corner: (start(height), start(width)) }
    }

    fn apply(&self, plane: &[u8], width: usize, out: &mut [f32], out_width: usize) {
        let height = plane.len() / width;
        let background = scaled(plane[0]);
        for (y, row) in (self.corner.0..).zip(out.chunks_exact_mut(out_width)) {
            let from_y = y.checked_add_signed(-self.shift.0).filter(|&y| y < height);
            for (x, value) in (self.corner.1..).zip(row) {
                let from_x = x.checked_add_signed(-self.shift.1).filter(|&x| x < width);
                *value = match (from_y, from_x) {
                    (Some(y), Some(x)) => scaled(plane[y * width + if self.flip { width - 1 - x } else { x }]),
                    _ => background,
                };
            }
        }
    }
}
