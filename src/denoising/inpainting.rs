//! Networks that are shown what is known of the picture.

use super::{Call, Network};
use crate::Result;
use candle_core::Tensor;

/// An inpainting network: one whose input is the state, the mask and the masked image's latents, one after the other
/// along the channels (Rombach et al. 2022, section 4.5; nine channels in Stable Diffusion).
///
/// With the two bound to it, it takes a state like any other network.
pub struct InpaintingNetwork<'a, N: ?Sized> {
    network: &'a N,
    known: &'a Tensor,
}

impl<'a, N: ?Sized> InpaintingNetwork<'a, N> {
    /// Binds a network to the mask and the latents of what is known.
    ///
    /// # Shapes
    /// `known`: `[batch, 1 + latent_channels, height, width]`, the mask first, 1 where to paint.
    pub fn new(network: &'a N, known: &'a Tensor) -> Self {
        Self { network, known }
    }

    /// The state with the known channels after it; a batch that guidance has multiplied gets them as often.
    fn extended(&self, x: &Tensor) -> Result<Tensor> {
        let times = x.dim(0)? / self.known.dim(0)?.max(1);
        let known = if times == 1 { self.known.clone() } else { self.known.repeat((times, 1, 1, 1))? };
        Ok(Tensor::cat(&[x, &known.to_dtype(x.dtype())?], 1)?)
    }
}

impl<N: Network + ?Sized> Network for InpaintingNetwork<'_, N> {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        self.network.forward(&Call { x: &self.extended(call.x)?, ..*call })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NoiseLevel;
    use crate::conditioning::Conditioning;
    use crate::denoising::Cache;
    use candle_core::{DType, Device, IndexOp};

    /// Gives its input back.
    struct Mirror;

    impl Network for Mirror {
        fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
            Ok(call.x.clone())
        }
    }

    #[test]
    fn every_branch_of_guidance_sees_the_channels_of_its_own_image() -> Result<()> {
        let numbers = |values: &[f32], channels: usize| -> Result<Tensor> {
            Ok(Tensor::from_slice(values, (values.len() / channels, channels, 1, 1), &Device::Cpu)?)
        };
        let known = numbers(&[10.0, 11.0, 20.0, 21.0], 2)?;
        let x = numbers(&[1.0, 2.0, 1.0, 2.0], 1)?;
        let text = Conditioning::text(Tensor::zeros((4, 1, 1), DType::F32, &Device::Cpu)?);
        let (level, cache) = (NoiseLevel::from_sigma(0.0, 1.0), Cache::default());
        let seen = InpaintingNetwork::new(&Mirror, &known).forward(&Call::new(&x, level, &text, &cache))?;
        assert_eq!(seen.dims(), [4, 3, 1, 1]);
        let rows = seen.i((.., .., 0, 0))?.to_vec2::<f32>()?;
        assert_eq!(rows, [[1.0, 10.0, 11.0], [2.0, 20.0, 21.0], [1.0, 10.0, 11.0], [2.0, 20.0, 21.0]]);
        Ok(())
    }
}
