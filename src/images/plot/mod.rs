//! Plots of lines, of bars and of rows of pictures, for schedules, losses and comparisons.

mod bars;
mod canvas;
mod font;
mod rows;

pub use bars::{Bar, Bars};
pub use rows::{LabelledRow, LabelledRows};

use super::Picture;
use crate::{Error, Result};
use canvas::{Canvas, HEIGHT, INK, WIDTH};
use font::{TITLE, Text};

/// A line of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// Its points, in order.
    pub points: Vec<(f64, f64)>,
    /// Whether points are marked.
    pub marks: bool,
    /// Whether points are joined.
    pub line: bool,
}

impl Series {
    /// A line through points.
    pub fn line(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, marks: false, line: true }
    }

    /// Marked points, joined or not.
    pub fn marked(name: impl Into<String>, points: Vec<(f64, f64)>, joined: bool) -> Self {
        Self { name: name.into(), points, marks: true, line: joined }
    }
}

/// A plot with labelled axes and a legend.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// The title.
    pub title: String,
    /// What the horizontal axis is.
    pub x_label: String,
    /// What the vertical axis is.
    pub y_label: String,
    /// Whether the axes are logarithmic: horizontal, vertical.
    pub logarithmic: (bool, bool),
    /// The lines.
    pub series: Vec<Series>,
}

const TOP: f64 = 44.0;
const BOTTOM: f64 = 62.0;
/// Pixels between the axes and their numbers, and between a line of the legend and its name.
const GAP: f64 = 8.0;
/// Pixels of a legend's line.
const SAMPLE: f64 = 22.0;
const GRID: [f64; 3] = [225.0, 225.0, 225.0];

/// Colours that are told apart, repeated with dashes after the last.
const COLOURS: [[f64; 3]; 10] = [
    [31.0, 119.0, 180.0],
    [214.0, 39.0, 40.0],
    [44.0, 160.0, 44.0],
    [255.0, 127.0, 14.0],
    [148.0, 103.0, 189.0],
    [140.0, 86.0, 75.0],
    [227.0, 119.0, 194.0],
    [90.0, 90.0, 90.0],
    [188.0, 189.0, 34.0],
    [23.0, 190.0, 207.0],
];

impl Plot {
    /// Draws the plot.
    ///
    /// # Errors
    /// If there is no point that can be drawn.
    pub fn draw(&self) -> Result<Picture> {
        let usable = |axis: fn(&(f64, f64)) -> f64, log: bool| {
            let values = self.series.iter().flat_map(|series| &series.points).map(axis);
            values.filter(|v| v.is_finite() && (!log || *v > 0.0)).collect::<Vec<f64>>()
        };
        let x = Axis::over(&usable(|p| p.0, self.logarithmic.0), self.logarithmic.0);
        let y = Axis::over(&usable(|p| p.1, self.logarithmic.1), self.logarithmic.1);
        let (Some(x), Some(y)) = (x, y) else {
            return Err(Error::invalid("the plot", "empty", "give it at least one finite point"));
        };
        let mut canvas = Canvas::new(WIDTH, HEIGHT);
        let frame = self.frame(&y);
        self.draw_frame(&mut canvas, &frame, &x, &y);
        for (i, series) in self.series.iter().enumerate() {
            let (colour, dashed) = (COLOURS[i % COLOURS.len()], i >= COLOURS.len());
            let place = |&(px, py): &(f64, f64)| Some((frame.horizontal(x.place(px)?), frame.vertical(y.place(py)?)));
            let points: Vec<_> = series.points.iter().filter_map(place).collect();
            if series.line {
                points.windows(2).for_each(|pair| canvas.segment(pair[0], pair[1], 1.6, colour, dashed));
            }
            if series.marks {
                points.iter().for_each(|&point| canvas.segment(point, point, 6.0, colour, false));
            }
        }
        self.draw_legend(&mut canvas, &frame);
        canvas.into_picture()
    }

    /// Where the axes are: as far inside as numbers and names are wide.
    fn frame(&self, y: &Axis) -> Frame {
        let widest =
            |texts: &mut dyn Iterator<Item = String>| texts.map(|text| Text::label(&text).width()).fold(0.0, f64::max);
        let numbers = widest(&mut y.ticks().into_iter().map(number));
        let names = widest(&mut self.series.iter().map(|series| series.name.clone()));
        let legend = if self.series.len() > 1 { names + SAMPLE + 3.0 * GAP } else { 0.0 };
        let (left, right) =
            (LABEL_ROOM + numbers + 2.0 * GAP, WIDTH as f64 - (legend + 2.0 * GAP).min(WIDTH as f64 / 2.0));
        Frame { left, right, top: TOP, bottom: HEIGHT as f64 - BOTTOM }
    }

    fn draw_frame(&self, canvas: &mut Canvas, frame: &Frame, x: &Axis, y: &Axis) {
        let &Frame { left, right, top, bottom } = frame;
        for tick in x.ticks() {
            let Some(at) = x.place(tick).map(|share| frame.horizontal(share)) else { continue };
            canvas.segment((at, bottom), (at, top), 1.0, GRID, false);
            canvas.centred(at, bottom + 15.0, &Text::label(&number(tick)));
        }
        for tick in y.ticks() {
            let Some(at) = y.place(tick).map(|share| frame.vertical(share)) else { continue };
            canvas.segment((left, at), (right, at), 1.0, GRID, false);
            canvas.text_before(left - GAP, at, &Text::label(&number(tick)));
        }
        for (from, to) in [((left, bottom), (right, bottom)), ((left, bottom), (left, top))] {
            canvas.segment(from, to, 1.2, INK, false);
        }
        canvas.centred(f64::midpoint(left, right), TOP / 2.0, &Text::new(&self.title, TITLE));
        canvas.centred(f64::midpoint(left, right), HEIGHT as f64 - 18.0, &Text::label(&self.x_label));
        canvas.upwards(LABEL_ROOM / 2.0, f64::midpoint(top, bottom), &Text::label(&self.y_label));
    }

    /// The names of lines beside the axes, if there are several.
    fn draw_legend(&self, canvas: &mut Canvas, frame: &Frame) {
        if self.series.len() < 2 {
            return;
        }
        let pitch = ((frame.bottom - frame.top) / self.series.len() as f64).min(22.0);
        for (i, series) in self.series.iter().enumerate() {
            let (colour, dashed) = (COLOURS[i % COLOURS.len()], i >= COLOURS.len());
            let (row, start) = (frame.top + (i as f64 + 0.5) * pitch, frame.right + 2.0 * GAP);
            if series.line {
                canvas.segment((start, row), (start + SAMPLE, row), 2.5, colour, dashed);
            }
            if series.marks {
                let middle = (start + SAMPLE / 2.0, row);
                canvas.segment(middle, middle, 6.0, colour, false);
            }
            canvas.text(start + SAMPLE + GAP, row, &Text::label(&series.name));
        }
    }
}

/// Pixels that the name of the vertical axis takes.
const LABEL_ROOM: f64 = 30.0;

/// Where the axes are, in pixels.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn horizontal(&self, share: f64) -> f64 {
        self.left + share * (self.right - self.left)
    }

    fn vertical(&self, share: f64) -> f64 {
        self.bottom - share * (self.bottom - self.top)
    }
}

/// A range of values along an axis, their logarithms if it is logarithmic.
struct Axis {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Axis {
    fn over(values: &[f64], logarithmic: bool) -> Option<Self> {
        let scaled = |v: &f64| if logarithmic { v.log10() } else { *v };
        let (low, high) =
            values.iter().map(scaled).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low > high {
            return None;
        }
        let margin = if high > low { 0.03 * (high - low) } else { 0.5 };
        Some(Self { low: low - margin, high: high + margin, logarithmic })
    }

    /// Where a value lies, 0 to 1.
    fn place(&self, value: f64) -> Option<f64> {
        let value = if self.logarithmic { value.log10() } else { value };
        value.is_finite().then(|| (value - self.low) / (self.high - self.low))
    }

    /// Round values within the range: 1, 2 or 5 times a power of ten apart, or powers of ten.
    fn ticks(&self) -> Vec<f64> {
        let span = self.high - self.low;
        if self.logarithmic {
            let exponents = (self.low.ceil() as i32)..=(self.high.floor() as i32);
            let powers: Vec<f64> = exponents.map(|e| 10f64.powi(e)).collect();
            if powers.len() >= 2 {
                return powers;
            }
            let factors = [1.0, 2.0, 5.0].map(|f: f64| f.log10());
            let decades = (self.low.floor() as i32)..=(self.high.ceil() as i32);
            let all = decades.flat_map(|e| factors.map(|f| f64::from(e) + f));
            let all: Vec<f64> = all.filter(|v| (self.low..=self.high).contains(v)).map(|v| 10f64.powf(v)).collect();
            // A range so short has none of those, or one, and is nearly even.
            let even = Self { low: 10f64.powf(self.low), high: 10f64.powf(self.high), logarithmic: false };
            return if all.len() >= 3 { all } else { even.ticks() };
        }
        let rough = span / 6.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * power).into_iter().find(|&s| s >= rough).unwrap_or(10.0 * power);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|i| i as f64 * step).collect()
    }
}

/// A number as short as a label needs it.
fn number(value: f64) -> String {
    let magnitude = value.abs();
    if value != 0.0 && !(1e-3..1e5).contains(&magnitude) {
        return format!("{value:.0e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        let axis = Axis { low: -0.03, high: 1.03, logarithmic: false };
        let ticks = axis.ticks();
        assert!(ticks.len() == 6 && (ticks[1] - 0.2).abs() < 1e-12, "{ticks:?}");
        let axis = Axis { low: -3.2, high: 1.1, logarithmic: true };
        assert_eq!(axis.ticks().len(), 5);
        // However short the range is.
        for (low, high) in [(0.11f64, 0.19f64), (3.1, 3.3), (0.9, 1.1), (40.0, 4000.0)] {
            let axis = Axis { low: low.log10(), high: high.log10(), logarithmic: true };
            let ticks = axis.ticks();
            assert!(ticks.len() >= 2 && ticks.iter().all(|tick| (low..=high).contains(tick)), "{low} {high} {ticks:?}");
        }
        assert_eq!([number(0.2), number(1e-4), number(1000.0), number(0.0)], ["0.2", "1e-4", "1000", "0"]);
    }

    #[test]
    fn a_line_is_drawn_where_its_points_are() -> Result<()> {
        let plot = |series| Plot {
            title: "t".into(),
            x_label: "x".into(),
            y_label: "y".into(),
            logarithmic: (false, false),
            series,
        };
        let line = plot(vec![Series::line("a", vec![(0.0, 0.0), (1.0, 1.0)])]);
        let picture = line.draw()?;
        let axis = Axis::over(&[0.0, 1.0], false).ok_or_else(|| Error::invalid("an axis", "missing", ""))?;
        let frame = line.frame(&axis);
        let at = |x: f64, y: f64| {
            let i = 3 * (frame.vertical(y) as usize * WIDTH + frame.horizontal(x) as usize);
            [picture.rgb()[i], picture.rgb()[i + 1], picture.rgb()[i + 2]]
        };
        // Halfway of both ranges.
        assert!(at(0.5, 0.5)[2] > at(0.5, 0.5)[0] && at(0.5, 0.77) == [255; 3]);
        assert!(plot(vec![Series::line("a", vec![(f64::NAN, 1.0)])]).draw().is_err());
        Ok(())
    }
}
