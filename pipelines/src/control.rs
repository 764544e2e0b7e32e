//! Pictures that steer a run: what is asked for, and the models that do it.

use crate::adapters::UsedAdapter;
use crate::builder::Loader;
use crate::canvas::Canvas;
use crate::model::{component_alone, family};
use serde_json::Value;
use std::path::Path;
use tweedie::checkpoints::ModelFiles;
use tweedie::config::ConfigFields;
use tweedie::images::{Photo, Picture};
use tweedie::models::{
    ControlModel, ControlNet, ControlNetConfig, T2iAdapter, T2iAdapterConfig, UNet2DConditionConfig,
};
use tweedie::{Error, Result};

/// A picture for a control model, in the order in which the models were given to the builder.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlImage {
    /// Edges, depth, a pose, or whatever the model was trained on. It is resized to the picture that is made.
    pub image: Photo,
    /// What is added to the network is multiplied by this; 1 is usual.
    pub scale: f64,
    /// The share of the run at which the control starts, 0 to 1.
    pub start: f64,
    /// The share of the run at which it ends, 0 to 1.
    pub end: f64,
}

impl ControlImage {
    /// Control by a picture over the whole run.
    pub fn new(image: Photo) -> Self {
        Self { image, scale: 1.0, start: 0.0, end: 1.0 }
    }
}

/// A control that has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlSettings {
    /// The picture, at the size of the run's.
    pub picture: Picture,
    /// What is added to the network is multiplied by this.
    pub scale: f64,
    /// The shares of the run at which the control starts and ends.
    pub window: (f64, f64),
}

impl ControlSettings {
    /// Checks what is asked for against the number of models, and fits pictures to the run's `size` and canvas.
    pub(crate) fn settle(
        images: &[ControlImage],
        models: usize,
        canvas: Option<&Canvas>,
        (width, height): (usize, usize),
    ) -> Result<Vec<Self>> {
        if images.len() != models {
            let fix = format!("the pipeline has {models} control models; give each of them one");
            return Err(Error::invalid("the number of control pictures", images.len(), fix));
        }
        let settle = |control: &ControlImage| {
            let ControlImage { image, scale, start, end } = control;
            if !scale.is_finite() {
                return Err(Error::invalid("the scale of a control", scale, "take a number; 1 is usual, 0 is none"));
            }
            if !(*start >= 0.0 && start < end && *end <= 1.0) {
                let fix = "take two shares of the run from 0 to 1, the start before the end";
                return Err(Error::invalid("start and end of a control", format!("{start} and {end}"), fix));
            }
            let picture = match canvas {
                Some(canvas) => canvas.aligned(image)?,
                None => image.to_picture().resized(width, height)?,
            };
            Ok(Self { picture, scale: *scale, window: (*start, *end) })
        };
        images.iter().map(settle).collect()
    }

    /// What a picture's settings say of it.
    pub(crate) fn json(&self) -> [(String, Value); 3] {
        let fields = [("scale", self.scale), ("start", self.window.0), ("end", self.window.1)];
        fields.map(|(name, value)| (name.into(), value.into()))
    }
}

/// Loads a control model for a UNet: a folder in diffusers layout, its class by its `config.json`.
pub(crate) fn load(
    path: &Path,
    loader: &Loader<'_>,
    unet: &UNet2DConditionConfig,
) -> Result<(ControlModel, UsedAdapter)> {
    let (files, component) = find(path)?;
    let loader = Loader { files: &files, loras: None, ..*loader };
    let name = format!("{component}/config.json");
    let fields = ConfigFields::from_json("control model", &files.read_text(&name)?, &files.path(&name))?;
    let (weights, activations) = (loader.format.weights, loader.format.activations);
    let (model, names) = match fields.class_name() {
        None | Some("ControlNetModel") => {
            let config = ControlNetConfig::from_fields(&fields)?;
            check_fits(path, &config.encoder, unet)?;
            let (model, names) =
                loader.load(&component, weights, &[], |weights| ControlNet::new(weights, config, activations))?;
            (ControlModel::ControlNet(Box::new(model)), names)
        }
        Some("T2IAdapter") => {
            let config = T2iAdapterConfig::from_fields(&fields)?;
            if !config.fits(unet) {
                let fix = format!("the UNet has {:?}; take an adapter made for this model", unet.block_out_channels);
                return Err(fields.wrong("channels", fix));
            }
            let (model, names) =
                loader.load(&component, weights, &[], |weights| T2iAdapter::new(weights, config, activations))?;
            (ControlModel::Adapter(model), names)
        }
        Some(_) => return Err(fields.wrong("_class_name", "control models are ControlNetModel and T2IAdapter")),
    };
    let file = names.first().map_or_else(|| path.to_path_buf(), |name| files.path(name));
    Ok((model, UsedAdapter::named("controls", component, file)))
}

/// The folder that holds a control model's files, as a component of the folder around it.
fn find(path: &Path) -> Result<(ModelFiles, String)> {
    let what = || format!("the control model {}", path.display());
    let folder = ["", "controlnet", "adapter"].map(|name| path.join(name));
    let Some(folder) = folder.into_iter().find(|folder| folder.join("config.json").is_file()) else {
        let value = if path.is_file() {
            "a file"
        } else if path.is_dir() {
            "without a config.json"
        } else {
            "missing"
        };
        let fix = "give the folder of a ControlNet or T2I-Adapter in diffusers layout, with config.json and a safetensors file";
        return Err(Error::invalid(what(), value, fix));
    };
    component_alone(&folder, &what())
}

/// Whether a ControlNet's states are of the shape of the UNet's. It may have fewer transformers: small ones for SDXL do.
fn check_fits(path: &Path, control: &UNet2DConditionConfig, unet: &UNet2DConditionConfig) -> Result<()> {
    let differs = control.block_out_channels != unet.block_out_channels
        || control.cross_attention_dim != unet.cross_attention_dim
        || control.layers_per_block != unet.layers_per_block
        || control.in_channels > unet.in_channels;
    if differs {
        let what = format!("the control model {}", path.display());
        let fix = format!("the model's UNet is {} and has other sizes; take one made for it", family(unet));
        return Err(Error::invalid(what, format!("for {}", family(control)), fix));
    }
    Ok(())
}
