//! Embeddings of scalars: timesteps, sizes, offsets. Always computed in f32.

use super::weights::vector;
use super::{Activation, Linear, Weights};
use crate::Result;
use candle_core::{D, DType, Tensor};

/// Sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017, section 3.5).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SinusoidalEmbedding {
    /// The number of values; half are sines, half cosines.
    pub width: usize,
    /// Whether the cosines come first.
    pub flip_sin_to_cos: bool,
    /// Subtracted from the number of frequencies in the spacing's denominator.
    pub freq_shift: f64,
}

impl SinusoidalEmbedding {
    /// # Shapes
    /// `scalars`: `[n]`; the result is `[n, width]` in f32, or in f64 if the scalars are f64.
    ///
    /// # Errors
    /// If the scalars have another number of dimensions.
    pub fn forward(&self, scalars: &Tensor) -> Result<Tensor> {
        let half = self.width / 2;
        // The exponents are rounded to f32 where PyTorch rounds them: networks were trained on these frequencies.
        let (period, count) = (-(10_000f64.ln()) as f32, (half as f64 - self.freq_shift) as f32);
        let frequencies: Vec<f32> = (0..half).map(|i| (period * i as f32 / count).exp()).collect();
        let dtype = if scalars.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let frequencies = Tensor::from_vec(frequencies, (1, half), &candle_core::Device::Cpu)?;
        let frequencies = frequencies.to_dtype(dtype)?.to_device(scalars.device())?;
        let angles = scalars.to_dtype(dtype)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
        let (sin, cos) = (angles.sin()?, angles.cos()?);
        let both = if self.flip_sin_to_cos { [&cos, &sin] } else { [&sin, &cos] };
        let embedding = Tensor::cat(&both, D::Minus1)?;
        Ok(embedding.pad_with_zeros(D::Minus1, 0, self.width % 2)?)
    }
}

/// Sines and cosines of the logarithm of a noise level at random frequencies, which are part of the checkpoint
/// (Tancik et al. 2020; Song et al. 2021, appendix C.1).
#[derive(Debug, Clone)]
pub struct FourierEmbedding {
    frequencies: Tensor,
}

impl FourierEmbedding {
    /// From `weight` `[frequencies]`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, frequencies: usize) -> Result<Self> {
        Ok(Self { frequencies: vector(weights, "weight", frequencies)? })
    }

    /// # Shapes
    /// `scalars`: `[n]`, above 0; the result is `[n, 2 * frequencies]`, sines first, in f32, or in f64 if the scalars
    /// are f64.
    ///
    /// # Errors
    /// If the scalars have another number of dimensions.
    pub fn forward(&self, scalars: &Tensor) -> Result<Tensor> {
        let dtype = if scalars.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let frequencies = self.frequencies.to_dtype(dtype)?.unsqueeze(0)?;
        let logarithms = scalars.to_dtype(dtype)?.log()?.unsqueeze(1)?;
        let angles = (logarithms.broadcast_mul(&frequencies)? * std::f64::consts::TAU)?;
        Ok(Tensor::cat(&[angles.sin()?, angles.cos()?], D::Minus1)?)
    }
}

/// The strength of guidance as an input, of networks that were distilled from guided ones (Meng et al. 2023, section 3.1;
/// Luo et al. 2023, section 4.2): an embedding of its own, projected and added to that of the timestep.
#[derive(Debug, Clone)]
pub struct GuidanceEmbedding {
    cond_proj: Linear,
    width: usize,
}

impl GuidanceEmbedding {
    /// From `cond_proj`; `width`, 4 or more, is that of the sinusoidal embedding, `outputs` that of the timestep's.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, width: usize, outputs: usize) -> Result<Self> {
        Ok(Self { cond_proj: Linear::with_bias(&weights.at("cond_proj"), width, outputs, false)?, width })
    }

    /// # Shapes
    /// `guidance`: `[batch]`, the guidance scale minus 1; the result is `[batch, outputs]`, of type `dtype`.
    ///
    /// # Errors
    /// If the shape is another, or the projection has no product of type `dtype`.
    pub fn forward(&self, guidance: &Tensor, dtype: DType) -> Result<Tensor> {
        // A thousand times the strength is an angle: what the reference rounds to f32, and when, shows.
        let half = self.width / 2;
        let step = -(10_000f32.ln() / (half - 1) as f32);
        let frequencies: Vec<f32> = (0..half).map(|i| (i as f32 * step).exp()).collect();
        let frequencies = Tensor::from_vec(frequencies, (1, half), guidance.device())?;
        let angles = (guidance.to_dtype(DType::F32)? * 1000.0)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
        let embedding = Tensor::cat(&[angles.sin()?, angles.cos()?], D::Minus1)?;
        self.cond_proj.forward(&embedding.pad_with_zeros(D::Minus1, 0, self.width % 2)?.to_dtype(dtype)?)
    }
}

/// The two-layer perceptron that follows a sinusoidal embedding.
#[derive(Debug, Clone)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// From `linear_1` and `linear_2`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, inputs: usize, width: usize) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(&weights.at("linear_1"), inputs, width)?,
            linear_2: Linear::new(&weights.at("linear_2"), width, width)?,
        })
    }

    /// # Shapes
    /// `x`: `[batch, inputs]`; the result is `[batch, width]`.
    ///
    /// # Errors
    /// If the width does not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.linear_2.forward(&Activation::Silu.forward(&self.linear_1.forward(x)?)?)
    }
}
