//! Layers that are computed row by row, from the top down.
//!
//! A layer asks the one before it for the rows that it sees, and keeps those that it will see again: no row is computed twice
//! in one pass.

use crate::kernels::{ChannelSums, LEAST_SIDE, ROWS_TOGETHER};
use crate::layers::{Conv2d, FeatureMap, GroupNorm};
use crate::models::resnet::ResnetBlock;
use crate::{Error, Result};
use std::ops::Range;

/// The rows of a map of one image, from the first to the last.
pub(super) trait RowSource {
    /// All of them.
    fn height(&self) -> usize;

    /// The rows that follow those that were given, up to `end` if that is not too many or too few; one at least.
    ///
    /// # Errors
    /// If there are no more, or what they are made from fails.
    fn next(&mut self, end: usize) -> Result<FeatureMap>;
}

impl<S: RowSource + ?Sized> RowSource for Box<S> {
    fn height(&self) -> usize {
        (**self).height()
    }

    fn next(&mut self, end: usize) -> Result<FeatureMap> {
        (**self).next(end)
    }
}

/// Where rows of a convolution end that shall reach to `end` at least: so that these and what remains are computed as in the
/// whole map.
fn end_of_rows(end: usize, height: usize) -> usize {
    let end = end.next_multiple_of(ROWS_TOGETHER);
    if end + LEAST_SIDE > height { height } else { end }
}

/// Rows that are kept until nobody will see them again.
#[derive(Debug, Default)]
struct Kept {
    rows: Range<usize>,
    map: Option<FeatureMap>,
}

impl Kept {
    fn push(&mut self, map: FeatureMap) -> Result<()> {
        let (_, _, more, _) = map.dims();
        let maps: Vec<_> = self.map.take().into_iter().chain([map]).collect();
        self.map = Some(FeatureMap::stacked(&maps)?);
        self.rows.end += more;
        Ok(())
    }

    fn get(&self, rows: Range<usize>) -> Result<FeatureMap> {
        match &self.map {
            Some(map) => map.rows(rows.start - self.rows.start..rows.end - self.rows.start),
            None => Err(Error::invalid("the rows that a layer sees", format!("{rows:?}"), NOT_KEPT)),
        }
    }

    fn forget(&mut self, before: usize) -> Result<()> {
        let rows = before.clamp(self.rows.start, self.rows.end)..self.rows.end;
        self.map = if rows.is_empty() { None } else { Some(self.get(rows.clone())?) };
        self.rows = rows;
        Ok(())
    }
}

/// What is wrong with a layer that looks at rows that are gone.
const NOT_KEPT: &str = "they are not kept; this is a fault of the layers' order";

/// A layer's view of the one before it.
struct Window<S> {
    source: S,
    kept: Kept,
}

impl<S: RowSource> Window<S> {
    fn new(source: S) -> Self {
        Self { source, kept: Kept::default() }
    }

    fn get(&mut self, rows: Range<usize>) -> Result<FeatureMap> {
        while self.kept.rows.end < rows.end {
            self.kept.push(self.source.next(rows.end)?)?;
        }
        self.kept.get(rows)
    }
}

/// What comes before a convolution.
pub(super) enum Before<'a> {
    Nothing,
    /// Twice the size, by nearest neighbours.
    Upsampling,
    /// A norm, with the sums over the map that it sees.
    Norm(&'a GroupNorm, &'a ChannelSums),
}

/// The rows of a convolution.
pub(super) struct Convolved<'a, S> {
    input: Window<S>,
    before: Before<'a>,
    conv: &'a Conv2d,
    /// Rows that were given.
    done: usize,
}

impl<'a, S: RowSource> Convolved<'a, S> {
    pub fn new(input: S, before: Before<'a>, conv: &'a Conv2d) -> Self {
        Self { input: Window::new(input), before, conv, done: 0 }
    }

    /// The height of what the convolution sees.
    fn seen_height(&self) -> usize {
        self.input.source.height() * if matches!(self.before, Before::Upsampling) { 2 } else { 1 }
    }
}

impl<S: RowSource> RowSource for Convolved<'_, S> {
    fn height(&self) -> usize {
        let height = self.seen_height();
        self.conv.output_sides([height; 2])[0]
    }

    fn next(&mut self, end: usize) -> Result<FeatureMap> {
        let rows = self.done..end_of_rows(end, self.height());
        let height = self.seen_height();
        let seen = self.conv.rows_seen(&rows, height);
        let mut next = self.conv.rows_seen(&(rows.end..rows.end + 1), height).start;
        let x = match self.before {
            Before::Nothing => self.input.get(seen.clone())?,
            Before::Norm(norm, sums) => norm.forward_part(&self.input.get(seen.clone())?, sums)?,
            Before::Upsampling => {
                let source = seen.start / 2..seen.end.div_ceil(2);
                let x = self.input.get(source.clone())?;
                let (_, _, rows, columns) = x.dims();
                next /= 2;
                x.resize_nearest(2 * rows, 2 * columns)?
                    .rows(seen.start - 2 * source.start..seen.end - 2 * source.start)?
            }
        };
        let y = self.conv.for_rows(&seen, height).forward(&x)?;
        self.done = rows.end;
        self.input.kept.forget(next)?;
        Ok(y)
    }
}

/// The rows of a residual block, which is given the sums over the maps that its norms see.
pub(super) struct Residual<'a, S> {
    block: &'a ResnetBlock,
    input: Window<S>,
    sums: [&'a ChannelSums; 2],
    /// Of what the first convolution gives.
    hidden: Kept,
    done: usize,
}

impl<'a, S: RowSource> Residual<'a, S> {
    pub fn new(input: S, block: &'a ResnetBlock, sums: [&'a ChannelSums; 2]) -> Self {
        Self { block, input: Window::new(input), sums, hidden: Kept::default(), done: 0 }
    }
}

impl<S: RowSource> RowSource for Residual<'_, S> {
    fn height(&self) -> usize {
        self.input.source.height()
    }

    fn next(&mut self, end: usize) -> Result<FeatureMap> {
        let height = self.height();
        let ([norm1, norm2], [conv1, conv2]) = (self.block.norms(), self.block.convs());
        let rows = self.done..end_of_rows(end, height);
        let seen = conv2.rows_seen(&rows, height);
        if self.hidden.rows.end < seen.end {
            let hidden = self.hidden.rows.end..end_of_rows(seen.end, height);
            let seen = conv1.rows_seen(&hidden, height);
            let normed = norm1.forward_part(&self.input.get(seen.clone())?, self.sums[0])?;
            self.hidden.push(conv1.for_rows(&seen, height).forward(&normed)?)?;
        }
        let conditioned = norm2.forward_part(&self.hidden.get(seen.clone())?, self.sums[1])?;
        let x = self.input.get(rows.clone())?;
        let y = self.block.sum(&conv2.for_rows(&seen, height), &x, conditioned)?;
        self.done = rows.end;
        let next = |conv: &Conv2d, row: usize| conv.rows_seen(&(row..row + 1), height).start;
        self.hidden.forget(next(conv2, rows.end))?;
        self.input.kept.forget(rows.end.min(next(conv1, self.hidden.rows.end)))?;
        Ok(y)
    }
}
