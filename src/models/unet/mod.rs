//! The text-conditioned UNet (Rombach et al. 2022), as diffusers' `UNet2DConditionModel` has it.

pub(in crate::models) mod blocks;
mod config;
mod deep_state;
pub(in crate::models) mod encoder;
mod text_embedding;
mod token_merging;
mod transformer;

pub use config::{AddedConditioning, BlockKind, UNet2DConditionConfig};

use crate::denoising::{Branch, Call, Network, Reuse};
use crate::layers::{Conv2d, FeatureMap, GroupNorm, LayerId, Weights, on_device};
use crate::{Error, ErrorKind, Result};
use blocks::{BlockContext, UpBlock};
use candle_core::{DType, Tensor};
use deep_state::DeepState;
use encoder::{Additions, Encoder};
use std::sync::Arc;
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
    /// Under which a run keeps what its deep layers gave.
    deep: LayerId,
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
            deep: LayerId::unique(),
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

    /// [`Network::forward`] with what control models add to the states, where the deep ones are computed; among those that were
    /// kept it is.
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
        let context = BlockContext { time: &time, text: &text, perturbed, token_merging: call.token_merging, cache };
        if let Some(state) = self.deep_state(call)? {
            return self.output(&self.shallow(x, &context, &state)?, x.dtype());
        }
        let attend = |transformer: &Transformer, h: &FeatureMap| transformer.forward(h, &context, &(0..0));
        let maps = |tensors: &[Tensor]| tensors.iter().map(|x| self.encoder.map(x)).collect::<Result<Vec<_>>>();
        let resolutions = control.map_or(Ok(Vec::new()), |control| maps(&control.resolutions))?;

        let (mut h, mut skips) =
            self.encoder.forward(x, &context, Additions { resolutions: &resolutions, ..Additions::default() })?;
        let residuals = control.map_or(Ok(Vec::new()), |control| maps(&control.down))?;
        skips = controlled(skips, &residuals)?;
        if let Some(mid) = control.and_then(|control| control.mid.as_ref()) {
            h = h.add(&self.encoder.map(mid)?)?;
        }
        let Some((highest, lower)) = self.up_blocks.split_last() else { return self.output(&h, x.dtype()) };
        for block in lower {
            h = block.forward(h, &time, &mut skips, attend)?;
        }
        let first = match call.reuse {
            Reuse::Nothing => 0,
            Reuse::Keep { shallow } | Reuse::Take { shallow } => {
                let shallow = shallow.min(self.encoder.highest_layers());
                let first = highest.layers().saturating_sub(shallow + 1);
                h = highest.some_layers(0..first, h, &time, &mut skips, attend)?;
                let residuals = residuals.into_iter().take(shallow + 1).collect();
                let added = resolutions.into_iter().next();
                let state = DeepState { branches: call.branches.to_vec(), h: h.clone(), shallow, residuals, added };
                call.cache.keep(self.deep, state);
                first
            }
        };
        h = highest.some_layers(first..highest.layers(), h, &time, &mut skips, attend)?;
        self.output(&h, x.dtype())
    }

    /// Whether a call takes the deep features that were kept.
    pub(in crate::models) fn reuses(&self, call: &Call<'_>) -> Result<bool> {
        Ok(self.deep_state(call)?.is_some())
    }

    /// What was kept of the rows of a call that asks for it.
    fn deep_state(&self, call: &Call<'_>) -> Result<Option<Arc<DeepState>>> {
        let Reuse::Take { .. } = call.reuse else { return Ok(None) };
        let Some(state) = call.cache.state::<DeepState>(self.deep) else { return Ok(None) };
        state.of(call)
    }

    /// The state before the last norm, from deep features and the layers of the highest resolution that are computed.
    fn shallow(&self, x: &Tensor, context: &BlockContext<'_>, state: &DeepState) -> Result<FeatureMap> {
        let skips = self.encoder.shallow(x, context, state.shallow, state.added.as_ref())?;
        let mut skips = controlled(skips, &state.residuals)?;
        let Some(highest) = self.up_blocks.last() else { return Ok(state.h.clone()) };
        let attend = |transformer: &Transformer, h: &FeatureMap| transformer.forward(h, context, &(0..0));
        let layers = highest.layers().saturating_sub(state.shallow + 1)..highest.layers();
        highest.some_layers(layers, state.h.clone(), context.time, &mut skips, attend)
    }

    /// The last norm and the last convolution, as `[batch, out_channels, height, width]`.
    fn output(&self, h: &FeatureMap, dtype: DType) -> Result<Tensor> {
        let out = self.conv_out.forward(&self.conv_norm_out.forward(h)?)?;
        Ok(out.to_nchw()?.to_dtype(dtype)?)
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
