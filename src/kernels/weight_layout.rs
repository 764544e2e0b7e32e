//! Weights as they lie in files, laid out for the product: row by row to panels or pairs.

use super::bf16::{STEP, index};
use super::dry_run;
use super::panel_row::PANEL;
use super::transpose::{AT_ONCE, across};
use half::bf16;
use rayon::prelude::*;

/// Panels `[out / 16][tap][in][16]` of a weight `[out, in]` or `[out, in, height, width]`, zeros after the last output.
pub(super) fn pack_shaped<E: Copy + Default + Send + Sync>(weight: &[E], shape: &[usize]) -> Vec<E> {
    lay_out::<E, false>(weight, shape)
}

/// [`Pairs`] of it, the rows in the same order. The inputs are whole steps.
pub(super) fn pair_shaped(weight: &[bf16], shape: &[usize]) -> Vec<bf16> {
    assert!(shape[1].is_multiple_of(STEP));
    lay_out::<_, true>(weight, shape)
}

fn lay_out<E: Copy + Default + Send + Sync, const PAIRS: bool>(weight: &[E], shape: &[usize]) -> Vec<E> {
    let (outputs, inputs) = (shape[0], shape[1]);
    let taps: usize = shape[2..].iter().product();
    let depth = taps * inputs;
    assert!(weight.len() == outputs * depth);
    let len = outputs.div_ceil(PANEL) * depth * PANEL;
    let mut panels = Vec::with_capacity(len);
    if dry_run::is_dry_run() {
        return panels;
    }
    let no_output = vec![E::default(); depth];
    panels.spare_capacity_mut()[..len].par_chunks_mut((depth * PANEL).max(1)).enumerate().for_each(
        |(panel, values)| {
            let rows: [&[E]; PANEL] = std::array::from_fn(|lane| match panel * PANEL + lane {
                out if out < outputs => &weight[out * depth..][..depth],
                _ => &no_output[..],
            });
            // Of the next line, which follow each other in the file with the taps inside the inputs.
            let (mut input, mut tap) = (0, 0);
            let mut write = |line: [E; PANEL]| {
                let k = tap * inputs + input;
                tap += 1;
                if tap == taps {
                    (input, tap) = (input + 1, 0);
                }
                if PAIRS {
                    let places = values[index(depth, k, 0)..].iter_mut().step_by(2);
                    places.zip(line).for_each(|(place, value)| _ = place.write(value));
                } else {
                    let places = &mut values[k * PANEL..][..PANEL];
                    places.iter_mut().zip(line).for_each(|(place, value)| _ = place.write(value));
                }
            };
            let whole = depth - depth % AT_ONCE;
            for first in (0..whole).step_by(AT_ONCE) {
                across(&rows, first).into_iter().for_each(&mut write);
            }
            (whole..depth).for_each(|i| write(rows.map(|row| row[i])));
        },
    );
    // SAFETY: for each panel the lines of all rows of the matrix are written, and each place belongs to one of them.
    unsafe { panels.set_len(len) };
    panels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{bf16 as pairs, panels::pack};

    /// As the layouts' own functions have it, which take a matrix value by value.
    #[test]
    fn weights_lie_as_matrices_of_taps_and_channels_do() {
        for (outputs, inputs, kernel) in [(20, 32, 3), (16, 64, 1), (33, 32, 1)] {
            let taps = kernel * kernel;
            let weight: Vec<bf16> = (0..outputs * inputs * taps).map(|i| bf16::from_bits(i as u16)).collect();
            let at = |k: usize, out: usize| weight[(out * inputs + k % inputs) * taps + k / inputs];
            let shape = [outputs, inputs, kernel, kernel];
            let bits = |values: Vec<bf16>| -> Vec<u16> { values.into_iter().map(bf16::to_bits).collect() };
            assert!(bits(pair_shaped(&weight, &shape)) == bits(pairs::pack(inputs * taps, outputs, at)));
            let wide: Vec<f32> = weight.iter().map(|value| value.to_bits().into()).collect();
            let at = |k: usize, out: usize| f32::from(at(k, out).to_bits());
            assert!(pack_shaped(&wide, &shape) == pack(inputs * taps, outputs, at));
        }
    }
}
