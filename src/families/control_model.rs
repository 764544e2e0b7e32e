//! ControlNets and T2I-Adapters, loaded for a UNet.

use super::unet_architecture::family_of;
use super::{ControlSource, Loader};
use crate::config::ConfigFields;
use crate::models::{ControlConfig, ControlModel, ControlNetConfig, T2iAdapterConfig, UNet2DConditionConfig};
use crate::{Error, ErrorKind, Result};

/// Loads a control model for a UNet: a folder in diffusers layout, its class by its `config.json`, or a file. No adapter is
/// merged into it.
pub(super) fn load(
    source: ControlSource<'_>,
    loader: &Loader<'_>,
    unet: &UNet2DConditionConfig,
) -> Result<(ControlModel, Vec<String>)> {
    let loader = Loader { loras: None, adapters: None, kept: None, ..*loader };
    let activations = loader.activations;
    match source {
        ControlSource::File(file) => {
            let config = file.control_config(unet)?;
            check_fits(source, &config, unet)?;
            let checkpoint = file.control_checkpoint(&config, loader.weights, loader.device)?;
            loader
                .load_from(checkpoint, "control model", &[], |weights| ControlModel::new(weights, config, activations))
        }
        ControlSource::Folder { files, component } => {
            let name = format!("{component}/config.json");
            let fields = ConfigFields::from_json("control model", &files.read_text(&name)?, &files.path(&name))?;
            let config = match fields.class_name() {
                None | Some("ControlNetModel") => {
                    ControlConfig::ControlNet(Box::new(ControlNetConfig::from_fields(&fields)?))
                }
                Some("T2IAdapter") => ControlConfig::Adapter(T2iAdapterConfig::from_fields(&fields)?),
                Some(_) => return Err(fields.wrong("_class_name", "control models are ControlNetModel and T2IAdapter")),
            };
            check_fits(source, &config, unet)?;
            let loader = Loader { files, ..loader };
            loader.load(component, &[], |weights| ControlModel::new(weights, config, activations))
        }
    }
}

/// Whether a control model's states are of the shape of the UNet's. A ControlNet may have fewer transformers: small ones
/// for SDXL do.
fn check_fits(source: ControlSource<'_>, config: &ControlConfig, unet: &UNet2DConditionConfig) -> Result<()> {
    let what = || format!("the control model {}", source.place());
    match config {
        ControlConfig::ControlNet(config) => {
            let control = &config.encoder;
            let differs = control.block_out_channels != unet.block_out_channels
                || control.cross_attention_dim != unet.cross_attention_dim
                || control.layers_per_block != unet.layers_per_block
                || control.addition.is_some_and(|addition| unet.addition != Some(addition))
                || control.in_channels > unet.in_channels;
            if differs {
                let fix = format!("the model's UNet is {} and has other sizes; take one made for it", family_of(unet));
                return Err(Error::unusable(ErrorKind::Model, what(), format!("for {}", family_of(control)), fix));
            }
        }
        ControlConfig::Adapter(config) if !config.fits(unet) => {
            let fix = format!("the UNet has {:?}; take an adapter made for this model", unet.block_out_channels);
            return Err(Error::unusable(ErrorKind::Model, what(), format!("of channels {:?}", config.channels), fix));
        }
        ControlConfig::Adapter(_) => {}
    }
    Ok(())
}
