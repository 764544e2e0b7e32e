//! Low-rank factors in training, beside weights that stay as they are.

use super::ParameterSource;
use crate::adapters::AdapterSource;
use crate::layers::{Adapter, Computation, WeightDelta, WeightSource};
use crate::{Device, Error, Result};

/// What ends the names of the two factors of a weight.
const DOWN: &str = "lora_A.weight";
const UP: &str = "lora_B.weight";

/// Which weights of a model get factors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LowRankModules {
    /// Those of attention: queries, keys, values and the output.
    #[default]
    Attention,
    /// All of transformer blocks: also the feed-forward layers and the projections before and after the blocks.
    Transformers,
    /// Also those of residual blocks and of the convolutions between resolutions (LoCon).
    All,
}

impl LowRankModules {
    /// Whether a weight of a model is one of these, by its name in diffusers or transformers.
    fn include(self, name: &str) -> bool {
        let Some(path) = name.strip_suffix(".weight") else { return false };
        let ends = |endings: &[&str]| endings.iter().any(|ending| path.ends_with(ending));
        let attends = ends(&[".to_q", ".to_k", ".to_v", ".to_out.0", ".q_proj", ".k_proj", ".v_proj", ".out_proj"]);
        let transforms = path.contains(".ff.net.") || ends(&[".proj_in", ".proj_out", ".fc1", ".fc2"]);
        let in_blocks = ["down_blocks.", "mid_block.", "up_blocks."].iter().any(|block| path.starts_with(block));
        match self {
            Self::Attention => attends,
            Self::Transformers => attends || transforms,
            Self::All => attends || transforms || in_blocks,
        }
    }
}

/// What a LoRA in training is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LowRankConfig {
    /// The rank of each change.
    pub rank: usize,
    /// A change is the product of its factors times `alpha / rank`.
    pub alpha: f64,
    /// Which weights get factors.
    pub modules: LowRankModules,
}

impl LowRankConfig {
    /// Whether it can be used.
    ///
    /// # Errors
    /// If it cannot; the message names the field.
    pub fn check(&self) -> Result<()> {
        if self.rank == 0 || self.rank > 4096 {
            return Err(Error::invalid("`rank`", self.rank, "take from 1 to 4096; 4 to 64 are usual"));
        }
        match self.alpha > 0.0 && self.alpha.is_finite() {
            true => Ok(()),
            false => Err(Error::invalid("`alpha`", self.alpha, "it must be above 0; as much as `rank` is usual")),
        }
    }
}

/// Factors before the first step: the first one of a weight uniform in `+-1 / sqrt(fan_in)`, the second one zero, as PEFT and kohya's
/// scripts have them (Hu et al. 2022, section 4.1), so that the model is what it was.
pub(super) fn new_factors(seed: u64) -> ParameterSource<'static> {
    ParameterSource::random(seed, &Device::Cpu).with_zeros(|name| name.ends_with(UP))
}

/// Factors beside the weights of a denoising network, and of text encoders if there are any for those.
pub(super) struct LowRankAdapters<'a> {
    pub config: LowRankConfig,
    /// The folder of the denoising network.
    pub network: &'a str,
    pub network_factors: &'a dyn WeightSource,
    pub text_factors: Option<&'a dyn WeightSource>,
}

impl AdapterSource for LowRankAdapters<'_> {
    fn adapter(
        &self,
        component: &str,
        name: &str,
        shape: &[usize],
        computation: Computation,
    ) -> Result<Option<Adapter>> {
        let LowRankConfig { rank, alpha, modules } = self.config;
        let factors = if component == self.network { Some(self.network_factors) } else { self.text_factors };
        let (Some(factors), true) = (factors, modules.include(name)) else { return Ok(None) };
        let (Some(stem), [outputs, inputs @ ..]) = (name.strip_suffix("weight"), shape) else { return Ok(None) };
        // Files call them so with the whole name of what transformers' models contain.
        let inner = if component != self.network && !stem.starts_with("text_model.") { "text_model." } else { "" };
        let ones = vec![1; inputs.len().saturating_sub(1)];
        let factor = |ending, shape: &[usize]| factors.tensor(&format!("{component}.{inner}{stem}{ending}"), shape);
        let down = factor(DOWN, &[&[rank], inputs].concat())?;
        let up = factor(UP, &[&[*outputs, rank], &ones[..]].concat())?;
        let delta = WeightDelta::low_rank(&down, &up, shape, computation)?.into();
        Ok(Some(Adapter { delta, scale: alpha / rank as f64 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_told_by_their_names() {
        let transformer = "down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0.weight";
        let text = "text_model.encoder.layers.3.self_attn.out_proj.weight";
        for modules in [LowRankModules::Attention, LowRankModules::Transformers, LowRankModules::All] {
            assert!(modules.include(transformer) && modules.include(text));
            assert!(!modules.include("conv_in.weight") && !modules.include("text_projection.weight"));
        }
        let forward =
            ["mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", "encoder.layers.3.mlp.fc1.weight"];
        let convolution = "up_blocks.0.resnets.0.conv1.weight";
        for name in forward {
            assert!(!LowRankModules::Attention.include(name) && LowRankModules::Transformers.include(name));
        }
        assert!(!LowRankModules::Transformers.include(convolution) && LowRankModules::All.include(convolution));
    }
}
