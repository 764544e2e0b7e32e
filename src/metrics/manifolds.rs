//! How much of the samples is like the reference, and how much of the reference is reached: precision and recall (Kynkaanniemi et
//! al. 2019, "Improved precision and recall metric for assessing generative models"), density and coverage (Naeem et al. 2020,
//! "Reliable fidelity and diversity metrics for generative models").

use super::bootstrap::{Bootstrap, Figure};
use super::features::{Features, check_comparable};
use crate::{Error, Result};
use nalgebra::DMatrix;
use rayon::prelude::*;
use std::ops::Range;

/// The neighbour whose distance is the radius of a picture's ball, as in Naeem et al.
pub const NEAREST: usize = 5;

/// The four figures. The intervals draw the pictures over which a figure is a mean again; the balls stay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ManifoldFigures {
    /// The share of samples that are in the ball of some reference picture.
    pub precision: Figure,
    /// The share of reference pictures that are in the ball of some sample.
    pub recall: Figure,
    /// In how many balls of reference pictures a sample is in the mean, divided by `nearest`; it may be above 1.
    pub density: Figure,
    /// The share of reference pictures in whose ball some sample is.
    pub coverage: Figure,
}

/// Precision, recall, density and coverage. A picture's ball reaches to its neighbour number `nearest` of the same set, which is on
/// its edge and not inside.
///
/// # Errors
/// If the widths differ, or a set has no more pictures than `nearest`.
pub fn manifold_figures(
    samples: &Features,
    reference: &Features,
    nearest: usize,
    bootstrap: &Bootstrap,
) -> Result<ManifoldFigures> {
    if nearest == 0 {
        return Err(Error::invalid("the number of the nearest neighbour", nearest, "give 1 or more"));
    }
    check_comparable(samples, reference, nearest + 1)?;
    let (samples, reference) = (Points::new(samples), Points::new(reference));
    let sample_radii = samples.radii(nearest);
    let reference_radii = reference.radii(nearest);
    let of_rows = |tile: Range<usize>| {
        let mut found = Found::new(tile.len(), samples.features.len());
        reference.distances(tile.clone(), &samples, |row, column, distance| {
            found.reached[row] |= distance < sample_radii[column];
            found.closest[row] = found.closest[row].min(distance);
            found.balls[column] += u32::from(distance < reference_radii[tile.start + row]);
        });
        found
    };
    let parts: Vec<Found> = reference.features.tiles().into_par_iter().map(of_rows).collect();
    let mut balls = vec![0u32; samples.features.len()];
    parts.iter().for_each(|part| balls.iter_mut().zip(&part.balls).for_each(|(sum, more)| *sum += more));
    let share = |is: bool| f64::from(u8::from(is));
    let reached = parts.iter().flat_map(|part| &part.reached).map(|&reached| share(reached));
    let closest = parts.iter().flat_map(|part| &part.closest).zip(&reference_radii);
    Ok(ManifoldFigures {
        precision: bootstrap.mean(&balls.iter().map(|&count| share(count > 0)).collect::<Vec<_>>())?,
        recall: bootstrap.mean(&reached.collect::<Vec<_>>())?,
        density: bootstrap.mean(&balls.iter().map(|&count| f64::from(count) / nearest as f64).collect::<Vec<_>>())?,
        coverage: bootstrap.mean(&closest.map(|(closest, radius)| share(closest < radius)).collect::<Vec<_>>())?,
    })
}

/// What is known of a tile of reference pictures.
struct Found {
    /// Of each, whether it is in the ball of a sample.
    reached: Vec<bool>,
    /// Of each, the squared distance of the closest sample.
    closest: Vec<f64>,
    /// Of each sample, in how many of their balls it is.
    balls: Vec<u32>,
}

impl Found {
    fn new(rows: usize, samples: usize) -> Self {
        Self { reached: vec![false; rows], closest: vec![f64::INFINITY; rows], balls: vec![0; samples] }
    }
}

/// Features with their squared lengths. All distances are squared.
struct Points<'a> {
    features: &'a Features,
    squares: Vec<f64>,
}

impl<'a> Points<'a> {
    fn new(features: &'a Features) -> Self {
        let square = |i| features.row(i).unwrap_or_default().iter().map(|&value| f64::from(value).powi(2)).sum();
        Self { features, squares: (0..features.len()).map(square).collect() }
    }

    /// Gives the squared distances of a tile of pictures to all others: `give(row in the tile, column, distance)`.
    fn distances(&self, tile: Range<usize>, others: &Points<'_>, mut give: impl FnMut(usize, usize, f64)) {
        let rows = self.features.rows(tile.clone());
        for columns in others.features.tiles() {
            let products: DMatrix<f64> = &rows * others.features.columns(columns.clone());
            for (column, products) in columns.zip(products.column_iter()) {
                for (row, &product) in products.iter().enumerate() {
                    let sum = self.squares[tile.start + row] + others.squares[column];
                    give(row, column, (sum - 2.0 * product).max(0.0));
                }
            }
        }
    }

    /// The squared distance of each picture's neighbour number `nearest`.
    fn radii(&self, nearest: usize) -> Vec<f64> {
        let of_rows = |tile: Range<usize>| {
            // The nearest so far, in ascending order.
            let mut found = vec![vec![f64::INFINITY; nearest]; tile.len()];
            self.distances(tile.clone(), self, |row, column, distance| {
                let found = &mut found[row];
                if column != tile.start + row && distance < found[nearest - 1] {
                    let place = found.partition_point(|&closer| closer <= distance);
                    found[place..].rotate_right(1);
                    found[place] = distance;
                }
            });
            found.into_iter().map(|found| found[nearest - 1]).collect::<Vec<_>>()
        };
        self.features.tiles().into_par_iter().map(of_rows).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchGenerator;

    /// On a line: reference 0, 1, ..., 9 with radii 1, 1, ... (nearest 1), samples 0.5, 0.6, 20.
    #[test]
    fn figures_of_points_on_a_line() -> Result<()> {
        let reference = Features::from_values(1, (0u8..10).map(f32::from).collect())?;
        let samples = Features::from_values(1, vec![0.5, 0.625, 20.0])?;
        let got = manifold_figures(&samples, &reference, 1, &Bootstrap { resamples: 20, seed: 0 })?;
        // Radii of the samples: 0.125, 0.125, 19.375. So 1, ..., 9 are reached by the last, 0 by none.
        assert!((got.precision.value - 2.0 / 3.0).abs() < 1e-12);
        assert!((got.recall.value - 0.9).abs() < 1e-12);
        // Each of the first two samples is in the balls of 0 and 1.
        assert!((got.density.value - 4.0 / 3.0).abs() < 1e-12);
        assert!((got.coverage.value - 0.2).abs() < 1e-12);
        assert!(got.coverage.interval.is_some_and(|interval| interval.low < 0.2 && interval.high > 0.2));
        Ok(())
    }

    /// Over several tiles. A picture is in its own ball, so all is covered.
    #[test]
    fn a_set_covers_itself_and_not_what_is_far() -> Result<()> {
        let values = TorchGenerator::new(9).normal(3 * 600);
        let set = Features::from_values(3, values.clone())?;
        let figures = |samples| manifold_figures(samples, &set, NEAREST, &Bootstrap::NONE);
        let ManifoldFigures { precision, recall, density, coverage } = figures(&set)?;
        assert_eq!([precision.value, recall.value, coverage.value], [1.0; 3]);
        assert!(density.value >= 1.0);
        let far = Features::from_values(3, values.iter().map(|x| x + 1e4).collect())?;
        let ManifoldFigures { precision, recall, density, coverage } = figures(&far)?;
        assert_eq!([precision.value, recall.value, density.value, coverage.value], [0.0; 4]);
        assert!(manifold_figures(&set.selected(&[0, 1, 2, 3, 4]), &set, NEAREST, &Bootstrap::NONE).is_err());
        Ok(())
    }
}
