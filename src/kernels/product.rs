//! MatmulPrecision of matrices, in tiles of either kind: rows anywhere in memory times panels or pairs.

use super::InstructionSet;
use super::addend::Start;
use super::bf16::{self, Pairs};
use super::int8::{self, Quads, RoundedLeft};
use super::output::Output;
use super::panel_row::PANEL;
use super::panels::PanelSource;
use super::right_factor::Packed;
use super::rows::Rows;
use super::tile::{Left, Right, Run, Tiled, add_tiles};
use std::ops::Range;

/// Length of the sums between two visits to the output, for one panel: that many rows of it stay in the first cache.
const DEPTH: usize = 320;

/// Rows that one panel is multiplied with before the next panel is fetched. Where panels have to be widened first, it is all rows
/// of the task.
const BLOCK_ROWS: usize = 96;

/// An element type whose matrices the kernels multiply.
pub(super) trait Product: Tiled {
    /// [`add_product`] with pairs, in f32 with the left factor rounded too.
    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>);

    /// [`add_product`] with quads, in f32 with the left factor rounded too.
    fn add_quads(rows: Rows<'_, Self>, quads: Quads<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>);

    /// The left factor as products with quads take it.
    type Quantised: Default + Send;

    /// Rounds the left factor for [`Self::add_quantised`].
    fn quantise(rows: Rows<'_, Self>, to: &mut Self::Quantised);

    /// As [`Self::add_quads`] with what was rounded before of these rows.
    fn add_quantised(
        rows: Rows<'_, Self>,
        left: &Self::Quantised,
        quads: Quads<'_>,
        start: Start<'_, Self>,
        out: &mut Output<'_, Self>,
    );

    /// A value of the left factor as products with pairs take it.
    type Rounded: Copy + Default + Send + Sync;

    /// Rounds the left factor for [`Self::add_rounded`].
    fn round(values: &[Self], to: &mut [Self::Rounded]);

    /// As [`Self::add_pairs`] with what was rounded before.
    fn add_rounded(rows: Rows<'_, Self::Rounded>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>);
}

impl Product for f64 {
    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>) {
        let depth = rows.depth();
        add_each(rows, |k, column| pairs.at(depth, k, column).to_f64(), start, out);
    }

    fn add_quads(rows: Rows<'_, Self>, quads: Quads<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>) {
        add_each(rows, |k, column| quads.at(k, column).into(), start, out);
    }

    type Quantised = ();

    fn quantise(_: Rows<'_, Self>, (): &mut ()) {}

    fn add_quantised(
        rows: Rows<'_, Self>,
        (): &(),
        quads: Quads<'_>,
        start: Start<'_, Self>,
        out: &mut Output<'_, Self>,
    ) {
        Self::add_quads(rows, quads, start, out);
    }

    type Rounded = Self;

    fn round(values: &[Self], to: &mut [Self]) {
        to.copy_from_slice(values);
    }

    fn add_rounded(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>) {
        Self::add_pairs(rows, pairs, start, out);
    }
}

impl Product for f32 {
    fn add_pairs(rows: Rows<'_, Self>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>) {
        bf16::add_product(rows, pairs, start, out, InstructionSet::in_use());
    }

    fn add_quads(rows: Rows<'_, Self>, quads: Quads<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>) {
        int8::add_product(rows, quads, start, out, InstructionSet::in_use());
    }

    type Quantised = RoundedLeft;

    fn quantise(rows: Rows<'_, Self>, to: &mut RoundedLeft) {
        to.round(rows, InstructionSet::in_use());
    }

    fn add_quantised(
        _: Rows<'_, Self>,
        left: &RoundedLeft,
        quads: Quads<'_>,
        start: Start<'_, Self>,
        out: &mut Output<'_, Self>,
    ) {
        int8::add_rounded(left, quads, start, out, InstructionSet::in_use());
    }

    type Rounded = half::bf16;

    fn round(values: &[Self], to: &mut [half::bf16]) {
        bf16::round(values, to, InstructionSet::in_use());
    }

    fn add_rounded(rows: Rows<'_, half::bf16>, pairs: Pairs<'_>, start: Start<'_, Self>, out: &mut Output<'_, Self>) {
        bf16::add_product(rows, pairs, start, out, InstructionSet::in_use());
    }
}

/// `out = start + rows * right` value by value, for who computes in more than f32: with the weights rounded alone, which
/// `at(k, column)` gives.
fn add_each(rows: Rows<'_, f64>, at: impl Fn(usize, usize) -> f64, start: Start<'_, f64>, out: &mut Output<'_, f64>) {
    let columns = out.columns();
    for (row, &first) in rows.starts.iter().enumerate() {
        let values = rows.stretches.iter().flat_map(|&(offset, length)| &rows.values[first + offset..][..length]);
        let mut sums = match start {
            Start::Zero => vec![0.0; columns],
            Start::Row(row) => row[..columns].to_vec(),
            Start::Output => out.row(row).to_vec(),
        };
        for (k, &x) in values.enumerate() {
            sums.iter_mut().enumerate().for_each(|(column, sum)| *sum += x * at(k, column));
        }
        out.part(row..row + 1, 0..columns).fill(&sums);
    }
}

/// `out = start + rows * right`, for the panels that cover `out`'s columns, plus its residual if it has one: while a task's
/// block is in the second cache.
pub(super) fn add_product<T: Product>(
    rows: Rows<'_, T>,
    right: Packed<'_, T>,
    start: Start<'_, T>,
    out: &mut Output<'_, T>,
) {
    match right {
        Packed::Panels(panels) => add_panels(rows, panels, start, out),
        Packed::Pairs(pairs) => T::add_pairs(rows, pairs, start, out),
        Packed::Quads(quads) => T::add_quads(rows, quads, start, out),
        Packed::Turned(turned) => add_panels(rows, turned, start, out),
    }
    out.add_residual();
}

/// [`add_product`] with quads, of rows that were rounded before.
pub(super) fn add_quantised_product<T: Product>(
    rows: Rows<'_, T>,
    left: &T::Quantised,
    quads: Quads<'_>,
    start: Start<'_, T>,
    out: &mut Output<'_, T>,
) {
    T::add_quantised(rows, left, quads, start, out);
    out.add_residual();
}

/// [`add_product`] with pairs, of rows that were rounded before.
pub(super) fn add_rounded_product<T: Product>(
    rows: Rows<'_, T::Rounded>,
    pairs: Pairs<'_>,
    start: Start<'_, T>,
    out: &mut Output<'_, T>,
) {
    T::add_rounded(rows, pairs, start, out);
    out.add_residual();
}

/// With panels as [`pack`](super::panels::pack) makes them.
fn add_panels<'a, T: Product>(
    rows: Rows<'_, T>,
    panels: impl PanelSource<'a, T>,
    start: Start<'_, T>,
    out: &mut Output<'_, T>,
) {
    let depth = rows.depth();
    let count = out.columns().div_ceil(PANEL);
    assert!(panels.count(depth) >= count && out.rows() == rows.starts.len());
    let at_once = T::panels_at_once();
    let most_rows = if panels.wide().is_some() { BLOCK_ROWS } else { out.rows().max(1) };
    let mut buffer = Vec::new();
    for (i, RunBlock { lines, runs }) in blocks_of_runs(rows.stretches, DEPTH / at_once).into_iter().enumerate() {
        let start = if i == 0 { start } else { Start::Output };
        for first in (0..out.rows()).step_by(most_rows) {
            let block = first..(first + most_rows).min(out.rows());
            let left = Left { values: rows.values, starts: &rows.starts[block.clone()], step: 1 };
            for first in (0..count).step_by(at_once) {
                let group = first..(first + at_once).min(count);
                let columns = group.start * PANEL..(group.end * PANEL).min(out.columns());
                let start = start.at(columns.start);
                let (values, panel) = panels.widened(depth, &group, &lines, &mut buffer);
                let right = Right { values, step: PANEL, panel };
                add_tiles(left, right, &runs, start, out.part(block.clone(), columns));
            }
        }
    }
}

/// `out += sum over the runs of left^T right`, each a matrix whose rows are `strides` apart, the left one from its first column and
/// the right one from where its runs begin.
pub(super) fn add_outer_products<T: Tiled>(
    [left, right]: [&[T]; 2],
    strides: [usize; 2],
    runs: &[Run],
    mut out: Output<'_, T>,
) {
    let starts: Vec<usize> = (0..out.rows()).collect();
    let left = Left { values: left, starts: &starts, step: strides[0] };
    let at_once = T::panels_at_once() * PANEL;
    for first in (0..out.columns()).step_by(at_once) {
        let columns = first..(first + at_once).min(out.columns());
        let right = Right { values: &right[first..], step: strides[1], panel: PANEL };
        add_tiles(left, right, runs, Start::Output, out.part(0..starts.len(), columns));
    }
}

/// Some runs of a sum, and the lines of a panel that they need; the runs count from the first of these.
#[derive(Default)]
struct RunBlock {
    lines: Range<usize>,
    runs: Vec<Run>,
}

/// Cuts the stretches of a sum into blocks of about `most` steps.
fn blocks_of_runs(stretches: &[(usize, usize)], most: usize) -> Vec<RunBlock> {
    let mut blocks = Vec::new();
    let mut block = RunBlock::default();
    for &(offset, length) in stretches {
        let pieces = length.div_ceil(most);
        for piece in 0..pieces {
            let (from, to) = (piece * length / pieces, (piece + 1) * length / pieces);
            let count = to - from;
            if !block.runs.is_empty() && block.lines.len() + count > most {
                let end = block.lines.end;
                blocks.push(std::mem::replace(&mut block, RunBlock { lines: end..end, runs: Vec::new() }));
            }
            block.runs.push(Run { left: offset + from, right: block.lines.len() * PANEL, count });
            block.lines.end += count;
        }
    }
    blocks.push(block);
    blocks
}
