//! The text-conditioned UNet (Rombach et al. 2022), as diffusers' `UNet2DConditionModel` has it.

pub(in crate::models) mod blocks;
mod config;
pub(in crate::models) mod encoder;
mod text_embedding;
mod transformer;

pub use config::{AddedConditioning, BlockKind, UNet2DConditionConfig};

use crate::denoising::{Branch, Call, Network};
use crate::layers::{Conv2d, FeatureMap, GroupNorm, Weights, on_device};
use crate::{Error, ErrorKind, Result};
use blocks::{BlockContext, UpBlock};
use candle_core::{DType, Tensor};
use encoder::{Additions, Encoder};
use transformer::Transformer;

/// What other networks add to the UNet's states; nothing by default. All are `[batch, channels, height, width]`.
#[derive(Debug, Clone, Default)]
pub struct ControlResiduals {
    /// Of a ControlNet, one for each skip connection, in the order in which they are made; or none.
    pub down: Vec<Tensor>,
    /// Of a ControlNet, for the output of the middle block.
    pub mid: Option<Tensor>,
    /// Of a T2I-Adapter, one for each resolution, and one for the middle if there is one more.
    pub resolutions: Vec<Tensor>,
}

/// The denoising network of latent diffusion.
#[derive(Debug)]
pub struct UNet2DConditionModel {
    encoder: Encoder,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConditionConfig,
}

impl UNet2DConditionModel {
    /// Builds the network. Activations have element type `dtype`.
    ///
    /// # Errors
    /// If the weights cannot be had.
    pub fn new(weights: &Weights<'_>, config: UNet2DConditionConfig, dtype: DType) -> Result<Self> {
        let channels = &config.block_out_channels;
        let blocks = channels.len();
        let encoder = Encoder::new(weights, &config, dtype)?;
        let sizes = config.block_sizes();
        let up_blocks = (0..blocks).map(|i| {
            let transformer = |weights: &Weights<'_>| config.transformer(weights, config.up_blocks[i], blocks - 1 - i);
            UpBlock::new(&weights.at("up_blocks").at(i), &sizes, i, transformer)
        });
        Ok(Self {
            encoder,
            up_blocks: up_blocks.collect::<Result<_>>()?,
            conv_norm_out: GroupNorm::new(
                &weights.at("conv_norm_out"),
                config.norm_num_groups,
                channels[0],
                config.norm_eps,
            )?
            .with_silu(),
            conv_out: Conv2d::new(&weights.at("conv_out"), channels[0], config.out_channels, config.conv_out_kernel)?,
            config,
        })
    }

    /// The configuration it was built from.
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// The element type of activations.
    pub fn dtype(&self) -> DType {
        self.encoder.dtype()
    }

    /// [`Network::forward`] with what control models add to the states.
    ///
    /// # Errors
    /// If the shapes do not fit, or the model needs conditioning that is not there.
    pub fn forward_controlled(&self, call: &Call<'_>, control: Option<&ControlResiduals>) -> Result<Tensor> {
        on_device(call.x.device(), || self.evaluate(call, control))
    }

    fn evaluate(&self, call: &Call<'_>, control: Option<&ControlResiduals>) -> Result<Tensor> {
        let Call { x, conditioning, cache, .. } = *call;
        let text = self.encoder.text(conditioning, cache)?;
        let time = self.encoder.embed_time(&call.timesteps()?, conditioning, &text, cache)?;
        let perturbed = call.rows(|branch| branch == Branch::Perturbed)?;
        let context = BlockContext { time: &time, text: &text, perturbed, cache };
        let attend = |transformer: &Transformer, h: &FeatureMap| transformer.forward(h, &context, &(0..0));
        let maps = |tensors: &[Tensor]| tensors.iter().map(|x| self.encoder.map(x)).collect::<Result<Vec<_>>>();
        let resolutions = control.map_or(Ok(Vec::new()), |control| maps(&control.resolutions))?;

        let (mut h, mut skips) =
            self.encoder.forward(x, &context, Additions { resolutions: &resolutions, ..Additions::default() })?;
        if let Some(control) = control {
            skips = controlled(skips, &maps(&control.down)?)?;
            if let Some(mid) = &control.mid {
                h = h.add(&self.encoder.map(mid)?)?;
            }
        }
        for block in &self.up_blocks {
            h = block.forward(h, &time, &mut skips, attend)?;
        }
        let out = self.conv_out.forward(&self.conv_norm_out.forward(&h)?)?;
        Ok(out.to_nchw()?.to_dtype(x.dtype())?)
    }
}

/// The skip connections with a ControlNet's residuals, if there are any.
fn controlled(skips: Vec<FeatureMap>, residuals: &[FeatureMap]) -> Result<Vec<FeatureMap>> {
    if residuals.is_empty() {
        return Ok(skips);
    }
    if residuals.len() != skips.len() {
        return Err(Error::unusable(
            ErrorKind::Model,
            "the number of control residuals",
            residuals.len(),
            format!("the UNet has {} skip connections; take a ControlNet made for it", skips.len()),
        ));
    }
    skips.iter().zip(residuals).map(|(skip, residual)| skip.add(residual)).collect()
}

/// The conditioning's text is `[rows, tokens, cross_attention_dim]`. In perturbed rows the self-attention of the middle block
/// is the identity, as Ahn et al. (2024) found best.
impl Network for UNet2DConditionModel {
    fn forward(&self, call: &Call<'_>) -> Result<Tensor> {
        self.forward_controlled(call, None)
    }
}
