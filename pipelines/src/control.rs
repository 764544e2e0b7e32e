//! Models that steer a run by a picture.

use crate::adapters::UsedAdapter;
use crate::builder::Loader;
use crate::device::NumberFormat;
use crate::model::{Model, component_alone, family};
use std::path::Path;
use tweedie::checkpoints::{ModelFiles, SingleFile};
use tweedie::config::ConfigFields;
use tweedie::layers::Weights;
use tweedie::models::{ControlConfig, ControlModel, ControlNetConfig, T2iAdapterConfig, UNet2DConditionConfig};
use tweedie::{Error, Result};

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
