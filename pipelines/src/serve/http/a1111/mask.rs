//! What that program does with a mask before anything is drawn.

use crate::serve::failure::Failure;
use tweedie::images::{ColorType, Mask, Photo, Samples};

/// Standard deviations of the blurs from which the surroundings grow into a hole, and how often each is laid on, as that program
/// has them.
const SPREADS: [(f32, usize); 6] = [(256.0, 1), (64.0, 1), (16.0, 2), (4.0, 4), (2.0, 2), (0.0, 1)];

/// A picture whose masked part is filled with what surrounds it, softly: drawing starts from that in place of what was there.
pub fn filled(photo: &Photo, mask: &Mask) -> Result<Photo, Failure> {
    let (width, height) = (photo.width(), photo.height());
    let mask = mask.fitted(width, height, Default::default())?;
    let picture = photo.to_picture();
    // Red, green and blue with the known part's weight before them.
    let known: Vec<f32> = mask.values().iter().map(|&value| 1.0 - f32::from(value) / 255.0).collect();
    let plane = |c: usize| -> Vec<f32> {
        let samples = picture.rgb().iter().skip(c).step_by(3);
        samples.zip(&known).map(|(&sample, known)| f32::from(sample) * known).collect()
    };
    let planes = [plane(0), plane(1), plane(2)];
    let mut result: Vec<[f32; 3]> = vec![[0.0; 3]; width * height];
    let mut covered = vec![0f32; width * height];
    for (sigma, times) in SPREADS {
        let weight = spread(&known, (width, height), sigma);
        let colours = planes.each_ref().map(|plane| spread(plane, (width, height), sigma));
        for _ in 0..times {
            for i in 0..width * height {
                let alpha = weight[i].clamp(0.0, 1.0);
                if alpha > 0.0 {
                    for c in 0..3 {
                        let colour = colours[c][i] / weight[i];
                        result[i][c] = result[i][c] * (1.0 - alpha) + colour * alpha;
                    }
                    covered[i] = covered[i] * (1.0 - alpha) + alpha;
                }
            }
        }
    }
    let rgb = result.iter().zip(&covered).flat_map(|(colour, &covered)| {
        colour.map(|value| if covered > 0.0 { (value / covered).round().clamp(0.0, 255.0) as u8 } else { 128 })
    });
    Ok(Photo::new(width, height, ColorType::Rgb, Samples::Eight(rgb.collect()))?)
}

/// A plane blurred by three boxes to each side, which is near a Gaussian; with 0 it is itself.
fn spread(plane: &[f32], (width, height): (usize, usize), sigma: f32) -> Vec<f32> {
    let radius = (sigma * 0.87).round() as usize;
    let mut blurred = plane.to_vec();
    if radius == 0 {
        return blurred;
    }
    for _ in 0..3 {
        for row in blurred.chunks_exact_mut(width) {
            let smooth = boxed(row, radius);
            row.copy_from_slice(&smooth);
        }
        for x in 0..width {
            let column: Vec<f32> = (0..height).map(|y| blurred[y * width + x]).collect();
            for (y, value) in boxed(&column, radius).into_iter().enumerate() {
                blurred[y * width + x] = value;
            }
        }
    }
    blurred
}

/// The mean of each value's surroundings, those beyond the ends being as the ends.
fn boxed(line: &[f32], radius: usize) -> Vec<f32> {
    let at = |i: isize| line[i.clamp(0, line.len() as isize - 1) as usize];
    let radius = radius as isize;
    let width = (2 * radius + 1) as f32;
    let mut sum: f32 = (-radius..=radius).map(at).sum();
    let mut smooth = Vec::with_capacity(line.len());
    for i in 0..line.len() as isize {
        smooth.push(sum / width);
        sum += at(i + radius + 1) - at(i - radius);
    }
    smooth
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_in_one_colour_is_filled_with_it_and_the_rest_stays() -> Result<(), Failure> {
        let (width, height) = (40, 24);
        let hole = |x: usize, y: usize| (10..25).contains(&x) && (8..16).contains(&y);
        let places = || (0..height).flat_map(move |y| (0..width).map(move |x| (x, y)));
        let rgb = places().flat_map(|(x, y)| if hole(x, y) { [9, 9, 9] } else { [200, 100, 50] }).collect();
        let photo = Photo::new(width, height, ColorType::Rgb, Samples::Eight(rgb))?;
        let mask = Mask::new(width, height, places().map(|(x, y)| if hole(x, y) { 255 } else { 0 }).collect())?;
        let filled = filled(&photo, &mask)?.to_picture();
        for pixel in filled.rgb().chunks_exact(3) {
            assert!(pixel.iter().zip([200u8, 100, 50]).all(|(&a, b)| a.abs_diff(b) <= 1), "{pixel:?}");
        }
        Ok(())
    }

    #[test]
    fn a_mask_over_all_leaves_grey() -> Result<(), Failure> {
        let photo = Photo::new(8, 8, ColorType::Rgb, Samples::Eight(vec![7; 192]))?;
        let filled = filled(&photo, &Mask::new(8, 8, vec![255; 64])?)?.to_picture();
        assert!(filled.rgb().iter().all(|&value| value == 128));
        Ok(())
    }
}
