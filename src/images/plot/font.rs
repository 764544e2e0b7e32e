//! The letters of plots.

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};
use std::sync::LazyLock;

/// A part of DejaVu Sans, with its licence beside it.
static BYTES: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");
static FONT: LazyLock<Option<FontRef<'static>>> = LazyLock::new(|| FontRef::try_from_slice(BYTES).ok());

/// Pixels of a line of labels.
pub(super) const LABEL: f64 = 17.0;
/// Pixels of a line of titles.
pub(super) const TITLE: f64 = 20.0;

/// A line of text, laid out.
pub(super) struct Text {
    glyphs: Vec<Glyph>,
    width: f64,
}

impl Text {
    /// A text in lines of a height in pixels. Characters that the font does not have are boxes.
    pub fn new(text: &str, height: f64) -> Self {
        let Some(font) = FONT.as_ref() else { return Self { glyphs: Vec::new(), width: 0.0 } };
        let scaled = font.as_scaled(PxScale::from(height as f32));
        // The line's middle is that of its capitals, about which what stands beside it is centred.
        let capitals = font.outline_glyph(scaled.scaled_glyph('H')).map_or(0.0, |glyph| -glyph.px_bounds().min.y);
        let (mut x, baseline) = (0.0, capitals / 2.0);
        let mut glyphs = Vec::new();
        for c in text.chars() {
            let mut glyph = scaled.scaled_glyph(c);
            glyph.position = point(x, baseline);
            x += scaled.h_advance(glyph.id);
            glyphs.push(glyph);
        }
        Self { glyphs, width: f64::from(x) }
    }

    /// A label.
    pub fn label(text: &str) -> Self {
        Self::new(text, LABEL)
    }

    /// Its width in pixels.
    pub fn width(&self) -> f64 {
        self.width
    }

    /// Tells each pixel that it covers, from its left end and its middle, and the share that it covers.
    pub fn draw(&self, mut put: impl FnMut(f64, f64, f64)) {
        let Some(font) = FONT.as_ref() else { return };
        for glyph in &self.glyphs {
            if let Some(outline) = font.outline_glyph(glyph.clone()) {
                let corner = outline.px_bounds().min;
                outline.draw(|x, y, share| {
                    put(f64::from(corner.x) + f64::from(x), f64::from(corner.y) + f64::from(y), f64::from(share));
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The font is there, with every character that plots write; what it lacks is a box of its own.
    #[test]
    fn characters_are_drawn() {
        let ink = |text: &str| {
            let mut ink = 0.0;
            Text::label(text).draw(|_, _, share| ink += share);
            ink
        };
        for c in ('!'..='~').chain("ασε×·−…².".chars()) {
            assert!(ink(&c.to_string()) > 0.5, "{c}");
            assert!(Text::label(&c.to_string()).width() > 2.0, "{c}");
        }
        assert!(Text::label("ii").width() < Text::label("mm").width());
        assert!((Text::new("abc", 34.0).width() - 2.0 * Text::new("abc", 17.0).width()).abs() < 1e-3);
        assert!(ink("語") > 0.5);
    }

    /// Capitals lie about the middle of the line.
    #[test]
    fn capitals_are_about_the_middle() {
        let (mut top, mut bottom) = (f64::INFINITY, f64::NEG_INFINITY);
        Text::label("H").draw(|_, y, share| {
            if share > 0.4 {
                (top, bottom) = (top.min(y), bottom.max(y + 1.0));
            }
        });
        assert!((top + bottom).abs() <= 1.0, "{top} {bottom}");
    }
}
