//! Bars beside each other.

use super::canvas::{Canvas, HEIGHT, INK, WIDTH};
use super::font::{TITLE, Text};
use super::{COLOURS, Picture};
use crate::{Error, Result};

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it stands for, to its left.
    pub name: String,
    /// Its length; not negative.
    pub value: f64,
    /// What is written at its end.
    pub note: String,
}

/// A plot of horizontal bars, from the first at the top.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// The title.
    pub title: String,
    /// What lengths are.
    pub label: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

const TOP: f64 = 48.0;
const BOTTOM: f64 = 40.0;
/// Pixels between a bar and what is written beside it.
const GAP: f64 = 10.0;
/// The least that is left to bars.
const LEAST: f64 = 100.0;

impl Bars {
    /// Draws the plot.
    ///
    /// # Errors
    /// If there is no bar, or none has a positive finite length.
    pub fn draw(&self) -> Result<Picture> {
        let longest = self.bars.iter().map(|bar| bar.value).filter(|v| v.is_finite()).fold(0.0, f64::max);
        if longest <= 0.0 {
            return Err(Error::invalid("the bars of a plot", self.bars.len(), "give at least one positive length"));
        }
        let mut canvas = Canvas::new(WIDTH, HEIGHT);
        canvas.centred(WIDTH as f64 / 2.0, 22.0, &Text::new(&self.title, TITLE));
        let pitch = (HEIGHT as f64 - TOP - BOTTOM) / self.bars.len() as f64;
        let height = (0.7 * pitch).min(40.0);
        let texts = |of: fn(&Bar) -> &str| self.bars.iter().map(|bar| Text::label(of(bar))).collect::<Vec<_>>();
        let (names, notes) = (texts(|bar| &bar.name), texts(|bar| &bar.note));
        let widest = |texts: &[Text]| texts.iter().map(Text::width).fold(0.0, f64::max);
        let left = widest(&names) + 2.0 * GAP;
        let room = (WIDTH as f64 - left - widest(&notes) - 2.0 * GAP).max(LEAST);
        for (i, (bar, (name, note))) in self.bars.iter().zip(names.iter().zip(&notes)).enumerate() {
            let middle = TOP + (i as f64 + 0.5) * pitch;
            let length = bar.value.max(0.0) / longest * room;
            canvas.rectangle(left, middle - height / 2.0, length, height, COLOURS[i % COLOURS.len()]);
            canvas.text_before(left - GAP, middle, name);
            canvas.text(left + length + GAP, middle, note);
        }
        canvas.segment((left, TOP), (left, HEIGHT as f64 - BOTTOM), 1.2, INK, false);
        canvas.centred(left + room / 2.0, HEIGHT as f64 - BOTTOM / 2.0, &Text::label(&self.label));
        canvas.into_picture()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() -> Result<()> {
        let bar = |value| Bar { name: "n".into(), value, note: String::new() };
        let picture = Bars { title: "t".into(), label: "l".into(), bars: vec![bar(2.0), bar(1.0)] }.draw()?;
        let length = |i: usize| {
            let y = (TOP + (i as f64 + 0.5) * (HEIGHT as f64 - TOP - BOTTOM) / 2.0) as usize;
            let row = &picture.rgb()[3 * WIDTH * y..][..3 * WIDTH];
            let colour = COLOURS[i].map(|c| c.round() as u8);
            row.as_chunks::<3>().0.iter().filter(|&&pixel| pixel == colour).count()
        };
        let (long, short) = (length(0) as f64, length(1) as f64);
        assert!((long / short - 2.0).abs() < 0.02, "{long} {short}");
        assert!(Bars { title: "t".into(), label: "l".into(), bars: vec![bar(0.0)] }.draw().is_err());
        Ok(())
    }
}
