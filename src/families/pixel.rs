//! Models in pixel space (Ho et al. 2020), unconditional or of a class: one UNet, no text and no autoencoder.

use super::pixel_architecture::UNet2DArchitecture;
use super::{Architecture, Component, Family, PixelArchitecture, Variant};
use crate::checkpoints::ModelFiles;
use crate::models::UNet2DConfig;
use crate::{Error, ErrorKind, Result};

/// See the module.
#[derive(Debug)]
pub struct PixelSpace;

/// Pixel space.
pub static PIXEL: PixelSpace = PixelSpace;

const COMPONENTS: [Component; 1] = [Component::network("unet")];

impl Family for PixelSpace {
    fn id(&self) -> &'static str {
        "pixel"
    }

    fn name(&self) -> &'static str {
        "pixel space"
    }

    fn components(&self) -> &'static [Component] {
        &COMPONENTS
    }

    fn recognise(&self, files: &ModelFiles) -> Result<Option<Variant>> {
        if !files.exists("unet/config.json") {
            return Ok(None);
        }
        let fields = files.config("unet", "config.json")?;
        if fields.class_name() != Some("UNet2DModel") {
            return Ok(None);
        }
        let classes = UNet2DConfig::from_fields(&fields)?.num_classes();
        let description = (classes > 0).then(|| format!("pixel space, {classes} classes"));
        Ok(Some(Variant { description, ..Variant::default() }))
    }

    fn architecture(&self, files: &ModelFiles) -> Result<Box<dyn Architecture>> {
        let fix = "it draws in pixel space, and no text; draw its samples (tweedie sample), as `checkpoint`";
        Err(Error::unusable(ErrorKind::Model, "the model", files.path("").display(), fix))
    }

    fn pixel_architecture(&self, files: &ModelFiles) -> Result<Option<Box<dyn PixelArchitecture>>> {
        Ok(Some(Box::new(UNet2DArchitecture::read(files)?)))
    }
}
