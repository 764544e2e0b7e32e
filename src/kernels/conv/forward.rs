//! The convolution.

use super::super::addend::{Addend, Start};
use super::super::output::{Output, matrix};
use super::super::product::{add_product, add_rounded_product};
use super::super::right_factor::Packed;
use super::super::rows::Rows;
use super::super::{Product, linear};
use super::grid::Grid;
use rayon::prelude::*;
use std::ops::Range;

impl Grid {
    /// The convolution with packed weights.
    pub fn convolve<T: Product>(&self, x: &[T], batch: usize, weight: Packed<'_, T>, addend: Addend<'_, T>) -> Vec<T> {
        let outputs = addend.outputs;
        if self.geometry.is_pointwise() {
            return linear::multiply(x, batch, weight, addend, self.channels);
        }
        // Its transforms lose bits that bf16 does not have.
        if let Some(winograd) = self.winograd_that_pays(outputs) {
            match weight {
                Packed::Panels(panels) => return winograd.convolve(x, batch, panels, addend),
                Packed::Turned(turned) => return winograd.convolve(x, batch, turned, addend),
                Packed::Pairs(_) | Packed::Quads(_) => {}
            }
        }
        let patch_len = self.patch_len();
        match weight {
            Packed::Panels(_) | Packed::Quads(_) | Packed::Turned(_) => {
                let multiply =
                    |rows: Rows<'_, T>, columns: &Range<usize>, start: Start<'_, T>, out: &mut Output<'_, T>| {
                        add_product(rows, weight.from(columns.start * patch_len), start, out);
                    };
                self.convolve_bands(x, batch, addend, |values, copy| copy.copy_from_slice(values), multiply)
            }
            // Each pixel is rounded once, though many patches see it.
            Packed::Pairs(pairs) => {
                let multiply = |rows: Rows<'_, T::Rounded>,
                                columns: &Range<usize>,
                                start: Start<'_, T>,
                                out: &mut Output<'_, T>| {
                    add_rounded_product(rows, pairs.from(columns.start * patch_len), start, out);
                };
                self.convolve_bands(x, batch, addend, T::round, multiply)
            }
        }
    }

    /// The convolution by bands, which are copied as `E`; `multiply` takes rows of a copy and some columns of the weight.
    fn convolve_bands<T: Product, E: Copy + Default + Send + Sync>(
        &self,
        x: &[T],
        batch: usize,
        addend: Addend<'_, T>,
        convert: impl Fn(&[T], &mut [E]) + Sync,
        multiply: impl Fn(Rows<'_, E>, &Range<usize>, Start<'_, T>, &mut Output<'_, T>) + Sync,
    ) -> Vec<T> {
        let outputs = addend.outputs;
        let bands = self.bands::<E>();
        let starts = self.patch_starts(bands.iter().map(Range::len).max().unwrap_or(0));
        let stretches = self.patch_stretches();
        let groups = linear::column_groups(batch * bands.len(), outputs);
        let rows_of = |block: usize| {
            let (image, band) = (block / bands.len(), &bands[block % bands.len()]);
            let first = (image * self.out_height + band.start) * self.out_width;
            first..first + band.len() * self.out_width
        };
        let row_blocks: Vec<_> = (0..batch * bands.len()).map(rows_of).collect();
        let compute = |whole: Output<'_, T>| {
            let outs = whole.split(&row_blocks, &groups).into_par_iter().enumerate();
            outs.for_each_init(Vec::new, |copy, (task, mut out)| {
                let (image, columns) = (task / groups.len() / bands.len(), &groups[task % groups.len()]);
                let band = &bands[task / groups.len() % bands.len()];
                self.copy_band(&x[image * self.image_len()..][..self.image_len()], band, copy, &convert);
                let rows = Rows { values: copy, starts: &starts[..out.rows()], stretches: &stretches };
                multiply(rows, columns, addend.of(image, columns), &mut out);
            });
        };
        // SAFETY: the tasks' bands cover the images, and a product sets its block.
        unsafe { matrix(batch * self.out_pixels(), outputs, addend.residual, compute) }
    }
}
