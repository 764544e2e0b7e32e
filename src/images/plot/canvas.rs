//! Pixels that plots are drawn on.

use super::font::Text;
use crate::Result;
use crate::images::Picture;

pub(super) const WIDTH: usize = 960;
pub(super) const HEIGHT: usize = 560;

pub(super) const INK: [f64; 3] = [40.0, 40.0, 40.0];

/// Pixels that are drawn on.
pub(super) struct Canvas {
    width: usize,
    height: usize,
    rgb: Vec<[f64; 3]>,
}

impl Canvas {
    /// White pixels.
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, rgb: vec![[255.0; 3]; width * height] }
    }

    fn blend(&mut self, x: usize, y: usize, colour: [f64; 3], share: f64) {
        let pixel = &mut self.rgb[y * self.width + x];
        pixel.iter_mut().zip(colour).for_each(|(old, new)| *old += share * (new - *old));
    }

    /// A line of a thickness with smooth edges; of no length it is a dot.
    pub fn segment(&mut self, from: (f64, f64), to: (f64, f64), thickness: f64, colour: [f64; 3], dashed: bool) {
        let (dx, dy) = (to.0 - from.0, to.1 - from.1);
        let length_squared = dx * dx + dy * dy;
        let reach = thickness / 2.0 + 1.0;
        let pixels = |a: f64, b: f64, size: usize| {
            let low = (a.min(b) - reach).max(0.0) as usize;
            low..((a.max(b) + reach).max(0.0) as usize + 1).min(size)
        };
        for y in pixels(from.1, to.1, self.height) {
            for x in pixels(from.0, to.0, self.width) {
                let (px, py) = (x as f64 + 0.5 - from.0, y as f64 + 0.5 - from.1);
                let along =
                    if length_squared > 0.0 { ((px * dx + py * dy) / length_squared).clamp(0.0, 1.0) } else { 0.0 };
                let distance = (px - along * dx).hypot(py - along * dy);
                let gap = dashed && ((x + y) / 5) % 2 == 1;
                let share = (thickness / 2.0 + 0.5 - distance).clamp(0.0, 1.0);
                if share > 0.0 && !gap {
                    self.blend(x, y, colour, share);
                }
            }
        }
    }

    /// A filled rectangle from its upper left corner.
    pub fn rectangle(&mut self, left: f64, top: f64, width: f64, height: f64, colour: [f64; 3]) {
        let covered = |pixel: usize, from: f64, length: f64| {
            ((pixel as f64 + 1.0).min(from + length) - (pixel as f64).max(from)).clamp(0.0, 1.0)
        };
        for y in top as usize..((top + height).ceil() as usize).min(self.height) {
            for x in left as usize..((left + width).ceil() as usize).min(self.width) {
                self.blend(x, y, colour, covered(x, left, width) * covered(y, top, height));
            }
        }
    }

    /// A text whose line begins at `left` and is centred about `middle`.
    pub fn text(&mut self, left: f64, middle: f64, text: &Text) {
        text.draw(|x, y, share| self.ink(left + x, middle + y, share));
    }

    /// The same that ends at `right`.
    pub fn text_before(&mut self, right: f64, middle: f64, text: &Text) {
        self.text(right - text.width(), middle, text);
    }

    /// The same about `centre`, moved to where it begins inside if it is too wide.
    pub fn centred(&mut self, centre: f64, middle: f64, text: &Text) {
        self.text((centre - text.width() / 2.0).max(0.0), middle, text);
    }

    /// A text that runs upwards about `centre`, its line centred about `middle`.
    pub fn upwards(&mut self, middle: f64, centre: f64, text: &Text) {
        let bottom = (centre + text.width() / 2.0).min(self.height as f64);
        text.draw(|x, y, share| self.ink(middle + y, bottom - x, share));
    }

    fn ink(&mut self, x: f64, y: f64, share: f64) {
        let (x, y) = (x.round(), y.round());
        if x >= 0.0 && y >= 0.0 && x < self.width as f64 && y < self.height as f64 {
            self.blend(x as usize, y as usize, INK, share);
        }
    }

    /// A picture with its upper left corner there, which has to lie inside.
    pub fn picture(&mut self, left: usize, top: usize, picture: &Picture) {
        for (y, row) in picture.rgb().chunks_exact(3 * picture.width()).enumerate() {
            for (x, pixel) in row.as_chunks::<3>().0.iter().enumerate() {
                self.rgb[(top + y) * self.width + left + x] = pixel.map(f64::from);
            }
        }
    }

    pub fn into_picture(self) -> Result<Picture> {
        let bytes = self.rgb.into_iter().flatten().map(|value| value.round() as u8);
        Picture::new(self.width, self.height, bytes.collect())
    }
}
