//! How far two pictures are from each other.

use tweedie::images::{Photo, Samples};

/// The largest difference of any sample, of 255, at which two pictures count as the same: devices and instruction sets
/// add numbers in different orders, and rounding to bytes shows that as a level or two.
const CLOSE: f64 = 2.0;

/// What comes of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every sample is the same.
    Identical,
    /// No sample differs by more than 2 of 255.
    Close,
    /// They are different pictures.
    Different,
}

/// The distance between a picture and the one that was made again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Comparison {
    /// They have the same size, colours and depth.
    Samples {
        /// The largest difference, of 255.
        max: f64,
        /// Peak signal-to-noise ratio in dB; infinite if they are equal.
        psnr: f64,
    },
    /// They do not: width, height, samples of a pixel and bits of a sample, of the given and of the new picture.
    Form([usize; 4], [usize; 4]),
}

impl Comparison {
    /// Compares a picture with one that was made again.
    pub fn of(given: &Photo, again: &Photo) -> Self {
        let form = |photo: &Photo| [photo.width(), photo.height(), photo.color().channels(), photo.bit_depth()];
        match (given.samples(), again.samples()) {
            _ if form(given) != form(again) => Self::Form(form(given), form(again)),
            (Samples::Eight(a), Samples::Eight(b)) => {
                Self::samples(a.iter().zip(b).map(|(a, b)| a.abs_diff(*b).into()))
            }
            (Samples::Sixteen(a), Samples::Sixteen(b)) => {
                // White is 65535 = 257 * 255.
                Self::samples(a.iter().zip(b).map(|(a, b)| f64::from(a.abs_diff(*b)) / 257.0))
            }
            _ => Self::Form(form(given), form(again)),
        }
    }

    fn samples(differences: impl Iterator<Item = f64>) -> Self {
        let (mut max, mut sum, mut count) = (0f64, 0f64, 0usize);
        for difference in differences {
            max = max.max(difference);
            sum += difference * difference;
            count += 1;
        }
        let mean_square = sum / count.max(1) as f64;
        Self::Samples { max, psnr: 10.0 * (255.0 * 255.0 / mean_square).log10() }
    }

    /// What it means.
    pub fn verdict(&self) -> Verdict {
        match *self {
            Self::Samples { max: 0.0, .. } => Verdict::Identical,
            Self::Samples { max, .. } if max <= CLOSE => Verdict::Close,
            _ => Verdict::Different,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tweedie::Result;
    use tweedie::images::ColorType;

    fn grey(samples: Samples) -> Result<Photo> {
        Photo::new(samples.len(), 1, ColorType::Grey, samples)
    }

    #[test]
    fn figures_are_those_of_the_definition() -> Result<()> {
        let given = grey(Samples::Eight(vec![10, 20, 30, 40]))?;
        assert_eq!(Comparison::of(&given, &given).verdict(), Verdict::Identical);
        let close = Comparison::of(&given, &grey(Samples::Eight(vec![12, 20, 30, 40]))?);
        assert_eq!(close.verdict(), Verdict::Close);
        let Comparison::Samples { max, psnr } = close else { panic!("{close:?}") };
        // One difference of 2 in four samples: a mean square of 1, and 20 log10(255) = 48.1308 dB.
        assert!(max == 2.0 && (psnr - 48.130_803_608_679_1).abs() < 1e-9, "{psnr}");
        let other = Comparison::of(&given, &grey(Samples::Eight(vec![13, 20, 30, 40]))?);
        assert_eq!(other.verdict(), Verdict::Different);
        Ok(())
    }

    #[test]
    fn sixteen_bits_count_in_the_same_unit_and_other_forms_are_other_pictures() -> Result<()> {
        let given = grey(Samples::Sixteen(vec![0, 65535]))?;
        let two = Comparison::of(&given, &grey(Samples::Sixteen(vec![514, 65535]))?);
        assert_eq!(two.verdict(), Verdict::Close);
        let more = Comparison::of(&given, &grey(Samples::Sixteen(vec![515, 65535]))?);
        assert_eq!(more.verdict(), Verdict::Different);
        let bytes = Comparison::of(&given, &grey(Samples::Eight(vec![0, 255]))?);
        assert_eq!(bytes, Comparison::Form([2, 1, 1, 16], [2, 1, 1, 8]));
        assert_eq!(bytes.verdict(), Verdict::Different);
        Ok(())
    }
}
