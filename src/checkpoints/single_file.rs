//! A whole model in one file, in the layout of the code base that trained it, or an autoencoder alone.

use super::inferred::TinyLayers;
use super::names::Names;
use super::{Checkpoint, Family, ModelFiles, TensorFile};
use crate::config::ConfigFields;
use crate::models::{AutoencoderConfig, AutoencoderTinyConfig, ClipTextConfig, UNet2DConditionConfig};
use crate::{Error, Result};
use candle_core::{DType, Device};
use std::path::Path;
use std::sync::Arc;

/// Where the UNet is; its moving average, if the file has one, lies under `model_ema.` and is left alone.
const UNET: &str = "model.diffusion_model.";

/// Where the autoencoder is.
const VAE: &str = "first_stage_model.";

/// Where text encoders are, and whether they have the names of OpenCLIP.
const TEXT_ENCODER: [(&str, bool); 3] = [
    ("cond_stage_model.transformer.", false),
    ("cond_stage_model.model.", true),
    ("conditioner.embedders.0.transformer.", false),
];
const TEXT_ENCODER_2: [(&str, bool); 2] =
    [("conditioner.embedders.1.model.", true), ("conditioner.embedders.0.model.", true)];

/// A file that holds several components. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct SingleFile {
    file: Arc<TensorFile>,
    name: String,
}

impl SingleFile {
    /// Opens a file.
    ///
    /// # Errors
    /// If there is no such file, it is damaged, or of a form that is not read.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name else {
            return Err(Error::invalid("the name of the model's file", path.display(), "rename it to plain text"));
        };
        let folder = ModelFiles::Folder(path.parent().map_or_else(|| ".".into(), Path::to_path_buf));
        Ok(Self { file: Arc::new(TensorFile::open(&folder, name)?), name: name.into() })
    }

    /// The file's tensors.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// A checkpoint of what the file holds under other names.
    pub(super) fn renamed(
        &self,
        component: &str,
        names: Names,
        unused: &[&str],
        dtype: DType,
        device: &Device,
    ) -> Checkpoint {
        let unused = unused.iter().map(|&name| name.into()).collect();
        Checkpoint::of_part(&self.file, &self.name, component, names, unused, dtype, device)
    }

    /// Its name in the folder that it lies in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's family.
    ///
    /// # Errors
    /// If it is none that is known.
    pub fn family(&self) -> Result<Family> {
        Family::of(&self.file)
    }

    /// The configuration of the tiny autoencoder (TAESD) that the file holds alone, if it does: its tensors tell it.
    ///
    /// # Errors
    /// If their shapes are those of no network.
    pub fn tiny_autoencoder(&self) -> Result<Option<AutoencoderTinyConfig>> {
        let Some(layers) = TinyLayers::of(&self.file.tensors()) else { return Ok(None) };
        let config = layers.config();
        config.check().map_err(|(field, expected)| {
            let what = format!("a tiny autoencoder whose {field} cannot be used ({expected})");
            Error::invalid(format!("the autoencoder {}", self.path().display()), what, "get the file again")
        })?;
        Ok(Some(config))
    }

    /// Whether there is a tensor whose name starts so.
    fn has(&self, prefix: &str) -> bool {
        self.file.tensors().iter().any(|tensor| tensor.name.starts_with(prefix))
    }

    /// The weights of a component, under the names that the models of `configs` ask for.
    ///
    /// # Errors
    /// If the file has no such component, or its configuration cannot be used.
    pub(super) fn checkpoint(
        &self,
        component: &str,
        configs: &ModelFiles,
        dtype: DType,
        device: &Device,
    ) -> Result<Checkpoint> {
        let (names, unused) = match component {
            "unet" => (Names::of_unet(&UNet2DConditionConfig::from_fields(&fields(configs, "unet")?)?, UNET), vec![]),
            "vae" => self.autoencoder_names(configs)?,
            "text_encoder_2" => self.text_encoder_names("text_encoder_2", &TEXT_ENCODER_2, configs)?,
            _ => self.text_encoder_names("text_encoder", &TEXT_ENCODER, configs)?,
        };
        if !self.has(&names.prefix) {
            let fix = format!(
                "it has no tensors under {}; it is a part of a model, or of another family than the configurations say",
                names.prefix
            );
            return Err(Error::invalid(format!("the {component} in {}", self.file.path().display()), "missing", fix));
        }
        Ok(Checkpoint::of_part(&self.file, &self.name, component, names, unused, dtype, device))
    }

    /// An autoencoder alone has no prefix, and diffusers' names or the original ones.
    fn autoencoder_names(&self, configs: &ModelFiles) -> Result<(Names, Vec<String>)> {
        if let Some(tiny) = TinyLayers::of(&self.file.tensors()) {
            return Ok((tiny.names(), vec![]));
        }
        let config = AutoencoderConfig::from_fields(&fields(configs, "vae")?)?;
        // What its training may have left in the file.
        let unused = ["loss.", "model_ema."].map(String::from).to_vec();
        if self.has(VAE) {
            return Ok((Names::of_autoencoder(&config, VAE), unused));
        }
        if !self.has("decoder.") {
            // Without tensors of either kind the prefix that is missing is named.
            return Ok((Names::plain(VAE), vec![]));
        }
        Ok((Names::of_autoencoder(&config, ""), unused))
    }

    fn text_encoder_names(
        &self,
        component: &'static str,
        places: &[(&str, bool)],
        configs: &ModelFiles,
    ) -> Result<(Names, Vec<String>)> {
        let &(prefix, open_clip) = places.iter().find(|(prefix, _)| self.has(prefix)).unwrap_or(&places[0]);
        if !open_clip {
            return Ok((Names::plain(prefix), vec![]));
        }
        let config = ClipTextConfig::from_fields(&fields(configs, component)?)?;
        let projects = component == "text_encoder_2";
        // Stable Diffusion 2.x sees the last layer but one, so its model ends there; the file goes on.
        let last = format!("transformer.resblocks.{}.", config.num_hidden_layers);
        let mut unused = [last.as_str(), "logit_scale", "attn_mask"].map(String::from).to_vec();
        if !projects {
            unused.push("text_projection".into());
        }
        Ok((Names::of_open_clip(&config, projects, prefix), unused))
    }
}

fn fields(configs: &ModelFiles, component: &'static str) -> Result<ConfigFields> {
    let name = format!("{component}/config.json");
    ConfigFields::from_json(component, &configs.read_text(&name)?, &configs.path(&name))
}
