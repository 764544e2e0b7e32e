//! Rows of pictures with names.

use super::canvas::Canvas;
use super::font::{LABEL, Text};
use crate::images::Picture;
use crate::{Error, Result};

/// A row of pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledRow {
    /// What it shows, to its left.
    pub name: String,
    /// The pictures, with what is written above each.
    pub cells: Vec<(String, Picture)>,
}

/// Rows of pictures of one size, below each other.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledRows {
    /// The rows, from the top.
    pub rows: Vec<LabelledRow>,
}

/// Pixels between pictures, and around what is written.
const GAP: usize = 4;

impl LabelledRows {
    /// Where the picture of a row and a column is: its left and upper edges.
    fn corner(&self, row: usize, column: usize, (width, height): (usize, usize)) -> (usize, usize) {
        let names = self.rows.iter().map(|row| Text::label(&row.name).width()).fold(0.0, f64::max).ceil() as usize;
        let label = LABEL as usize + GAP;
        (names + 2 * GAP + column * (width + GAP), row * (height + label + GAP) + label)
    }

    /// Draws them.
    ///
    /// # Errors
    /// If there is no picture, or their sizes differ.
    pub fn draw(&self) -> Result<Picture> {
        let all = || self.rows.iter().flat_map(|row| &row.cells).map(|(_, picture)| picture);
        let Some(first) = all().next() else {
            return Err(Error::invalid("the number of pictures", 0, "rows need at least one"));
        };
        let size @ (width, height) = (first.width(), first.height());
        if let Some(other) = all().find(|picture| (picture.width(), picture.height()) != size) {
            let fix = format!("all pictures of rows have one size, here {width}x{height}");
            return Err(Error::invalid("a picture's size", format!("{}x{}", other.width(), other.height()), fix));
        }
        let columns = self.rows.iter().map(|row| row.cells.len()).max().unwrap_or(0);
        let (right, bottom) = self.corner(self.rows.len() - 1, columns, size);
        let mut canvas = Canvas::new(right, bottom + height + GAP);
        for (i, row) in self.rows.iter().enumerate() {
            for (j, (label, picture)) in row.cells.iter().enumerate() {
                let (left, top) = self.corner(i, j, size);
                canvas.picture(left, top, picture);
                let centre = left as f64 + width as f64 / 2.0;
                canvas.centred(centre, top as f64 - LABEL / 2.0 - 1.0, &Text::label(label));
            }
            let (left, top) = self.corner(i, 0, size);
            canvas.text_before((left - GAP) as f64, top as f64 + height as f64 / 2.0, &Text::label(&row.name));
        }
        canvas.into_picture()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_keep_their_bytes_and_have_their_names() -> Result<()> {
        let cell = |value: u8| Ok::<_, Error>((format!("{value}"), Picture::new(40, 30, vec![value; 3 * 40 * 30])?));
        let row = |name: &str, cells| LabelledRow { name: name.into(), cells };
        let rows = LabelledRows { rows: vec![row("first", vec![cell(10)?, cell(20)?]), row("", vec![cell(30)?])] };
        let picture = rows.draw()?;
        let at = |x: usize, y: usize| picture.rgb()[3 * (y * picture.width() + x)];
        for (row, column, value) in [(0, 0, 10), (0, 1, 20), (1, 0, 30)] {
            let (left, top) = rows.corner(row, column, (40, 30));
            for (x, y) in [(left, top), (left + 39, top + 29)] {
                assert_eq!(at(x, y), value);
            }
            // Above it is its label.
            assert!((left..left + 40).any(|x| (top - LABEL as usize..top).any(|y| at(x, y) < 128)), "{row} {column}");
        }
        let (left, top) = rows.corner(0, 0, (40, 30));
        assert!((0..left).any(|x| (top..top + 30).any(|y| at(x, y) < 128)), "the row's name");
        let differ = LabelledRows { rows: vec![row("", vec![cell(1)?, ("".into(), Picture::new(1, 1, vec![0; 3])?)])] };
        assert!(differ.draw().is_err() && LabelledRows { rows: Vec::new() }.draw().is_err());
        Ok(())
    }
}
