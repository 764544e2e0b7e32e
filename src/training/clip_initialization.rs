//! A text encoder's weights before training, as transformers' `CLIPTextModel` has them.

use super::initialization::fnv1a;
use super::{Stream, Streams};
use crate::layers::WeightSource;
use crate::models::ClipTextConfig;
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// The standard deviation of embeddings (`initializer_range`).
const EMBEDDINGS: f64 = 0.02;

/// Random weights of a CLIP text encoder (Radford et al. 2021, section 2.4, and their program): normal, with deviations that
/// follow from width and depth. Norms are the identity, biases zero. Every parameter draws from a stream of its own.
#[derive(Debug)]
pub struct ClipInitialization<'a> {
    config: &'a ClipTextConfig,
    seed: u64,
}

impl<'a> ClipInitialization<'a> {
    /// The weights of a seed.
    pub fn new(config: &'a ClipTextConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// The standard deviation of a matrix.
    fn deviation(&self, name: &str) -> Option<f64> {
        let width = self.config.hidden_size as f64;
        let into_stream = width.powf(-0.5) * (2.0 * self.config.num_hidden_layers as f64).powf(-0.5);
        let layer = name.strip_suffix(".weight")?;
        Some(match layer.rsplit('.').next()? {
            "token_embedding" | "position_embedding" => EMBEDDINGS,
            "q_proj" | "k_proj" | "v_proj" | "fc2" => into_stream,
            "out_proj" => width.powf(-0.5),
            "fc1" => (2.0 * width).powf(-0.5),
            _ => return None,
        })
    }
}

impl WeightSource for ClipInitialization<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let device = self.device();
        if let Some(deviation) = self.deviation(name) {
            let mut generator = Streams::new(self.seed).generator(Stream::Weights, fnv1a(name));
            let values = generator.normal(shape.iter().product()).into_iter().map(|value| value * deviation as f32);
            return Ok(Tensor::from_vec(values.collect::<Vec<_>>(), shape, device)?);
        }
        match name.rsplit('.').next() {
            Some("bias") => Ok(Tensor::zeros(shape, DType::F32, device)?),
            Some("weight") if shape.len() == 1 => Ok(Tensor::ones(shape, DType::F32, device)?),
            _ => Err(Error::invalid("the parameter to start from", name, "a CLIP text encoder has none of that name")),
        }
    }

    /// Names begin with `text_model.`, as in files, and there is no projection.
    fn contains(&self, _: &str) -> bool {
        false
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

/// Weights of a text encoder without the projection of its pooled output, of which a loss that looks at the states alone gives
/// no gradient.
pub(super) struct WithoutProjection<'a>(pub &'a dyn WeightSource);

impl WeightSource for WithoutProjection<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.0.tensor(name, shape)
    }

    fn contains(&self, name: &str) -> bool {
        name != "text_projection.weight" && self.0.contains(name)
    }

    fn device(&self) -> &Device {
        self.0.device()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFields;
    use serde_json::Map;

    #[test]
    fn matrices_have_the_spread_of_their_place() -> Result<()> {
        let mut config = ClipTextConfig::from_fields(&ConfigFields::from_fields("text_encoder", Map::new()))?;
        (config.hidden_size, config.num_hidden_layers) = (128, 2);
        let source = ClipInitialization::new(&config, 5);
        let spread = |name: &str| -> Result<f64> {
            let values = source.tensor(&format!("text_model.encoder.layers.0.{name}"), &[128, 128])?;
            Ok((values.flatten_all()?.to_vec1::<f32>()?.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 16384.0)
                .sqrt())
        };
        // Of 16,384 values the spread is within four times 0.55 % of what it should be.
        for (name, expected) in [("self_attn.q_proj.weight", 1.0 / 512f64.sqrt()), ("mlp.fc1.weight", 1.0 / 16.0)] {
            let spread = spread(name)?;
            assert!((spread / expected - 1.0).abs() < 0.022, "{name}: {spread} {expected}");
        }
        assert_eq!(source.tensor("text_model.final_layer_norm.weight", &[2])?.to_vec1::<f32>()?, [1.0, 1.0]);
        assert_eq!(source.tensor("a.q_proj.bias", &[2])?.to_vec1::<f32>()?, [0.0, 0.0]);
        assert!(source.tensor("a.scale", &[2]).is_err());
        Ok(())
    }
}
