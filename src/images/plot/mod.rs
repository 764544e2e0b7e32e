//! Plots of lines and of bars, for schedules, losses and comparisons.

mod bars;
mod canvas;

pub use bars::{Bar, Bars};

use super::Picture;
use crate::{Error, Result};
use canvas::{Canvas, GLYPH, HEIGHT, INK, WIDTH};

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

const LEFT: f64 = 84.0;
const RIGHT: f64 = 200.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 52.0;
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
        let mut canvas = Canvas::new();
        self.draw_frame(&mut canvas, &x, &y);
        for (i, series) in self.series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let dashed = i >= COLOURS.len();
            let place = |&(px, py): &(f64, f64)| Some((horizontal(x.place(px)?), vertical(y.place(py)?)));
            let points: Vec<_> = series.points.iter().filter_map(place).collect();
            if series.line {
                points.windows(2).for_each(|pair| canvas.segment(pair[0], pair[1], 1.6, colour, dashed));
            }
            if series.marks {
                points.iter().for_each(|&point| canvas.segment(point, point, 6.0, colour, false));
            }
            let row = TOP + 8.0 + 16.0 * i as f64;
            let start = WIDTH as f64 - RIGHT + 12.0;
            canvas.segment((start, row), (start + 18.0, row), 2.5, colour, dashed);
            canvas.text(start + 26.0, row - GLYPH / 2.0, &series.name);
        }
        canvas.into_picture()
    }

    fn draw_frame(&self, canvas: &mut Canvas, x: &Axis, y: &Axis) {
        let (left, right, top, bottom) = (horizontal(0.0), horizontal(1.0), vertical(1.0), vertical(0.0));
        for tick in x.ticks() {
            let Some(at) = x.place(tick).map(horizontal) else { continue };
            canvas.segment((at, bottom), (at, top), 1.0, GRID, false);
            canvas.centred(at, bottom + 8.0, &number(tick));
        }
        for tick in y.ticks() {
            let Some(at) = y.place(tick).map(vertical) else { continue };
            canvas.segment((left, at), (right, at), 1.0, GRID, false);
            let label = number(tick);
            canvas.text(left - 8.0 - GLYPH * label.len() as f64, at - GLYPH / 2.0, &label);
        }
        for (from, to) in [((left, bottom), (right, bottom)), ((left, bottom), (left, top))] {
            canvas.segment(from, to, 1.2, INK, false);
        }
        canvas.centred(f64::midpoint(left, right), 14.0, &self.title);
        canvas.centred(f64::midpoint(left, right), HEIGHT as f64 - 20.0, &self.x_label);
        canvas.text(8.0, TOP - 22.0, &self.y_label);
    }
}

fn horizontal(share: f64) -> f64 {
    LEFT + share * (WIDTH as f64 - LEFT - RIGHT)
}

fn vertical(share: f64) -> f64 {
    HEIGHT as f64 - BOTTOM - share * (HEIGHT as f64 - TOP - BOTTOM)
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
            return all.filter(|v| (self.low..=self.high).contains(v)).map(|v| 10f64.powf(v)).collect();
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
        let picture = plot(vec![Series::line("a", vec![(0.0, 0.0), (1.0, 1.0)])]).draw()?;
        let at = |x: f64, y: f64| {
            let i = 3 * (vertical(y) as usize * WIDTH + horizontal(x) as usize);
            [picture.rgb()[i], picture.rgb()[i + 1], picture.rgb()[i + 2]]
        };
        // Halfway of both ranges.
        assert!(at(0.5, 0.5)[2] > at(0.5, 0.5)[0] && at(0.5, 0.77) == [255; 3]);
        assert!(plot(vec![Series::line("a", vec![(f64::NAN, 1.0)])]).draw().is_err());
        Ok(())
    }
}
