//! Models of a text-conditioned UNet, CLIP text encoders and an autoencoder: all of Stable Diffusion up to XL.

use super::clip_encoders::{ClipEncoders, ClipStates};
use super::control_model;
use super::{
    Architecture, AutoencoderArchitecture, Component, ConditioningFacts, ControlSource, DenoisingNetwork, Loader,
    NetworkFacts, UsualSettings, Variant, XlFacts,
};
use crate::checkpoints::ModelFiles;
use crate::config::ConfigFields;
use crate::layers::Weights;
use crate::models::{
    Autoencoder, Control, ControlModel, ControlledUNet, EitherAutoencoderConfig, Halves, LatentSpace,
    UNet2DConditionConfig, UNet2DConditionModel,
};
use crate::text::TextEncoder;
use crate::{DType, Error, ErrorKind, Result};

/// What a UNet is called in LoRA files.
pub(super) const UNET_IN_LORAS: [&str; 4] = ["lora_unet_", "unet.", "model.diffusion_model.", "diffusion_model."];

/// What the first text encoder is called there.
pub(super) const TEXT_ENCODER_IN_LORAS: [&str; 4] = ["lora_te_", "lora_te1_", "text_encoder.", "clip_l."];

/// How a UNet is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Build {
    /// As that of Stable Diffusion 1.x.
    One,
    /// As that of 2.x.
    Two,
    /// As that of XL.
    Xl,
    /// As that of XL's refiner.
    XlRefiner,
}

impl Build {
    /// `has`: whether the model has a component.
    fn of(unet: &UNet2DConditionConfig, has: impl Fn(&str) -> bool) -> Self {
        match (unet.addition, published(unet)) {
            (Some(_), _) if has("text_encoder_2") && !has("text_encoder") => Self::XlRefiner,
            (Some(_), _) => Self::Xl,
            (None, Some(build)) => build,
            (None, None) if unet.use_linear_projection => Self::Two,
            (None, None) => Self::One,
        }
    }
}

/// The build that a UNet without added conditioning has, if it is of a size of Stable Diffusion.
fn published(unet: &UNet2DConditionConfig) -> Option<Build> {
    match (unet.in_channels, unet.cross_attention_dim[0]) {
        (4 | 9, 768) => Some(Build::One),
        (4 | 9, 1024) => Some(Build::Two),
        _ => None,
    }
}

/// What is known of a model whose UNet is built so; nothing of others.
pub(super) fn recognise(files: &ModelFiles, build: Build) -> Result<Option<Variant>> {
    let fields = files.config("unet", "config.json")?;
    if fields.class_name() == Some("UNet2DModel") {
        return Ok(None);
    }
    let unet = UNet2DConditionConfig::from_fields(&fields)?;
    let has = |component: &str| files.exists(&format!("{component}/config.json"));
    Ok((Build::of(&unet, has) == build).then(|| variant(&unet)))
}

fn variant(unet: &UNet2DConditionConfig) -> Variant {
    let built_alike = match (unet.addition, published(unet), unet.use_linear_projection) {
        (None, None, true) => Some("latent diffusion, built as Stable Diffusion 2.x"),
        (None, None, false) => Some("latent diffusion, built as Stable Diffusion 1.x"),
        _ => None,
    };
    // Of networks of no known size it is not known what their other channels are for.
    let inpainting = built_alike.is_none() && unet.addition.is_none() && unet.in_channels == 9;
    Variant { inpainting, description: built_alike.map(str::to_owned), ..Variant::default() }
}

/// What messages call the family that a UNet is made for.
pub(super) fn family_of(unet: &UNet2DConditionConfig) -> String {
    let name = match Build::of(unet, |_| true) {
        Build::One => "Stable Diffusion 1.x",
        Build::Two => "Stable Diffusion 2.x",
        Build::Xl | Build::XlRefiner => "Stable Diffusion XL",
    };
    let Variant { inpainting, description, .. } = variant(unet);
    format!("{}{}", description.as_deref().unwrap_or(name), if inpainting { ", inpainting" } else { "" })
}

/// The configurations of a model with a text-conditioned UNet.
#[derive(Debug)]
pub struct UNetArchitecture {
    unet: UNet2DConditionConfig,
    components: &'static [Component],
    states: ClipStates,
}

impl UNetArchitecture {
    /// Of a model that consists of these components; `states` is what its network sees of its text encoders.
    pub(super) fn read(files: &ModelFiles, components: &'static [Component], states: ClipStates) -> Result<Self> {
        let unet = UNet2DConditionConfig::from_fields(&files.config("unet", "config.json")?)?;
        Ok(Self { unet, components, states })
    }
}

impl Architecture for UNetArchitecture {
    fn network_facts(&self) -> NetworkFacts {
        facts(&self.unet)
    }

    /// The joined width of the pooled text and the embeddings of the numbers does not say how many there are: six, unless five leave
    /// a pooled text as wide as the states, as with the refiner's one text encoder.
    fn conditioning_facts(&self) -> ConditioningFacts {
        let text_width = self.unet.cross_attention_dim[0];
        let Some(added) = self.unet.addition else { return ConditioningFacts { text_width, ..Default::default() } };
        let pooled = |numbers: usize| added.embedding_input.saturating_sub(numbers * added.time_width);
        let picture_numbers = if pooled(5) == text_width { 5 } else { 6 };
        ConditioningFacts { text_width, pooled_width: pooled(picture_numbers), picture_numbers }
    }

    fn network(&self, weights: &Weights<'_>, activations: DType) -> Result<Box<dyn DenoisingNetwork>> {
        Ok(Box::new(UNet2DConditionModel::new(weights, self.unet.clone(), activations)?))
    }

    fn text_encoder(&self, loader: &Loader<'_>) -> Result<(Box<dyn TextEncoder>, Vec<String>)> {
        let (encoders, files) = ClipEncoders::load(loader, self.components, self.states)?;
        Ok((Box::new(encoders), files))
    }

    /// The network sees the states of all encoders side by side.
    fn check_text(&self, text: &dyn TextEncoder) -> Result<()> {
        let hidden: usize = text.embedding_widths().iter().sum();
        match self.unet.cross_attention_dim.iter().find(|&&width| width != hidden) {
            Some(width) => {
                let fix = format!("the text encoder's hidden_size is {hidden}; the two do not belong together");
                Err(Error::unusable(ErrorKind::Model, "cross_attention_dim of the unet", width, fix))
            }
            None => Ok(()),
        }
    }

    fn autoencoder(&self, files: &ModelFiles, component: &str) -> Result<Box<dyn AutoencoderArchitecture>> {
        Ok(Box::new(autoencoder_config(files, component)?))
    }

    fn xl(&self, files: &ModelFiles, text: &dyn TextEncoder) -> Result<Option<XlFacts>> {
        let Some(added) = self.unet.addition else { return Ok(None) };
        let pooled = text.pooled_width();
        let numbers = added.embedding_input.saturating_sub(pooled) / added.time_width.max(1);
        if pooled + numbers * added.time_width != added.embedding_input || !(5..=6).contains(&numbers) {
            let fix = format!(
                "that is not the text encoder's projection of {pooled} and five or six embeddings of {}; \
                 the two do not belong together",
                added.time_width
            );
            let what = "projection_class_embeddings_input_dim of the unet";
            return Err(Error::unusable(ErrorKind::Model, what, added.embedding_input, fix));
        }
        let zeros_for_no_prompt = files.index()?["force_zeros_for_empty_prompt"].as_bool().unwrap_or(true);
        Ok(Some(XlFacts { zeros_for_no_prompt, scored: numbers == 5 }))
    }

    /// Latent consistency models are distilled for a few steps, and have no file that says so.
    fn usual_settings(&self) -> UsualSettings {
        match facts(&self.unet).takes_guidance {
            true => UsualSettings { steps: 4, guidance_scale: 8.5 },
            false => UsualSettings::default(),
        }
    }

    fn layers_per_block(&self) -> usize {
        self.unet.layers_per_block.first().copied().unwrap_or(2)
    }

    fn control(&self, source: ControlSource<'_>, loader: &Loader<'_>) -> Result<(ControlModel, Vec<String>)> {
        control_model::load(source, loader, &self.unet)
    }
}

fn facts(unet: &UNet2DConditionConfig) -> NetworkFacts {
    NetworkFacts {
        in_channels: unet.in_channels,
        out_channels: unet.out_channels,
        sample_size: unet.sample_size,
        takes_guidance: unet.time_cond_proj_dim.is_some(),
        merges_tokens: unet.highest_attention().is_some(),
    }
}

impl DenoisingNetwork for UNet2DConditionModel {
    fn facts(&self) -> NetworkFacts {
        facts(self.config())
    }

    /// In the middle block all skip connections are there.
    fn least_memory(&self, rows: usize, height: usize, width: usize) -> u64 {
        let values = (rows as u64).saturating_mul(self.config().skip_values(height, width));
        values.saturating_mul(self.dtype().size_in_bytes() as u64)
    }

    fn controlled<'a>(&'a self, controls: Vec<Control<'a>>) -> Result<ControlledUNet<'a>> {
        Ok(ControlledUNet::new(self, controls))
    }
}

/// The configuration of the autoencoder in a folder, or alone in a file: a tiny one's follows from its tensors.
///
/// # Errors
/// If it is not there or cannot be used.
pub fn autoencoder_config(files: &ModelFiles, component: &str) -> Result<EitherAutoencoderConfig> {
    if let ModelFiles::Replaced { model, .. } = files {
        return autoencoder_config(model, component);
    }
    if let ModelFiles::Single { weights, .. } = files
        && let Some(config) = weights.tiny_autoencoder()?
    {
        return Ok(EitherAutoencoderConfig::Tiny(config));
    }
    let name = format!("{component}/config.json");
    EitherAutoencoderConfig::from_fields(&ConfigFields::from_json("vae", &files.read_text(&name)?, &files.path(&name))?)
}

impl AutoencoderArchitecture for EitherAutoencoderConfig {
    fn picture_channels(&self) -> usize {
        self.common().in_channels
    }

    fn latent_space(&self) -> LatentSpace {
        self.common().latent_space()
    }

    fn load(
        &self,
        loader: &Loader<'_>,
        component: &str,
        halves: Halves,
    ) -> Result<(Box<dyn Autoencoder>, Vec<String>)> {
        // An autoencoder that overflows when it computes in f16 says so.
        let overflows = self.common().force_upcast && loader.activations == DType::F16;
        // Its layers are few and small, and the last draw every pixel.
        let loader = if overflows { loader.in_f32() } else { loader.unrounded() };
        let unused: &[&str] = if halves == Halves::Decoder { &["encoder.", "quant_conv."] } else { &[] };
        loader.load(component, unused, |weights| self.clone().build(weights, halves, loader.activations))
    }
}
