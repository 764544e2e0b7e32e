//! A larger canvas around a photo, to be painted on.

use super::photo::check_size;
use super::{CropBox, Mask, Photo, Samples};
use crate::{Error, Result};

/// Pixels to add on each side of a picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Margins {
    /// Columns before the first.
    pub left: usize,
    /// Rows above the first.
    pub top: usize,
    /// Columns after the last.
    pub right: usize,
    /// Rows below the last.
    pub bottom: usize,
}

impl Margins {
    /// Where a picture of that size lies on the extended canvas.
    pub fn inner(&self, width: usize, height: usize) -> CropBox {
        CropBox { left: self.left, top: self.top, width, height }
    }

    /// The canvas's size around a picture of that size.
    fn outer(&self, width: usize, height: usize) -> Result<(usize, usize)> {
        let sum = |parts: [usize; 3]| parts.into_iter().fold(0, usize::saturating_add);
        let size = (sum([self.left, width, self.right]), sum([self.top, height, self.bottom]));
        check_size("the extended canvas", size.0, size.1)?;
        if *self == Self::default() {
            return Err(Error::invalid("what is added to the canvas", "nothing", "give at least one side some pixels"));
        }
        Ok(size)
    }
}

impl Photo {
    /// The photo on a larger canvas, and the mask of what is new there.
    ///
    /// The new pixels mirror the photo at its edge (and mirror that, if they reach further than the photo is long), so
    /// they continue its colours and textures: a start for the model to repaint. The mask is white on them and, where
    /// they adjoin the photo, `overlap` pixels into it, which lets the model join the two.
    ///
    /// # Errors
    /// If the margins are all zero, or the canvas is too large.
    pub fn extended(&self, margins: &Margins, overlap: usize) -> Result<(Self, Mask)> {
        let (width, height) = margins.outer(self.width, self.height)?;
        let mirrored = |margin: usize, length: usize, to: usize| -> Vec<usize> {
            (0..to).map(|i| mirror(i as i64 - margin as i64, length)).collect()
        };
        let columns = mirrored(margins.left, self.width, width);
        let rows = mirrored(margins.top, self.height, height);
        let channels = self.color.channels();
        let samples = match &self.samples {
            Samples::Eight(samples) => Samples::Eight(gathered(samples, channels, self.width, &columns, &rows)),
            Samples::Sixteen(samples) => Samples::Sixteen(gathered(samples, channels, self.width, &columns, &rows)),
        };
        let kept = |margin: usize, length: usize, after: usize, i: usize| {
            let start = if margin > 0 { margin.saturating_add(overlap) } else { 0 };
            let end = margin + length - if after > 0 { overlap.min(length) } else { 0 };
            (start..end).contains(&i)
        };
        let is_kept = |x, y| {
            kept(margins.left, self.width, margins.right, x) && kept(margins.top, self.height, margins.bottom, y)
        };
        let values = (0..width * height).map(|i| if is_kept(i % width, i / width) { 0 } else { 255 }).collect();
        Ok((self.with_samples(width, height, samples), Mask { width, height, values }))
    }
}

/// The pixel that stands for pixel `i` of a line of `length`, which repeats in both directions, mirrored every time.
fn mirror(i: i64, length: usize) -> usize {
    let i = i.rem_euclid(2 * length as i64) as usize;
    i.min(2 * length - 1 - i)
}

fn gathered<T: Copy>(samples: &[T], channels: usize, width: usize, columns: &[usize], rows: &[usize]) -> Vec<T> {
    let mut out = Vec::with_capacity(channels * columns.len() * rows.len());
    for y in rows {
        for x in columns {
            let start = channels * (y * width + x);
            out.extend_from_slice(&samples[start..start + channels]);
        }
    }
    out
}
