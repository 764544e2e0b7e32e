//! How far pictures are from those that they should be, without another network's eyes.

use crate::{Error, Result};
use candle_core::{Device, Tensor};

/// Side of the window within which structure is compared (Wang et al. 2004, section III-B), and its spread.
const WINDOW: usize = 11;
const SPREAD: f64 = 1.5;
/// The paper's constants, `(0.01 L)^2` and `(0.03 L)^2`, with the range `L = 2` of pictures in `[-1, 1]`.
const C1: f64 = 0.0004;
const C2: f64 = 0.0036;
/// Resolutions at which edges are compared.
const SCALES: usize = 3;

/// The distance of reconstructions from their pictures:
///
/// ```text
/// L = l(x', x) + ssim (1 - SSIM(x', x)) + edges sum_s (|d_h x'_s - d_h x_s| + |d_v x'_s - d_v x_s|) / 2
/// ```
///
/// with `l` the absolute difference or Huber's, SSIM the structural similarity of Wang et al. (2004), and `d_h x_s`, `d_v x_s`
/// the differences of neighbours along rows and columns at half, and half again, of the resolution. Every term is a mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReconstructionLoss {
    /// Differences below it are squared (Huber 1964), so that noise that cannot be told apart pulls less; 0 squares none.
    pub huber: f64,
    /// The weight of structural similarity.
    pub ssim: f64,
    /// The weight of edges.
    pub edges: f64,
}

impl ReconstructionLoss {
    /// Whether every weight can be used.
    ///
    /// # Errors
    /// If one is negative or not finite; the message names it.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("huber", self.huber), ("ssim", self.ssim), ("edges", self.edges)] {
            if value < 0.0 || !value.is_finite() {
                return Err(Error::invalid(format!("`{name}`"), value, "it must be 0 or above"));
            }
        }
        Ok(())
    }

    /// The least side in pixels of pictures that it can compare: 11 with SSIM, 8 with edges.
    pub fn least_side(&self) -> usize {
        let ssim = if self.ssim > 0.0 { WINDOW } else { 1 };
        // At the last resolution there must be two neighbours.
        ssim.max(if self.edges > 0.0 { 1 << SCALES } else { 1 })
    }

    /// The loss, differentiable in `reconstruction`.
    ///
    /// # Shapes
    /// Both `[batch, channels, height, width]` in `[-1, 1]`; the result is a scalar.
    ///
    /// # Errors
    /// If the shapes differ, or a side is shorter than [`Self::least_side`].
    pub fn mean(&self, reconstruction: &Tensor, pictures: &Tensor) -> Result<Tensor> {
        let difference = (reconstruction - pictures)?;
        let mut loss = self.pixels(&difference)?;
        if self.ssim > 0.0 {
            let similarity = ssim(reconstruction, pictures)?.mean_all()?;
            loss = (loss + ((1.0 - similarity)? * self.ssim)?)?;
        }
        if self.edges > 0.0 {
            loss = (loss + (edges(difference)? * self.edges)?)?;
        }
        Ok(loss)
    }

    fn pixels(&self, difference: &Tensor) -> Result<Tensor> {
        let size = difference.abs()?;
        if self.huber == 0.0 {
            return Ok(size.mean_all()?);
        }
        // Below delta x^2 / (2 delta), above |x| - delta / 2: with c = min(|x|, delta), c (|x| - c / 2) / delta.
        let cut = size.minimum(self.huber)?;
        let huber = ((&cut * (&size - (&cut * 0.5)?)?)? / self.huber)?;
        Ok(huber.mean_all()?)
    }
}

/// Since differences of neighbours are linear, those of the difference are the difference of those.
fn edges(mut difference: Tensor) -> Result<Tensor> {
    let mut sum = Tensor::zeros((), difference.dtype(), difference.device())?;
    for scale in 0..SCALES {
        let (_, _, height, width) = difference.dims4()?;
        if height < 2 || width < 2 {
            let fix = format!("edges are compared at {SCALES} resolutions; take pictures of 8 or more pixels a side");
            return Err(Error::invalid("the size of pictures", format!("{width}x{height} at scale {scale}"), fix));
        }
        for (dim, length) in [(2, height), (3, width)] {
            let step = (difference.narrow(dim, 1, length - 1)? - difference.narrow(dim, 0, length - 1)?)?;
            sum = (sum + (step.abs()?.mean_all()? * 0.5)?)?;
        }
        if scale + 1 < SCALES {
            difference = halved(&difference)?;
        }
    }
    Ok(sum)
}

/// Half the resolution, by the mean of four; an odd last row or column is left out.
///
/// # Errors
/// If a side is shorter than two.
pub(super) fn halved(x: &Tensor) -> Result<Tensor> {
    Ok(x.avg_pool2d(2)?)
}

/// The structural similarity of pictures at every place where the whole window fits (Wang et al. 2004, equation 13, with their
/// Gaussian window of 11 pixels and spread 1.5), differentiable in both.
///
/// # Shapes
/// Both `[batch, channels, height, width]` in `[-1, 1]`; the result is `[batch, channels, width - 10, height - 10]`, each map
/// transposed.
///
/// # Errors
/// If the shapes differ, or a side is shorter than the window.
pub fn ssim(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (batch, _, height, width) = a.dims4()?;
    if height < WINDOW || width < WINDOW {
        let fix = format!("structure is compared in windows of {WINDOW} pixels; take larger ones");
        return Err(Error::invalid("the size of pictures", format!("{width}x{height}"), fix));
    }
    let maps = Tensor::cat(&[a, b, &(a * a)?, &(b * b)?, &(a * b)?], 0)?;
    let windowed = windowed(&maps)?;
    let map = |i: usize| windowed.narrow(0, i * batch, batch);
    let (mean_a, mean_b) = (map(0)?, map(1)?);
    let (square_a, square_b, product) = ((&mean_a * &mean_a)?, (&mean_b * &mean_b)?, (mean_a * mean_b)?);
    let (variance_a, variance_b) = ((map(2)? - &square_a)?, (map(3)? - &square_b)?);
    let covariance = (map(4)? - &product)?;
    let luminance = (((product * 2.0)? + C1)? / ((square_a + square_b)? + C1)?)?;
    let structure = (((covariance * 2.0)? + C2)? / ((variance_a + variance_b)? + C2)?)?;
    Ok((luminance * structure)?)
}

/// Weighted means under the window, each map transposed.
fn windowed(maps: &Tensor) -> Result<Tensor> {
    let along_rows = |x: &Tensor| -> Result<Tensor> {
        let (batch, channels, height, width) = x.dims4()?;
        let matrix = window_matrix(width, x.device())?.to_dtype(x.dtype())?;
        let rows = x.reshape((batch * channels * height, width))?.matmul(&matrix)?;
        Ok(rows.reshape((batch, channels, height, width + 1 - WINDOW))?)
    };
    along_rows(&along_rows(maps)?.transpose(2, 3)?.contiguous()?)
}

/// `[length, length - 10]`: a row times it is the row's weighted means.
fn window_matrix(length: usize, device: &Device) -> Result<Tensor> {
    let middle = (WINDOW / 2) as f64;
    let weight = |i: usize| (-(i as f64 - middle).powi(2) / (2.0 * SPREAD * SPREAD)).exp();
    let total: f64 = (0..WINDOW).map(weight).sum();
    let columns = length + 1 - WINDOW;
    let mut matrix = vec![0.0; length * columns];
    for column in 0..columns {
        for i in 0..WINDOW {
            matrix[(column + i) * columns + column] = weight(i) / total;
        }
    }
    Ok(Tensor::from_vec(matrix, (length, columns), device)?)
}

/// The peak signal-to-noise ratio of each picture in decibels, `10 log10(2^2 / mean squared error)` of values cut to
/// `[-1, 1]`; infinite where nothing differs.
///
/// # Shapes
/// Both `[batch, channels, height, width]`.
///
/// # Errors
/// If the shapes differ.
pub fn psnr(reconstruction: &Tensor, pictures: &Tensor) -> Result<Vec<f64>> {
    let difference = (reconstruction.clamp(-1f32, 1f32)? - pictures)?;
    let errors = super::objective::mean_per_image(&difference.sqr()?)?;
    let errors = errors.to_dtype(candle_core::DType::F64)?.to_vec1::<f64>()?;
    Ok(errors.into_iter().map(|error| 10.0 * (4.0 / error).log10()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::TorchGenerator;
    use candle_core::{DType, Var};

    fn random(seed: u64, shape: (usize, usize, usize, usize)) -> Result<Tensor> {
        let count = shape.0 * shape.1 * shape.2 * shape.3;
        let values: Vec<f64> =
            TorchGenerator::new(seed).uniform(count).into_iter().map(|u| 2.0 * f64::from(u) - 1.0).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// The definition, window by window.
    fn ssim_by_definition(a: &[f64], b: &[f64], side: usize, (top, left): (usize, usize)) -> f64 {
        let weight = |i: usize| (-(i as f64 - 5.0).powi(2) / 4.5).exp();
        let total: f64 = (0..11).map(weight).sum::<f64>().powi(2);
        let mean = |f: &dyn Fn(usize) -> f64| {
            let mut sum = 0.0;
            for y in 0..11 {
                for x in 0..11 {
                    sum += weight(y) * weight(x) * f((top + y) * side + left + x);
                }
            }
            sum / total
        };
        let (ma, mb) = (mean(&|i| a[i]), mean(&|i| b[i]));
        let (va, vb) = (mean(&|i| (a[i] - ma).powi(2)), mean(&|i| (b[i] - mb).powi(2)));
        let covariance = mean(&|i| (a[i] - ma) * (b[i] - mb));
        (2.0 * ma * mb + C1) * (2.0 * covariance + C2) / ((ma * ma + mb * mb + C1) * (va + vb + C2))
    }

    #[test]
    fn structural_similarity_is_that_of_its_definition() -> Result<()> {
        let (a, b) = (random(1, (1, 1, 14, 14))?, random(2, (1, 1, 14, 14))?);
        let (va, vb) = (a.flatten_all()?.to_vec1::<f64>()?, b.flatten_all()?.to_vec1::<f64>()?);
        let found = ssim(&a, &b)?.squeeze(0)?.squeeze(0)?.to_vec2::<f64>()?;
        assert_eq!((found.len(), found[0].len()), (4, 4));
        for (left, row) in found.iter().enumerate() {
            for (top, value) in row.iter().enumerate() {
                let expected = ssim_by_definition(&va, &vb, 14, (top, left));
                // Sums of 121 products in another order.
                assert!((value - expected).abs() < 1e-12, "{top} {left}: {value} {expected}");
            }
        }
        assert!(ssim(&a, &a)?.flatten_all()?.to_vec1::<f64>()?.iter().all(|s| (s - 1.0).abs() < 1e-12));
        assert!(ssim(&random(1, (1, 1, 10, 14))?, &random(1, (1, 1, 10, 14))?).is_err());
        Ok(())
    }

    #[test]
    fn the_loss_adds_up() -> Result<()> {
        let x = random(3, (2, 3, 16, 16))?;
        let all = ReconstructionLoss { huber: 0.0, ssim: 0.5, edges: 1.0 };
        let value = |loss: ReconstructionLoss, y: &Tensor| -> Result<f64> { Ok(loss.mean(y, &x)?.to_scalar::<f64>()?) };
        assert!(value(all, &x)?.abs() < 1e-12);
        // A constant has no edges, and its distance is itself.
        let plain = ReconstructionLoss { ssim: 0.0, ..all };
        assert!((value(plain, &(&x + 0.25)?)? - 0.25).abs() < 1e-12);
        // Huber's: 0.1^2 / (2 * 0.2), and 0.5 - 0.2 / 2.
        let huber = ReconstructionLoss { huber: 0.2, ssim: 0.0, edges: 0.0 };
        assert!((value(huber, &(&x + 0.1)?)? - 0.025).abs() < 1e-12);
        assert!((value(huber, &(&x + 0.5)?)? - 0.4).abs() < 1e-12);
        // Rows that rise by one step more each: an edge of 0.01 between rows, 0.02 and 0.04 where they are halved.
        let ramp: Vec<f64> = (0..2 * 3 * 256).map(|i| 0.01 * ((i % 256) / 16) as f64).collect();
        let edges = ReconstructionLoss { huber: 0.0, ssim: 0.0, edges: 1.0 };
        let ramped = (&x + Tensor::from_vec(ramp, (2, 3, 16, 16), &Device::Cpu)?)?;
        let expected = 0.01 * 7.5 + 0.5 * (0.01 + 0.02 + 0.04);
        assert!((value(edges, &ramped)? - expected).abs() < 1e-12);
        Ok(())
    }

    #[test]
    fn it_is_differentiable() -> Result<()> {
        let x = random(3, (1, 1, 12, 12))?;
        let y = Var::from_tensor(&random(4, (1, 1, 12, 12))?)?;
        let loss = ReconstructionLoss { huber: 0.3, ssim: 0.5, edges: 0.7 };
        let gradients = loss.mean(&y, &x)?.backward()?;
        let gradient = gradients.get(y.as_tensor()).map(|g| g.flatten_all()?.to_vec1::<f64>()).transpose()?;
        let gradient = gradient.ok_or_else(|| Error::invalid("the gradient", "missing", "there must be one"))?;
        let values = y.flatten_all()?.to_vec1::<f64>()?;
        for i in (0..144).step_by(13) {
            let at = |step: f64| -> Result<f64> {
                let mut moved = values.clone();
                moved[i] += step;
                Ok(loss.mean(&Tensor::from_vec(moved, (1, 1, 12, 12), &Device::Cpu)?, &x)?.to_scalar::<f64>()?)
            };
            let slope = (at(1e-6)? - at(-1e-6)?) / 2e-6;
            // Of central differences of step h the error is h^2 times a third derivative, and rounding 1e-16 / h.
            assert!((slope - gradient[i]).abs() < 1e-7, "{i}: {slope} {}", gradient[i]);
        }
        Ok(())
    }

    #[test]
    fn decibels() -> Result<()> {
        let x = Tensor::zeros((2, 3, 4, 4), DType::F32, &Device::Cpu)?;
        let y = Tensor::cat(&[x.narrow(0, 0, 1)?, (x.narrow(0, 1, 1)? + 0.2)?], 0)?;
        let found = psnr(&y, &x)?;
        assert!(found[0].is_infinite() && (found[1] - 20.0).abs() < 1e-5, "{found:?}");
        Ok(())
    }
}
