//! Pictures that steer a run: what is asked for, and the models that do it.

use crate::adapters::UsedAdapter;
use crate::builder::Loader;
use crate::canvas::Canvas;
use crate::device::NumberFormat;
use crate::model::{Model, component_alone, family};
use serde_json::Value;
use std::path::Path;
use tweedie::checkpoints::{ModelFiles, SingleFile};
use tweedie::config::ConfigFields;
use tweedie::images::{Photo, Picture};
use tweedie::layers::Weights;
use tweedie::models::{
    ControlConfig, ControlModel, ControlNetConfig, Strength, T2iAdapterConfig, UNet2DConditionConfig,
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
    /// Whether the picture is to lead without help from the prompt: see [`Strength::guess`].
    pub guess: bool,
}

impl ControlImage {
    /// Control by a picture over the whole run.
    pub fn new(image: Photo) -> Self {
        Self { image, scale: 1.0, start: 0.0, end: 1.0, guess: false }
    }
}

/// A control that has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlSettings {
    /// The picture, at the size of the run's.
    pub picture: Picture,
    /// How much it counts.
    pub strength: Strength,
    /// The shares of the run at which the control starts and ends.
    pub window: (f64, f64),
}

impl ControlSettings {
    /// Checks what is asked for against the models, of which some can guess, and fits pictures to the run's size and canvas.
    pub(crate) fn settle(
        images: &[ControlImage],
        models: &[bool],
        canvas: Option<&Canvas>,
        (width, height): (usize, usize),
    ) -> Result<Vec<Self>> {
        if images.len() != models.len() {
            let fix = format!("the pipeline has {} control models; give each of them one", models.len());
            return Err(Error::invalid("the number of control pictures", images.len(), fix));
        }
        let settle = |(control, &guesses): (&ControlImage, &bool)| {
            let &ControlImage { ref image, scale, start, end, guess } = control;
            if !scale.is_finite() {
                return Err(Error::invalid("the scale of a control", scale, "take a number; 1 is usual, 0 is none"));
            }
            if !(start >= 0.0 && start < end && end <= 1.0) {
                let fix = "take two shares of the run from 0 to 1, the start before the end";
                return Err(Error::invalid("start and end of a control", format!("{start} and {end}"), fix));
            }
            let picture = match canvas {
                Some(canvas) => canvas.aligned(image)?,
                None => image.to_picture().resized(width, height)?,
            };
            let guess = guess && guesses;
            Ok(Self { picture, strength: Strength { scale, guess }, window: (start, end) })
        };
        images.iter().zip(models).map(settle).collect()
    }

    /// What a picture's settings say of it.
    pub(crate) fn json(&self) -> Vec<(String, Value)> {
        let fields = [("scale", self.strength.scale), ("start", self.window.0), ("end", self.window.1)];
        let guess = self.strength.guess.then(|| ("guess".into(), true.into()));
        fields.into_iter().map(|(name, value)| (name.into(), value.into())).chain(guess).collect()
    }
}

/// Loads a control model for a UNet: a folder in diffusers layout, its class by its `config.json`, or a file.
pub(crate) fn load(
    model: &Model,
    loader: &Loader<'_>,
    unet: &UNet2DConditionConfig,
) -> Result<(ControlModel, UsedAdapter)> {
    let NumberFormat { weights, activations, .. } = loader.format;
    if let Model::File { path, .. } = model {
        let file = SingleFile::open(path)?;
        let config = file.control_config(unet)?;
        check_fits(path, &config, unet)?;
        let checkpoint = file.control_checkpoint(&config, weights, loader.device)?;
        let loader = Loader { loras: None, ..*loader };
        let build = |weights: &Weights<'_>| ControlModel::new(weights, config, activations);
        let (built, _) = loader.load_from(checkpoint, "control model", &[], build)?;
        return Ok((built, UsedAdapter::named("controls", model.name(), path.clone())));
    }
    let (Model::Folder(path) | Model::Cached { folder: path, .. }) = model else {
        let fix = "give the folder or the file of a ControlNet or T2I-Adapter";
        return Err(Error::invalid("the control model", "the embedded model", fix));
    };
    let (files, component) = find(path)?;
    let loader = Loader { files: &files, loras: None, ..*loader };
    let name = format!("{component}/config.json");
    let fields = ConfigFields::from_json("control model", &files.read_text(&name)?, &files.path(&name))?;
    let config = match fields.class_name() {
        None | Some("ControlNetModel") => ControlConfig::ControlNet(Box::new(ControlNetConfig::from_fields(&fields)?)),
        Some("T2IAdapter") => ControlConfig::Adapter(T2iAdapterConfig::from_fields(&fields)?),
        Some(_) => return Err(fields.wrong("_class_name", "control models are ControlNetModel and T2IAdapter")),
    };
    check_fits(path, &config, unet)?;
    let (built, names) =
        loader.load(&component, weights, &[], |weights| ControlModel::new(weights, config, activations))?;
    let file = names.first().map_or_else(|| path.clone(), |name| files.path(name));
    let name = if matches!(model, Model::Cached { .. }) { model.name() } else { component };
    Ok((built, UsedAdapter::named("controls", name, file)))
}

/// The folder that holds a control model's files, as a component of the folder around it.
fn find(path: &Path) -> Result<(ModelFiles, String)> {
    let what = || format!("the control model {}", path.display());
    let folder = ["", "controlnet", "adapter"].map(|name| path.join(name));
    let Some(folder) = folder.into_iter().find(|folder| folder.join("config.json").is_file()) else {
        let value = if path.is_dir() { "without a config.json" } else { "missing" };
        let fix = "give a ControlNet or T2I-Adapter as one file, or its folder in diffusers layout, with config.json and \
                   a safetensors file";
        return Err(Error::invalid(what(), value, fix));
    };
    component_alone(&folder, &what())
}

/// Whether a control model's states are of the shape of the UNet's. A ControlNet may have fewer transformers: small ones
/// for SDXL do.
fn check_fits(path: &Path, config: &ControlConfig, unet: &UNet2DConditionConfig) -> Result<()> {
    let what = || format!("the control model {}", path.display());
    match config {
        ControlConfig::ControlNet(config) => {
            let control = &config.encoder;
            let differs = control.block_out_channels != unet.block_out_channels
                || control.cross_attention_dim != unet.cross_attention_dim
                || control.layers_per_block != unet.layers_per_block
                || control.addition.is_some_and(|addition| unet.addition != Some(addition))
                || control.in_channels > unet.in_channels;
            if differs {
                let fix = format!("the model's UNet is {} and has other sizes; take one made for it", family(unet));
                return Err(Error::invalid(what(), format!("for {}", family(control)), fix));
            }
        }
        ControlConfig::Adapter(config) if !config.fits(unet) => {
            let fix = format!("the UNet has {:?}; take an adapter made for this model", unet.block_out_channels);
            return Err(Error::invalid(what(), format!("of channels {:?}", config.channels), fix));
        }
        ControlConfig::Adapter(_) => {}
    }
    Ok(())
}
