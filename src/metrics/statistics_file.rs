//! Mean and covariance in a file, in pytorch-fid's form.

use super::moments::FeatureStatistics;
use crate::checkpoints::{NumpyArray, read_npz, write_npz};
use crate::files::Existing;
use crate::{Error, ErrorKind, Result};
use std::path::Path;

impl FeatureStatistics {
    /// Reads an `.npz` file with the arrays `mu`, `[width]`, and `sigma`, `[width, width]`, as pytorch-fid and others write it; if there is
    /// `count` too, it says of how many pictures they are.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or has other arrays.
    pub fn read(path: &Path) -> Result<Self> {
        let malformed = |reason: String| Error::malformed(ErrorKind::File, "file of feature statistics", path, reason);
        let mut arrays = read_npz(path, &["mu", "sigma", "count"])?;
        let mut take = |name: &str| {
            arrays
                .remove(name)
                .ok_or_else(|| malformed(format!("it has no array {name}; `write_statistics` makes one")))
        };
        let (mean, covariance) = (take("mu")?, take("sigma")?);
        let width = mean.values.len();
        if mean.shape != [width] || covariance.shape != [width, width] {
            let (mu, sigma) = (mean.shape, covariance.shape);
            return Err(malformed(format!("mu is {mu:?} and sigma {sigma:?}; they must be [n] and [n, n]")));
        }
        let count = take("count").ok().and_then(|count| count.values.first().map(|&count| count as usize));
        Self::new(mean.values, covariance.values, count).map_err(|error| malformed(error.to_string()))
    }

    /// Writes the same. Returns whether the file was written, which it is not if there is one and that is to be kept.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path, existing: Existing) -> Result<bool> {
        let width = self.width();
        let mean = NumpyArray { shape: vec![width], values: self.mean().to_vec() };
        let covariance = NumpyArray { shape: vec![width, width], values: self.covariance().to_vec() };
        let mut arrays = vec![("mu", mean), ("sigma", covariance)];
        if let Some(count) = self.count() {
            arrays.push(("count", NumpyArray { shape: vec![], values: vec![count as f64] }));
        }
        write_npz(path, existing, &arrays)
    }
}
