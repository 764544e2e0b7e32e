//! What a network is conditioned on: a text, a class, sizes.
//!
//! # No class
//!
//! Classifier-free guidance needs the answer of a network that was not told the class. A class-conditional network is
//! trained for it with one class more than the data has: `num_class_embeds` = classes + 1, the last one, the *null
//! class*, put in the place of a dropped label. Its number stands as `_null_class` in `unet/config.json`
//! ([`UNet2DConfig::null_class`](crate::models::UNet2DConfig::null_class)); diffusers passes over configuration
//! fields that start with an underscore, so it loads such a folder as any other. A network without the field has no
//! null class, and cannot be guided.
//!
//! # Examples
//!
//! ```
//! use tweedie::Device;
//! use tweedie::conditioning::Conditioning;
//!
//! // Three pictures of a network of ten digits, whose null class is the eleventh: two digits, and none.
//! let conditioning = Conditioning::classes(&[3, 7, 10], &Device::Cpu)?;
//! assert_eq!(conditioning.class_labels.map(|labels| labels.dims().to_vec()), Some(vec![3]));
//! # Ok::<_, tweedie::Error>(())
//! ```

use crate::{Error, Result};
use candle_core::{Device, Tensor};
use std::cell::RefCell;

/// What a network is conditioned on, one row per image; nothing by default.
#[derive(Debug, Clone, Default)]
pub struct Conditioning {
    /// The text: `[batch, tokens, width]`.
    pub text: Option<Tensor>,
    /// The pooled text of models that have it: `[batch, width]`.
    pub pooled: Option<Tensor>,
    /// Original size, crop and target size of models that have them: `[batch, 6]`; the refiner of Stable Diffusion XL has
    /// a score in place of the target size: `[batch, 5]`.
    pub time_ids: Option<Tensor>,
    /// For networks that were distilled to take the strength of guidance as an input: the guidance scale minus 1,
    /// `[batch]`.
    pub guidance: Option<Tensor>,
    /// The class of each image: `[batch]` of u32.
    pub class_labels: Option<Tensor>,
}

impl Conditioning {
    /// Text alone, `[batch, tokens, width]`.
    pub fn text(text: Tensor) -> Self {
        Self { text: Some(text), ..Self::default() }
    }

    /// A class for each image.
    ///
    /// # Errors
    /// If they cannot be copied to the device.
    pub fn classes(classes: &[u32], device: &Device) -> Result<Self> {
        let labels = Tensor::from_slice(classes, classes.len(), device)?;
        Ok(Self { class_labels: Some(labels), ..Self::default() })
    }

    /// Zeros in place of text and pooled text: what Stable Diffusion XL was trained with where a picture had no caption.
    ///
    /// # Errors
    /// If the device fails.
    pub fn without_text(&self) -> Result<Self> {
        let zeros = |x: &Option<Tensor>| x.as_ref().map(Tensor::zeros_like).transpose();
        Ok(Self { text: zeros(&self.text)?, pooled: zeros(&self.pooled)?, ..Self::default() })
    }

    /// Whether all parts are the same tensors, not only equal ones.
    fn is(&self, other: &Self) -> bool {
        let ids = |conditioning: &Self| {
            let Self { text, pooled, time_ids, guidance, class_labels } = conditioning;
            [text, pooled, time_ids, guidance, class_labels].map(|part| part.as_ref().map(Tensor::id))
        };
        ids(self) == ids(other)
    }

    /// Several batches after one another.
    ///
    /// # Errors
    /// If their shapes differ, or some have parts that others lack.
    pub fn cat(parts: &[&Self]) -> Result<Self> {
        let joined = |what: &str, get: fn(&Self) -> Option<&Tensor>| -> Result<Option<Tensor>> {
            let tensors: Vec<_> = parts.iter().filter_map(|part| get(part)).collect();
            match tensors.len() {
                0 => Ok(None),
                count if count == parts.len() => Ok(Some(Tensor::cat(&tensors, 0)?)),
                count => {
                    let value = format!("in {count} of {} parts of a batch", parts.len());
                    Err(Error::invalid(format!("the conditioning's {what}"), value, "give it to all parts or to none"))
                }
            }
        };
        Ok(Self {
            text: joined("text", |part| part.text.as_ref())?,
            pooled: joined("pooled text", |part| part.pooled.as_ref())?,
            time_ids: joined("sizes", |part| part.time_ids.as_ref())?,
            guidance: joined("guidance", |part| part.guidance.as_ref())?,
            class_labels: joined("class", |part| part.class_labels.as_ref())?,
        })
    }

    /// Some rows of a batch.
    ///
    /// # Errors
    /// If there are not as many.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Result<Self> {
        let some = |x: &Option<Tensor>| x.as_ref().map(|x| x.narrow(0, rows.start, rows.len())).transpose();
        Ok(Self {
            text: some(&self.text)?,
            pooled: some(&self.pooled)?,
            time_ids: some(&self.time_ids)?,
            guidance: some(&self.guidance)?,
            class_labels: some(&self.class_labels)?,
        })
    }

    /// A batch of one repeated for `batch` images.
    ///
    /// # Errors
    /// If the device fails.
    pub fn repeat(&self, batch: usize) -> Result<Self> {
        let each = vec![self; batch];
        Self::cat(&each)
    }
}

/// A conditioning that is made of another, kept while that one is the same: in every step the network then sees the same
/// tensors, and can keep what it makes of them.
#[derive(Debug, Default)]
pub(crate) struct Derived(RefCell<Option<(Conditioning, Conditioning)>>);

impl Derived {
    /// What `make` makes, or made, of `source`.
    pub fn of(&self, source: &Conditioning, make: impl FnOnce() -> Result<Conditioning>) -> Result<Conditioning> {
        if let Some((last, made)) = &*self.0.borrow()
            && last.is(source)
        {
            return Ok(made.clone());
        }
        let made = make()?;
        self.0.replace(Some((source.clone(), made.clone())));
        Ok(made)
    }
}
