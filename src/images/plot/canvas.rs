//! Pixels that plots are drawn on.

use crate::Result;
use crate::images::Picture;
use font8x8::UnicodeFonts;

pub(super) const WIDTH: usize = 960;
pub(super) const HEIGHT: usize = 560;

/// Side of a character.
pub(super) const GLYPH: f64 = 8.0;

pub(super) const INK: [f64; 3] = [40.0, 40.0, 40.0];

/// Pixels that are drawn on.
pub(super) struct Canvas {
    rgb: Vec<[f64; 3]>,
}

impl Canvas {
    pub fn new() -> Self {
        Self { rgb: vec![[255.0; 3]; WIDTH * HEIGHT] }
    }

    fn blend(&mut self, x: usize, y: usize, colour: [f64; 3], share: f64) {
        let pixel = &mut self.rgb[y * WIDTH + x];
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
        for y in pixels(from.1, to.1, HEIGHT) {
            for x in pixels(from.0, to.0, WIDTH) {
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
        for y in top as usize..((top + height).ceil() as usize).min(HEIGHT) {
            for x in left as usize..((left + width).ceil() as usize).min(WIDTH) {
                self.blend(x, y, colour, covered(x, left, width) * covered(y, top, height));
            }
        }
    }

    pub fn text(&mut self, left: f64, top: f64, text: &str) {
        for (i, c) in text.chars().enumerate() {
            let glyph = font8x8::BASIC_FONTS.get(c).unwrap_or([0; 8]);
            for (row, bits) in glyph.into_iter().enumerate() {
                for column in (0..8).filter(|column| bits >> column & 1 == 1) {
                    let (x, y) = (left as usize + 8 * i + column, top as usize + row);
                    if x < WIDTH && y < HEIGHT {
                        self.blend(x, y, INK, 1.0);
                    }
                }
            }
        }
    }

    pub fn centred(&mut self, centre: f64, top: f64, text: &str) {
        self.text((centre - GLYPH * text.chars().count() as f64 / 2.0).max(0.0), top, text);
    }

    pub fn into_picture(self) -> Result<Picture> {
        let bytes = self.rgb.into_iter().flatten().map(|value| value.round() as u8);
        Picture::new(WIDTH, HEIGHT, bytes.collect())
    }
}
