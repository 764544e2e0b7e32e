//! A set of images in memory.

use crate::files::hexadecimal;
use crate::{Error, Result};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes of pixels of the largest set that is read; it is checked before memory is asked for.
pub const LARGEST_SET: u64 = 8 << 30;

/// Images of one size, one byte per value, with labels and captions if the files have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    channels: usize,
    height: usize,
    width: usize,
    /// `[image, channel, row, column]`.
    pixels: Vec<u8>,
    labels: Option<Vec<u32>>,
    classes: Vec<String>,
    captions: Option<Vec<Vec<String>>>,
}

/// The bytes of `count` images, if the limit allows so many.
pub(super) fn checked_size(count: usize, [channels, height, width]: [usize; 3]) -> Result<usize> {
    let bytes = [channels, height, width].iter().try_fold(count, |product, &size| product.checked_mul(size));
    bytes.filter(|&bytes| bytes as u64 <= LARGEST_SET).ok_or_else(|| {
        let value = format!("{count} images of {width}x{height} with {channels} channels");
        let fix = format!("at most {} GiB of pixels are held in memory; take fewer or smaller", LARGEST_SET >> 30);
        Error::invalid("the size of the data set", value, fix)
    })
}

impl ImageSet {
    /// A set from its values.
    ///
    /// # Shapes
    /// `shape` is channels, height and width of each image; `pixels` is `[images, channels, height, width]`, row
    /// by row.
    ///
    /// # Errors
    /// If there is no image, one has no pixels, or the values are no whole number of images.
    pub fn new(shape: [usize; 3], pixels: Vec<u8>) -> Result<Self> {
        let [channels, height, width] = shape;
        let each = checked_size(1, shape)?;
        if each == 0 || pixels.is_empty() || !pixels.len().is_multiple_of(each) {
            let value = format!("{} values in images of {width}x{height} with {channels} channels", pixels.len());
            return Err(Error::invalid("the data set", value, "give at least one image, and whole ones"));
        }
        Ok(Self { channels, height, width, pixels, labels: None, classes: Vec::new(), captions: None })
    }

    /// The same with a class for each image, an index into the classes' names.
    ///
    /// # Errors
    /// If there are more or fewer labels than images, or one has no name.
    pub fn with_labels(mut self, labels: Vec<u32>, classes: Vec<String>) -> Result<Self> {
        if labels.len() != self.len() {
            let fix = format!("there are {} images, and each has one label", self.len());
            return Err(Error::invalid("the number of labels", labels.len(), fix));
        }
        if let Some(label) = labels.iter().find(|&&label| label as usize >= classes.len()) {
            let fix = format!("there are {} classes, counted from 0", classes.len());
            return Err(Error::invalid("a label", label, fix));
        }
        (self.labels, self.classes) = (Some(labels), classes);
        Ok(self)
    }

    /// The same with texts for each image, at least one.
    ///
    /// # Errors
    /// If there are texts for more or fewer images, or none for one.
    pub fn with_captions(mut self, captions: Vec<Vec<String>>) -> Result<Self> {
        if captions.len() != self.len() {
            let fix = format!("there are {} images, and each has its texts", self.len());
            return Err(Error::invalid("the number of texts", captions.len(), fix));
        }
        if let Some(image) = captions.iter().position(Vec::is_empty) {
            return Err(Error::invalid(
                "the texts of an image",
                format!("none of image {image}"),
                "give it one at least",
            ));
        }
        self.captions = Some(captions);
        Ok(self)
    }

    /// The number of images; never 0.
    #[allow(clippy::len_without_is_empty)] // a set has at least one image
    pub fn len(&self) -> usize {
        self.pixels.len() / self.image_len()
    }

    /// The number of channels: 1 for grey, 3 for RGB.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Each image's class, if they are labelled.
    pub fn labels(&self) -> Option<&[u32]> {
        self.labels.as_deref()
    }

    /// The names of the classes, in the order of their labels; empty if the images are not labelled.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Each image's texts, if the files give some.
    pub fn captions(&self) -> Option<&[Vec<String>]> {
        self.captions.as_deref()
    }

    /// The values of image `index`, `[channel, row, column]`; `None` if there is no such image.
    pub fn pixels(&self, index: usize) -> Option<&[u8]> {
        self.pixels.chunks_exact(self.image_len()).nth(index)
    }

    fn image_len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// The first `count` images, or all if there are not so many; at least one.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        let count = count.clamp(1, self.len());
        self.pixels.truncate(count * self.image_len());
        if let Some(labels) = &mut self.labels {
            labels.truncate(count);
        }
        if let Some(captions) = &mut self.captions {
            captions.truncate(count);
        }
        self
    }

    /// Images as a network sees them, level 0 as -1 and level 255 as 1.
    ///
    /// # Shapes
    /// The result is `[indices, channels, height, width]`, f32 on the CPU.
    ///
    /// # Errors
    /// If there is no image of an index.
    pub fn images(&self, indices: &[usize]) -> Result<Tensor> {
        self.transformed(indices, (self.height, self.width), |_, pixels, out| {
            out.iter_mut().zip(pixels).for_each(|(o, &p)| *o = scaled(p))
        })
    }

    /// Images of another height and width, each written by `write(position, pixels, out)`.
    pub(super) fn transformed(
        &self,
        indices: &[usize],
        (height, width): (usize, usize),
        write: impl Fn(usize, &[u8], &mut [f32]) + Sync,
    ) -> Result<Tensor> {
        let len = self.image_len();
        if let Some(index) = indices.iter().find(|&&index| index >= self.len()) {
            return Err(Error::invalid("an image's index", index, format!("the set has {} images", self.len())));
        }
        let each = self.channels * height * width;
        let mut values = vec![0f32; indices.len() * each];
        let pairs = values.par_chunks_exact_mut(each).zip(indices).enumerate();
        pairs.for_each(|(i, (out, &index))| write(i, &self.pixels[index * len..(index + 1) * len], out));
        Ok(Tensor::from_vec(values, (indices.len(), self.channels, height, width), &Device::Cpu)?)
    }

    /// The SHA-256 of sizes, pixels and labels in hexadecimal: what a resumed run compares.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for size in [self.len(), self.channels, self.height, self.width] {
            hasher.update((size as u64).to_le_bytes());
        }
        hasher.update(&self.pixels);
        for label in self.labels.iter().flatten() {
            hasher.update(label.to_le_bytes());
        }
        for text in self.classes.iter().chain(self.captions.iter().flatten().flatten()) {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        }
        hexadecimal(&hasher.finalize())
    }
}

/// A byte as a network's value, -1 to 1.
pub(super) fn scaled(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}
