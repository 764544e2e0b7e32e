//! Where files in the layout of Stable Diffusion's code have the components.

use super::inferred::TinyLayers;
use super::{Families, file_prediction, original_names};
use crate::checkpoints::{ComponentKind, ComponentNames, FileLayout, ModelFiles, TensorFile, TensorNames};
use crate::config::ConfigFields;
use crate::layers::Activation;
use crate::models::{AutoencoderConfig, ClipTextConfig, UNet2DConditionConfig};
use crate::{Error, ErrorKind, Result};

/// Where the UNet is; its moving average, if the file has one, lies under `model_ema.` and is left alone.
const UNET: &str = "model.diffusion_model.";

/// What stands before a UNet's names where it is alone.
const UNET_ALONE: [&str; 2] = ["diffusion_model.", ""];

/// How a file calls the tensors of its UNet.
enum UNetForm {
    /// By the original names, after this.
    Original(&'static str),
    /// As diffusers does.
    Diffusers,
}

impl UNetForm {
    /// By the tensors of the last layer, which ControlNets lack.
    fn of(file: &TensorFile) -> Option<Self> {
        let tensors = file.tensors();
        let is = |name: &str| tensors.iter().any(|tensor| tensor.name == name);
        let prefix = [UNET].into_iter().chain(UNET_ALONE).find(|prefix| is(&format!("{prefix}out.2.weight")));
        let diffusers = is("conv_out.weight") && is("time_embedding.linear_1.weight");
        prefix.map(Self::Original).or(diffusers.then_some(Self::Diffusers))
    }
}

/// Where the autoencoder is.
const AUTOENCODER: &str = "first_stage_model.";

/// Where an autoencoder alone can be: with diffusers' names or the original ones.
const AUTOENCODER_ALONE: [&str; 2] = ["", "vae."];

/// In the UNet, what the strength of guidance is multiplied by: as the other names are, or as diffusers has it.
const GUIDANCE: [&str; 2] = ["time_embed.cond_proj.weight", "time_embedding.cond_proj.weight"];

/// The layout of a family's files.
#[derive(Debug)]
pub(super) struct OriginalLayout {
    /// Where each text encoder can be, one of several for each.
    pub text_encoders: &'static [TextPlace],
}

/// Where a text encoder is.
#[derive(Debug)]
pub(super) struct TextPlace {
    component: &'static str,
    prefix: &'static str,
    form: TextForm,
}

/// Which code base's names a text encoder has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextForm {
    /// transformers', as diffusers has them.
    Clip,
    /// OpenCLIP's, with a projection or without.
    OpenClip { projects: bool },
}

impl TextPlace {
    /// A text encoder with transformers' names.
    pub const fn clip(component: &'static str, prefix: &'static str) -> Self {
        Self { component, prefix, form: TextForm::Clip }
    }

    /// A text encoder with OpenCLIP's names.
    pub const fn open_clip(component: &'static str, prefix: &'static str) -> Self {
        Self { component, prefix, form: TextForm::OpenClip { projects: false } }
    }

    /// The same, whose pooled text is projected.
    pub const fn projecting(component: &'static str, prefix: &'static str) -> Self {
        Self { component, prefix, form: TextForm::OpenClip { projects: true } }
    }

    fn names(&self, config: &ClipTextConfig) -> TensorNames {
        match self.form {
            TextForm::Clip => TensorNames::plain(self.prefix),
            TextForm::OpenClip { projects } => original_names::open_clip(config, projects, self.prefix),
        }
    }
}

impl OriginalLayout {
    fn places(&self, component: &str) -> impl Iterator<Item = &'static TextPlace> {
        let component = component.to_owned();
        self.text_encoders.iter().filter(move |place| place.component == component)
    }

    /// A UNet alone has the original names after some prefix, or diffusers' names.
    fn network(file: &TensorFile, configs: &ModelFiles) -> Result<ComponentNames> {
        let config = UNet2DConditionConfig::from_fields(&configs.config("unet", "config.json")?)?;
        Ok(match UNetForm::of(file) {
            Some(UNetForm::Diffusers) => TensorNames::plain("").into(),
            Some(UNetForm::Original(prefix)) => original_names::unet(&config, prefix).into(),
            // The prefix that is missing is named.
            None => original_names::unet(&config, UNET).into(),
        })
    }

    fn autoencoder(file: &TensorFile, configs: &ModelFiles) -> Result<ComponentNames> {
        if let Some(tiny) = TinyLayers::of(&file.tensors()) {
            return Ok(tiny.names().into());
        }
        let config = AutoencoderConfig::from_fields(&configs.config("vae", "config.json")?)?;
        // What its training may have left in the file.
        let unused = ["loss.", "model_ema."].map(String::from).to_vec();
        if has(file, AUTOENCODER) {
            return Ok(ComponentNames { names: original_names::autoencoder(&config, AUTOENCODER), unused });
        }
        match AUTOENCODER_ALONE.iter().find(|prefix| has(file, &format!("{prefix}decoder."))) {
            Some(prefix) => Ok(ComponentNames { names: original_names::autoencoder(&config, prefix), unused }),
            // Without tensors of either kind the prefix that is missing is named.
            None => Ok(TensorNames::plain(AUTOENCODER).into()),
        }
    }

    fn text_encoder(&self, file: &TensorFile, component: &str, configs: &ModelFiles) -> Result<ComponentNames> {
        let place = self.places(component).find(|place| has(file, place.prefix));
        let Some(place) = place.or_else(|| self.places(component).next()) else {
            // Nothing in a file is under a component's folder: that is what the message will say is missing.
            return Ok(TensorNames::plain(&format!("{component}.")).into());
        };
        let TextForm::OpenClip { projects } = place.form else { return Ok(TensorNames::plain(place.prefix).into()) };
        Ok(open_clip(&text_config(configs, place.component)?, projects, place.prefix))
    }
}

impl FileLayout for OriginalLayout {
    fn component(&self, file: &TensorFile, component: &str, configs: &ModelFiles) -> Result<ComponentNames> {
        match ComponentKind::of_folder(component) {
            ComponentKind::Network => Self::network(file, configs),
            ComponentKind::Autoencoder => Self::autoencoder(file, configs),
            ComponentKind::TextEncoder => self.text_encoder(file, component, configs),
        }
    }

    fn alone(&self, file: &TensorFile, component: &str, configs: &ModelFiles) -> Result<ComponentNames> {
        match self.places(component).next() {
            Some(place) => text_encoder_alone(file, place.component, configs),
            None => self.component(file, component, configs),
        }
    }

    /// All of it, but for a UNet alone.
    fn holds(&self, file: &TensorFile, component: &str) -> bool {
        let mut others = self.text_encoders.iter().map(|place| place.prefix).chain([AUTOENCODER]);
        ComponentKind::of_folder(component) == ComponentKind::Network
            || UNetForm::of(file).is_none()
            || others.any(|prefix| has(file, prefix))
    }

    /// A latent consistency model is known by what takes the strength of guidance, which its configurations, being those of the
    /// model that it was distilled from, do not have.
    fn config(&self, file: &TensorFile, component: &str, fields: ConfigFields) -> ConfigFields {
        let projection = file.tensors().into_iter().find_map(|tensor| {
            let is_it = GUIDANCE.iter().any(|name| tensor.name.strip_prefix(UNET) == Some(*name));
            tensor.shape.get(1).copied().filter(|_| is_it)
        });
        match (projection, component) {
            (Some(width), "unet") if fields.lacks("time_cond_proj_dim") => fields.with("time_cond_proj_dim", width),
            (Some(_), "scheduler") if fields.class_name() == Some("PNDMScheduler") => {
                fields.with("_class_name", "LCMScheduler")
            }
            _ => fields,
        }
    }

    /// Text encoders with the erf GELU are OpenCLIP's, where the family has both.
    fn names_to_write(&self, component: &'static str, configs: &ModelFiles) -> Result<TensorNames> {
        let fields = configs.config(component, "config.json")?;
        match ComponentKind::of_folder(component) {
            ComponentKind::Network => Ok(original_names::unet(&UNet2DConditionConfig::from_fields(&fields)?, UNET)),
            ComponentKind::Autoencoder => {
                Ok(original_names::autoencoder(&AutoencoderConfig::from_fields(&fields)?, AUTOENCODER))
            }
            ComponentKind::TextEncoder => {
                let places: Vec<_> = self.places(component).collect();
                if let [TextPlace { prefix, form: TextForm::Clip, .. }] = places[..] {
                    return Ok(TensorNames::plain(prefix));
                }
                let config = ClipTextConfig::from_fields(&fields)?;
                let open = config.hidden_act == Activation::Gelu;
                let fits = |place: &&TextPlace| (place.form != TextForm::Clip) == open;
                let place = places.iter().copied().find(fits).or(places.first().copied());
                place.map(|place| place.names(&config)).ok_or_else(|| {
                    let fix = "files of this model's family have none; convert to a folder";
                    Error::unusable(ErrorKind::Model, format!("the {component}"), "without a place", fix)
                })
            }
        }
    }

    fn marks(&self, configs: &ModelFiles) -> Result<Vec<(&'static str, Option<f64>)>> {
        if !configs.exists("scheduler/scheduler_config.json") {
            return Ok(Vec::new());
        }
        Ok(file_prediction::marks(configs.config("scheduler", "scheduler_config.json")?.fields()))
    }

    fn describe(&self, file: &TensorFile) -> Option<String> {
        Families::built_in().detect_file(file).ok().map(|detected| detected.name())
    }
}

/// A text encoder alone has transformers' names or OpenCLIP's, both after anything.
fn text_encoder_alone(file: &TensorFile, component: &'static str, configs: &ModelFiles) -> Result<ComponentNames> {
    let tensors = file.tensors();
    let after = |ending: &str| tensors.iter().find_map(|tensor| tensor.name.strip_suffix(ending).map(str::to_owned));
    if let Some(prefix) = after("text_model.embeddings.token_embedding.weight") {
        // Of a whole CLIP: its tower for pictures.
        let unused = ["vision_model.", "visual_projection", "logit_scale", "logit_bias"].map(String::from).to_vec();
        return Ok(ComponentNames { names: TensorNames::plain(&prefix), unused });
    }
    let Some(prefix) = after("token_embedding.weight").filter(|prefix| has(file, &format!("{prefix}transformer.")))
    else {
        let fix = "it has no token_embedding.weight; give a file with a CLIP text encoder, with transformers' or OpenCLIP's names";
        return Err(Error::unusable(ErrorKind::Model, "the text encoder", file.path().display(), fix));
    };
    let projects = has(file, &format!("{prefix}text_projection"));
    Ok(open_clip(&text_config(configs, component)?, projects, &prefix))
}

/// OpenCLIP's names.
fn open_clip(config: &ClipTextConfig, projects: bool, prefix: &str) -> ComponentNames {
    // Stable Diffusion 2.x sees the last layer but one, so its model ends there; the file goes on.
    let last = format!("transformer.resblocks.{}.", config.num_hidden_layers);
    let mut unused = [last.as_str(), "logit_scale", "attn_mask", "visual."].map(String::from).to_vec();
    if !projects {
        unused.push("text_projection".into());
    }
    ComponentNames { names: original_names::open_clip(config, projects, prefix), unused }
}

fn text_config(configs: &ModelFiles, component: &'static str) -> Result<ClipTextConfig> {
    let fields: ConfigFields = configs.config(component, "config.json")?;
    ClipTextConfig::from_fields(&fields)
}

/// Whether there is a tensor whose name starts so.
fn has(file: &TensorFile, prefix: &str) -> bool {
    file.tensors().iter().any(|tensor| tensor.name.starts_with(prefix))
}
