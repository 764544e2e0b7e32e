//! Cheap pictures of the steps on the way.

use candle_core::{DType, Device, Tensor};
use tweedie::images::Picture;
use tweedie::{Error, ErrorKind, Result};

/// The clean latents that were predicted in each step of a batch, and their pictures once one is decoded.
///
/// Latents are nearly linear in colour, so a preview needs no decoder: each of its pixels is an affine function of the
/// latent channels there. The function is the least-squares fit of the finished picture to the latents that it was
/// decoded from, so it suits any autoencoder.
#[derive(Debug, Default)]
pub struct Previews {
    steps: Vec<Tensor>,
}

impl Previews {
    /// Starts anew, for the next batch.
    pub fn clear(&mut self) {
        self.steps.clear();
    }

    /// Keeps the latents of a step, `[batch, latent_channels, height, width]`.
    pub fn push(&mut self, x0: &Tensor) {
        self.steps.push(x0.clone());
    }

    /// The previews of image `i` of the batch, one for each step, at the finished picture's size.
    ///
    /// # Shapes
    /// `latents`: `[1, latent_channels, height, width]`, what `decoded` was made from.
    ///
    /// # Errors
    /// If the picture's sides are no multiples of the latents'.
    pub fn pictures(&self, i: usize, latents: &Tensor, decoded: &Picture) -> Result<Vec<Picture>> {
        let projection = Projection::fit(&Columns::of(latents)?, decoded)?;
        self.steps.iter().map(|x0| projection.picture(&Columns::of(&x0.narrow(0, i, 1)?)?)).collect()
    }
}

/// What a model's latents look like, learned from one finished picture: previews of others while they are being made.
#[derive(Debug)]
pub struct LatentColours(Projection);

impl LatentColours {
    /// Learns from a finished picture and the latents that it was decoded from, `[1, latent_channels, height, width]`.
    ///
    /// # Errors
    /// If the picture's sides are no multiples of the latents'.
    pub fn learn(latents: &Tensor, decoded: &Picture) -> Result<Self> {
        Ok(Self(Projection::fit(&Columns::of(latents)?, decoded)?))
    }

    /// The picture of other latents, `[1, latent_channels, height, width]`.
    ///
    /// # Errors
    /// If they have other channels.
    pub fn picture(&self, latents: &Tensor) -> Result<Picture> {
        self.0.picture(&Columns::of(latents)?)
    }
}

/// Latents as one list of channel values for each place.
struct Columns {
    channels: usize,
    width: usize,
    height: usize,
    values: Vec<f64>,
}

impl Columns {
    fn of(latents: &Tensor) -> Result<Self> {
        let (_, channels, height, width) = latents.dims4()?;
        let values = latents.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.get(0)?.permute((1, 2, 0))?;
        Ok(Self { channels, width, height, values: values.flatten_all()?.to_vec1()? })
    }

    /// The values of each place and a 1 after them.
    fn rows(&self) -> impl Iterator<Item = Vec<f64>> + '_ {
        self.values.chunks_exact(self.channels).map(|row| [row, &[1.0]].concat())
    }
}

/// An affine map from latent channels to red, green and blue, 0 to 255.
#[derive(Debug)]
struct Projection {
    factor: usize,
    /// For each colour a weight for each channel, and what is added.
    weights: [Vec<f64>; 3],
}

impl Projection {
    fn fit(latents: &Columns, picture: &Picture) -> Result<Self> {
        let factor = picture.width() / latents.width.max(1);
        if (latents.width * factor, latents.height * factor) != (picture.width(), picture.height()) {
            let size = format!("{}x{}", picture.width(), picture.height());
            let fix = format!("its latents are {}x{}; the two do not belong together", latents.width, latents.height);
            return Err(Error::unusable(ErrorKind::Model, "the decoded picture's size", size, fix));
        }
        let unknowns = latents.channels + 1;
        let mut normal = vec![0.0; unknowns * unknowns];
        let mut right = [const { Vec::new() }; 3].map(|_: Vec<f64>| vec![0.0; unknowns]);
        for (place, row) in latents.rows().enumerate() {
            let colour = mean_colour(picture, factor, (place % latents.width, place / latents.width));
            for (a, &value) in row.iter().enumerate() {
                for (b, &other) in row.iter().enumerate() {
                    normal[a * unknowns + b] += value * other;
                }
                for (right, colour) in right.iter_mut().zip(colour) {
                    right[a] += value * colour;
                }
            }
        }
        // A picture of one colour leaves the channels' weights open; the ridge makes them zero.
        let places = (latents.width * latents.height) as f64;
        for a in 0..unknowns - 1 {
            normal[a * unknowns + a] += 1e-3 * places;
        }
        Ok(Self { factor, weights: right.map(|right| solve(normal.clone(), right)) })
    }

    fn picture(&self, latents: &Columns) -> Result<Picture> {
        let (width, height) = (latents.width * self.factor, latents.height * self.factor);
        let small: Vec<[u8; 3]> = latents
            .rows()
            .map(|row| {
                std::array::from_fn(|c| self.weights[c].iter().zip(&row).map(|(w, v)| w * v).sum::<f64>().round() as u8)
            })
            .collect();
        let mut rgb = Vec::with_capacity(3 * width * height);
        for y in 0..height {
            for x in 0..width {
                rgb.extend(small[y / self.factor * latents.width + x / self.factor]);
            }
        }
        Picture::new(width, height, rgb)
    }
}

/// The mean over the square of pixels that one place of the latents covers.
fn mean_colour(picture: &Picture, factor: usize, (x, y): (usize, usize)) -> [f64; 3] {
    let mut sum = [0.0; 3];
    for row in y * factor..(y + 1) * factor {
        let start = 3 * (row * picture.width() + x * factor);
        for pixel in picture.rgb()[start..start + 3 * factor].chunks_exact(3) {
            for (sum, &byte) in sum.iter_mut().zip(pixel) {
                *sum += f64::from(byte);
            }
        }
    }
    sum.map(|sum| sum / (factor * factor) as f64)
}

/// Solves a symmetric positive definite system by elimination.
fn solve(mut matrix: Vec<f64>, mut right: Vec<f64>) -> Vec<f64> {
    let n = right.len();
    for pivot in 0..n {
        for row in pivot + 1..n {
            let share = matrix[row * n + pivot] / matrix[pivot * n + pivot];
            for column in pivot..n {
                matrix[row * n + column] -= share * matrix[pivot * n + column];
            }
            right[row] -= share * right[pivot];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|column| matrix[row * n + column] * right[column]).sum();
        right[row] = (right[row] - known) / matrix[row * n + row];
    }
    right
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affine_decoder_is_found_again() -> Result<()> {
        // Two channels, four places; colours that are affine in them, each place 2x2 pixels.
        let latents = Tensor::new(&[0.0f32, 10.0, 20.0, 30.0, 5.0, 0.0, 10.0, 1.0], &Device::Cpu)?;
        let latents = latents.reshape((1, 2, 2, 2))?;
        let colour = |a: f32, b: f32| [10.0 + 2.0 * a, 200.0 - 3.0 * a + b, 100.0 + 5.0 * b].map(|v: f32| v as u8);
        let places = [(0.0, 5.0), (10.0, 0.0), (20.0, 10.0), (30.0, 1.0)];
        let mut rgb = Vec::new();
        for y in 0..4 {
            (0..4).for_each(|x| rgb.extend(colour(places[y / 2 * 2 + x / 2].0, places[y / 2 * 2 + x / 2].1)));
        }
        let decoded = Picture::new(4, 4, rgb)?;
        let mut previews = Previews::default();
        previews.push(&latents);
        previews.push(&latents.zeros_like()?);
        let pictures = previews.pictures(0, &latents, &decoded)?;
        // The ridge moves a value by less than one level here.
        let off = pictures[0].rgb().iter().zip(decoded.rgb()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off <= Some(1), "{off:?}");
        assert!(pictures[1].rgb()[0].abs_diff(10) <= 1 && pictures[1].rgb()[2].abs_diff(100) <= 1);
        Ok(())
    }
}
