//! Features of pictures: what a network made of each, a row for every picture.

use crate::training::data::SplitMix64;
use crate::{Error, ErrorKind, Result};
use candle_core::{DType, Tensor};
use nalgebra::DMatrix;
use std::ops::Range;

/// Rows and columns of pairs that are looked at together: their products take half a megabyte.
const TILE: usize = 256;

/// Features of pictures, `[pictures, width]`, held in f32 as networks give them; all that is computed of them is in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    width: usize,
    values: Vec<f32>,
}

impl Features {
    /// Those of no picture yet.
    pub fn new(width: usize) -> Self {
        Self { width, values: Vec::new() }
    }

    /// From their values, picture by picture.
    ///
    /// # Shapes
    /// `values`: `[pictures, width]`, row by row.
    ///
    /// # Errors
    /// If they are no whole number of rows, or one is not finite.
    pub fn from_values(width: usize, values: Vec<f32>) -> Result<Self> {
        if width == 0 || !values.len().is_multiple_of(width) {
            let value = format!("{} values of a width of {width}", values.len());
            return Err(Error::invalid("the features", value, "they must be whole rows, one for each picture"));
        }
        check_finite(&values)?;
        Ok(Self { width, values })
    }

    /// Adds those of more pictures.
    ///
    /// # Shapes
    /// `rows`: `[pictures, width]`.
    ///
    /// # Errors
    /// If they have another width, or a value is not finite.
    pub fn append(&mut self, rows: &Tensor) -> Result<()> {
        self.values.extend(checked_rows(rows, self.width)?);
        Ok(())
    }

    /// How many pictures they are of.
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Whether they are of none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// How many features a picture has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The features of picture `index`; `None` if there is no such picture.
    pub fn row(&self, index: usize) -> Option<&[f32]> {
        self.values.chunks_exact(self.width.max(1)).nth(index)
    }

    /// The rows of these indices, in their order; an index that is not there gives no row.
    #[must_use]
    pub fn selected(&self, indices: &[usize]) -> Self {
        let rows = indices.iter().filter_map(|&index| self.row(index));
        Self { width: self.width, values: rows.flatten().copied().collect() }
    }

    /// `[width, pictures]`: a column for each picture of a range.
    pub(super) fn columns(&self, pictures: Range<usize>) -> DMatrix<f64> {
        let values = &self.values[pictures.start * self.width..pictures.end * self.width];
        DMatrix::from_iterator(self.width, pictures.len(), values.iter().map(|&value| f64::from(value)))
    }

    /// The same, transposed: `[pictures, width]`.
    pub(super) fn rows(&self, pictures: Range<usize>) -> DMatrix<f64> {
        self.columns(pictures).transpose()
    }

    /// The pictures in tiles.
    pub(super) fn tiles(&self) -> Vec<Range<usize>> {
        (0..self.len()).step_by(TILE).map(|start| start..(start + TILE).min(self.len())).collect()
    }
}

/// Whether two sets of features can be compared: both of one width, and of so many pictures at least.
pub(super) fn check_comparable(samples: &Features, reference: &Features, fewest: usize) -> Result<()> {
    check_width(samples.width, reference.width)?;
    check_count("the number of samples", samples, fewest)?;
    check_count("the number of reference pictures", reference, fewest)
}

/// Whether features are of so many pictures at least.
pub(super) fn check_count(what: &str, features: &Features, fewest: usize) -> Result<()> {
    match features.len() < fewest {
        true => Err(Error::invalid(what, features.len(), format!("at least {fewest} are needed"))),
        false => Ok(()),
    }
}

/// Whether samples and reference were seen by networks of one width.
pub(super) fn check_width(samples: usize, reference: usize) -> Result<()> {
    if samples == reference {
        return Ok(());
    }
    let fix = format!(
        "the samples have {samples}, so they were seen by another network; take the same `features` for both, or make the \
         statistics anew"
    );
    Err(Error::unusable(ErrorKind::File, "the number of features of the reference", reference, fix))
}

/// The values of a tensor of so many columns.
fn checked_rows(rows: &Tensor, width: usize) -> Result<Vec<f32>> {
    let (_, columns) = rows.dims2()?;
    if columns != width {
        return Err(Error::invalid("the number of features", columns, format!("those before have {width}")));
    }
    let values = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    check_finite(&values)?;
    Ok(values)
}

fn check_finite(values: &[f32]) -> Result<()> {
    match values.iter().filter(|value| !value.is_finite()).count() {
        0 => Ok(()),
        count => Err(Error::NotFinite {
            stage: "the network of features".into(),
            detail: format!("{count} of {} values", values.len()),
            fix: "its weights are damaged, or not for this network; get them again",
        }),
    }
}

/// Features of at most so many pictures of any number, each as likely to be among them as the others: the memory is bounded
/// whatever the number (Vitter 1985, "Random sampling with a reservoir", algorithm R).
#[derive(Debug, Clone)]
pub struct FeatureSample {
    kept: Features,
    capacity: usize,
    seen: usize,
    draws: SplitMix64,
}

impl FeatureSample {
    /// An empty one. Which pictures are kept, if there are more than `capacity`, follows from the seed.
    pub fn new(width: usize, capacity: usize, seed: u64) -> Self {
        Self { kept: Features::new(width), capacity, seen: 0, draws: SplitMix64::new(seed) }
    }

    /// Offers more pictures.
    ///
    /// # Shapes
    /// `rows`: `[pictures, width]`.
    ///
    /// # Errors
    /// As [`Features::append`].
    pub fn offer(&mut self, rows: &Tensor) -> Result<()> {
        let width = self.kept.width;
        for row in checked_rows(rows, width)?.chunks_exact(width.max(1)) {
            self.seen += 1;
            match self.kept.len() < self.capacity {
                true => self.kept.values.extend_from_slice(row),
                false => {
                    let place = self.draws.below(self.seen as u64) as usize;
                    if place < self.capacity {
                        self.kept.values[place * width..(place + 1) * width].copy_from_slice(row);
                    }
                }
            }
        }
        Ok(())
    }

    /// How many pictures there were.
    pub fn seen(&self) -> usize {
        self.seen
    }

    /// What was kept: all, in their order, unless there were more than the capacity.
    pub fn kept(&self) -> &Features {
        &self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Of 40 rows 10 are kept, so each in a quarter of 4,000 runs; five standard deviations are 137.
    #[test]
    fn every_picture_is_as_likely_to_be_kept() -> Result<()> {
        let rows = Tensor::arange(0f32, 40.0, &Device::Cpu)?.reshape((40, 1))?;
        let mut counts = [0i32; 40];
        for seed in 0..4000 {
            let mut sample = FeatureSample::new(1, 10, seed);
            sample.offer(&rows.narrow(0, 0, 25)?)?;
            sample.offer(&rows.narrow(0, 25, 15)?)?;
            assert_eq!((sample.seen(), sample.kept().len()), (40, 10));
            sample.kept().values.iter().for_each(|&value| counts[value as usize] += 1);
        }
        assert!(counts.iter().all(|count| (count - 1000).abs() < 137), "{counts:?}");
        Ok(())
    }

    #[test]
    fn few_are_kept_in_their_order() -> Result<()> {
        let rows = Tensor::arange(0f32, 12.0, &Device::Cpu)?.reshape((4, 3))?;
        let mut sample = FeatureSample::new(3, 4, 0);
        sample.offer(&rows)?;
        assert_eq!(sample.kept(), &Features::from_values(3, (0u8..12).map(f32::from).collect())?);
        assert_eq!(sample.kept().selected(&[2, 0]).values, [6.0, 7.0, 8.0, 0.0, 1.0, 2.0]);
        Ok(())
    }

    #[test]
    fn what_is_no_feature_is_refused() -> Result<()> {
        let message = |result: Result<()>| result.err().map(|error| error.to_string()).unwrap_or_default();
        let mut features = Features::new(2);
        let infinite = Tensor::new(&[[1f32, f32::INFINITY]], &Device::Cpu)?;
        assert!(message(features.append(&infinite)).contains("1 of 2 values"));
        assert!(message(features.append(&Tensor::new(&[[1f32]], &Device::Cpu)?)).contains("those before have 2"));
        assert!(message(Features::from_values(2, vec![0.0; 3]).map(|_| ())).contains("whole rows"));
        Ok(())
    }
}
