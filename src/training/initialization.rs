//! Weights before training: PyTorch's defaults, which diffusers' networks keep.

use super::{Stream, Streams};
use crate::{Error, Result};

/// The initial values of the parameter `name`.
///
/// - A matrix or a convolution's kernel is uniform in `+-1 / sqrt(fan_in)`, which is what
///   `kaiming_uniform_(a=sqrt(5))` comes to (He et al. 2015), and so is the bias beside it.
/// - A norm's weight is one and its bias zero.
/// - The embedding of one position is normal with standard deviation `1 / sqrt(width)`.
/// - The table of an embedding, a layer whose name ends in `embedding`, is standard normal.
///
/// `weight_beside` is the shape of the `weight` that a bias belongs to. Every parameter draws from a stream of its
/// own, so its values depend on the seed, its name and its shape alone.
///
/// # Errors
/// If it is neither a weight nor a bias with a weight beside it.
pub(super) fn initial_values(
    seed: u64,
    name: &str,
    shape: &[usize],
    weight_beside: Option<&[usize]>,
) -> Result<Vec<f32>> {
    let count: usize = shape.iter().product();
    let mut generator = Streams::new(seed).generator(Stream::Weights, fnv1a(name));
    let mut uniform = |fan_in: usize| {
        let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
        generator.uniform(count).into_iter().map(|u| (2.0 * u - 1.0) * bound).collect()
    };
    let (layer, kind) = name.rsplit_once('.').unwrap_or(("", name));
    match (kind, shape, weight_beside) {
        ("weight", [_], _) => Ok(vec![1.0; count]),
        ("weight", [_, _], _) if layer.ends_with("embedding") => Ok(generator.normal(count)),
        ("weight", [_, inputs @ ..], _) => Ok(uniform(inputs.iter().product())),
        ("positional_embedding", [1, width], _) => {
            let deviation = 1.0 / (*width as f32).sqrt();
            Ok(generator.normal(count).into_iter().map(|value| value * deviation).collect())
        }
        ("bias", _, Some([_])) => Ok(vec![0.0; count]),
        ("bias", _, Some([_, inputs @ ..])) => Ok(uniform(inputs.iter().product())),
        _ => Err(Error::invalid(
            "the parameter to start from",
            name,
            "only `weight`, and `bias` after the `weight` of the same layer, have initial values",
        )),
    }
}

/// The Fowler-Noll-Vo hash, which is the same everywhere.
pub(super) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(name: &str, shape: &[usize], beside: Option<&[usize]>) -> Result<Vec<f32>> {
        initial_values(3, name, shape, beside)
    }

    /// `kaiming_uniform_(a=sqrt(5))`: standard deviation `sqrt(2 / (1 + 5) / fan_in)`.
    #[test]
    fn matrices_have_the_spread_of_kaiming() -> Result<()> {
        let shape = [64, 32, 3, 3];
        let kernel = values("conv.weight", &shape, None)?;
        let variance = kernel.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>() / kernel.len() as f64;
        let expected = 1.0 / 3.0 / 288.0;
        // Four standard errors of the variance of 18,432 uniform values: 4 sqrt(0.8 / n) of it.
        assert!((variance / expected - 1.0).abs() < 0.027, "{variance} {expected}");
        let bound = 1.0 / 288f32.sqrt();
        assert!(kernel.iter().all(|w| w.abs() <= bound));
        let bias = values("conv.bias", &[64], Some(&shape))?;
        assert!(bias.iter().all(|b| b.abs() <= bound) && bias.iter().any(|b| b.abs() > 0.8 * bound));
        Ok(())
    }

    #[test]
    fn norms_start_as_identity_and_embeddings_normal() -> Result<()> {
        assert_eq!(values("norm.weight", &[4], None)?, [1.0; 4]);
        assert_eq!(values("norm.bias", &[4], Some(&[4]))?, [0.0; 4]);
        let table = values("class_embedding.weight", &[11, 128], None)?;
        assert!(table.iter().any(|v| v.abs() > 2.5), "not uniform in +-1/sqrt(128)");
        let linear = values("time_embedding.linear_1.weight", &[128, 128], None)?;
        assert!(linear.iter().all(|v| v.abs() < 0.1));
        Ok(())
    }

    #[test]
    fn a_bias_without_its_weight_is_an_error() {
        assert!(values("conv.bias", &[4], None).is_err() && values("conv.scale", &[4], None).is_err());
    }
}
