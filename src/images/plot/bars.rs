//! Bars beside each other.

use super::canvas::{Canvas, GLYPH, HEIGHT, INK, WIDTH};
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
    /// The bars.
    pub bars: Vec<Bar>,
}

const LEFT: f64 = 170.0;
const TOP: f64 = 48.0;
const BOTTOM: f64 = 24.0;
/// For the notes.
const RIGHT: f64 = 260.0;

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
        let mut canvas = Canvas::new();
        canvas.centred(WIDTH as f64 / 2.0, 16.0, &self.title);
        let pitch = (HEIGHT as f64 - TOP - BOTTOM) / self.bars.len() as f64;
        let height = (0.7 * pitch).min(40.0);
        for (i, bar) in self.bars.iter().enumerate() {
            let middle = TOP + (i as f64 + 0.5) * pitch;
            let length = bar.value.max(0.0) / longest * (WIDTH as f64 - LEFT - RIGHT);
            canvas.rectangle(LEFT, middle - height / 2.0, length, height, COLOURS[i % COLOURS.len()]);
            let text_top = middle - GLYPH / 2.0;
            canvas.text(LEFT - 12.0 - GLYPH * bar.name.chars().count() as f64, text_top, &bar.name);
            canvas.text(LEFT + length + 10.0, text_top, &bar.note);
        }
        canvas.segment((LEFT, TOP), (LEFT, HEIGHT as f64 - BOTTOM), 1.2, INK, false);
        canvas.into_picture()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() -> Result<()> {
        let bar = |value| Bar { name: "n".into(), value, note: String::new() };
        let picture = Bars { title: "t".into(), bars: vec![bar(2.0), bar(1.0)] }.draw()?;
        let length = |i: usize| {
            let y = (TOP + (i as f64 + 0.5) * (HEIGHT as f64 - TOP - BOTTOM) / 2.0) as usize;
            let row = &picture.rgb()[3 * WIDTH * y..][..3 * WIDTH];
            let colour = COLOURS[i].map(|c| c.round() as u8);
            row.as_chunks::<3>().0.iter().filter(|&&pixel| pixel == colour).count()
        };
        let (long, short) = (length(0) as f64, length(1) as f64);
        assert!((long / short - 2.0).abs() < 0.02, "{long} {short}");
        assert!(Bars { title: "t".into(), bars: vec![bar(0.0)] }.draw().is_err());
        Ok(())
    }
}
