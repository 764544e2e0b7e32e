//! Filling a hole with what is around it.

use super::{Mask, Picture, blur};
use crate::Result;
use rayon::prelude::*;

/// Standard deviations of the blurs from which the surroundings grow into a hole, each with how often it is laid over those before
/// it: those of A1111's web UI. The last is the picture itself.
const SPREADS: [(f32, usize); 6] = [(256.0, 1), (64.0, 1), (16.0, 2), (4.0, 4), (2.0, 2), (0.0, 1)];

/// What stands where nothing is known: the middle of the range.
const GREY: u8 = 128;

/// Fraction bits of the shares in which two layers are mixed.
const SHARE_BITS: u32 = 7;

/// Red, green, blue and opacity.
type Pixel = [u8; 4];

impl Picture {
    /// The picture with what is under the mask replaced by colours that grow into it from around it: near an edge those of the
    /// edge, further away the mean of much. Where the mask is grey, what was there goes into the colours in part. Under a mask
    /// that leaves nothing it is grey all over.
    ///
    /// Blurred pictures of the known part, from the most blurred on, are laid one over another. It is what A1111's web UI does with
    /// `inpainting_fill` 0, with the bytes of Pillow's operations.
    ///
    /// # Errors
    /// If the mask has another size.
    pub fn filled_from_surroundings(&self, mask: &Mask) -> Result<Self> {
        if (mask.width(), mask.height()) != (self.width, self.height) {
            let size = format!("{}x{}", mask.width(), mask.height());
            let fix = format!("the picture is {}x{}; give a mask of that size", self.width, self.height);
            return Err(crate::Error::invalid("the size of the mask", size, fix));
        }
        let known = |channel: usize| -> Vec<u8> {
            let samples = (0..mask.values.len()).map(|i| if channel < 3 { self.rgb[3 * i + channel] } else { u8::MAX });
            samples
                .zip(&mask.values)
                .map(|(sample, &hole)| by_255(u32::from(sample) * (255 - u32::from(hole))))
                .collect()
        };
        // In colours that are multiplied by their opacity, so that what is not known adds nothing.
        let planes = [known(0), known(1), known(2), known(3)];
        let mut filled: Vec<Pixel> = vec![[0; 4]; mask.values.len()];
        for (sigma, times) in SPREADS {
            let spread = planes.each_ref().map(|plane| match sigma {
                0.0 => plane.clone(),
                sigma => blur::gaussian(plane, self.width, self.height, sigma),
            });
            filled.par_iter_mut().enumerate().for_each(|(i, below)| {
                let above = unmultiplied(spread.each_ref().map(|plane| plane[i]));
                (0..times).for_each(|_| *below = laid_over(above, *below));
            });
        }
        let rgb = filled.iter().flat_map(|&[r, g, b, opacity]| if opacity == 0 { [GREY; 3] } else { [r, g, b] });
        Ok(Self { width: self.width, height: self.height, rgb: rgb.collect() })
    }
}

/// A colour by itself, from one that is multiplied by its opacity.
fn unmultiplied([r, g, b, opacity]: Pixel) -> Pixel {
    if opacity == 0 || opacity == u8::MAX {
        return [r, g, b, opacity];
    }
    let divided = |sample: u8| (255 * u32::from(sample) / u32::from(opacity)).min(255) as u8;
    [divided(r), divided(g), divided(b), opacity]
}

/// One pixel over another (Porter and Duff 1984), in whole numbers.
fn laid_over(above: Pixel, below: Pixel) -> Pixel {
    let (opacity, under) = (u32::from(above[3]), u32::from(below[3]));
    if opacity == 0 {
        return below;
    }
    let sum = opacity * 255 + under * (255 - opacity);
    let share = opacity * 255 * 255 * (1 << SHARE_BITS) / sum;
    let rest = 255 * (1 << SHARE_BITS) - share;
    let mixed = |c: usize| {
        let mixed = u32::from(above[c]) * share + u32::from(below[c]) * rest + (128 << SHARE_BITS);
        (((mixed >> 8) + mixed) >> 8 >> SHARE_BITS) as u8
    };
    [mixed(0), mixed(1), mixed(2), by_255(sum)]
}

/// A product of two bytes divided by 255, rounded.
fn by_255(product: u32) -> u8 {
    let rounded = product + 128;
    (((rounded >> 8) + rounded) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 12 by 8, of a ramp and a hole with a soft edge, and what Pillow 13 made of it by the operations of that program.
    #[test]
    fn the_bytes_are_those_of_pillow() -> Result<()> {
        let places = || (0..8).flat_map(|y| (0..12).map(move |x| (x, y)));
        let rgb: Vec<u8> =
            places().flat_map(|(x, y)| [20 * x, 30 * y, 255 - 10 * x - 10 * y]).map(|v| v as u8).collect();
        let hole = |x: i32, y: i32| match (x, y) {
            (4..8, 2..6) => 255,
            (3..9, 1..7) => 100,
            _ => 0,
        };
        let mask = Mask::new(12, 8, places().map(|(x, y)| hole(x, y)).collect())?;
        let filled = Picture::new(12, 8, rgb)?.filled_from_surroundings(&mask)?;
        let row = |y: usize, channel: usize| -> Vec<u8> {
            filled.rgb()[36 * y..36 * (y + 1)].iter().skip(channel).step_by(3).copied().collect()
        };
        let expected: [[u8; 12]; 4] = [
            [0, 20, 40, 56, 76, 98, 121, 143, 163, 180, 200, 220],
            [0, 20, 40, 54, 67, 93, 124, 153, 164, 180, 200, 220],
            [120, 120, 120, 120, 122, 124, 124, 122, 120, 120, 120, 120],
            [205, 195, 185, 176, 169, 154, 139, 127, 123, 115, 105, 95],
        ];
        assert_eq!([row(1, 0), row(3, 0), row(4, 1), row(5, 2)], expected);
        Ok(())
    }

    #[test]
    fn a_hole_in_one_colour_is_filled_with_it_and_a_picture_of_holes_is_grey() -> Result<()> {
        let colour = [200, 100, 50];
        let places = || (0..24usize).flat_map(|y| (0..40usize).map(move |x| (x, y)));
        let hole = |(x, y): (usize, usize)| (10..25).contains(&x) && (8..16).contains(&y);
        let rgb = places().flat_map(|place| if hole(place) { [9, 9, 9] } else { colour }).collect();
        let mask = Mask::new(40, 24, places().map(|place| if hole(place) { 255 } else { 0 }).collect())?;
        let picture = Picture::new(40, 24, rgb)?;
        // Colours that are multiplied by a small opacity lose digits: Pillow's are 3 away too.
        let filled = picture.filled_from_surroundings(&mask)?;
        assert!(filled.rgb().chunks(3).all(|pixel| pixel.iter().zip(colour).all(|(&a, b)| a.abs_diff(b) <= 3)));
        let nothing = picture.filled_from_surroundings(&Mask::new(40, 24, vec![255; 40 * 24])?)?;
        assert!(nothing.rgb().iter().all(|&value| value == GREY));
        assert!(picture.filled_from_surroundings(&Mask::new(24, 40, vec![0; 40 * 24])?).is_err());
        Ok(())
    }
}
