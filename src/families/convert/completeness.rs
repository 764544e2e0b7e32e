//! Whether a model's files hold all that it is made of and nothing else, which their headers tell.

use crate::checkpoints::{ComponentKind, ModelFiles};
use crate::families::{Families, Loader};
use crate::models::Halves;
use crate::{DType, Device, Result};

/// Builds every component that is there, as loading it would, from the shapes and types of its tensors alone.
///
/// # Errors
/// Those of loading the model, but for values that are not finite.
pub(super) fn check(files: &ModelFiles) -> Result<()> {
    let detected = Families::built_in().detect(files)?;
    let loader = Loader { headers_alone: true, ..Loader::new(files, &Device::Cpu) };
    let parts = detected.family.components();
    let there = |folder: &str| files.exists(&format!("{folder}/config.json"));
    if let Some(architecture) = detected.family.pixel_architecture(files)? {
        for part in parts.iter().filter(|part| there(part.folder)) {
            loader.load(part.folder, &[], |weights| architecture.network(weights, DType::F32))?;
        }
        return Ok(());
    }
    let architecture = detected.family.architecture(files)?;
    let mut encoders = parts.iter().filter(|part| part.kind == ComponentKind::TextEncoder);
    if encoders.all(|part| there(part.folder)) {
        architecture.text_encoder(&loader)?;
    }
    for part in parts.iter().filter(|part| there(part.folder)) {
        match part.kind {
            ComponentKind::TextEncoder => {}
            ComponentKind::Network => {
                loader.load(part.folder, &[], |weights| architecture.network(weights, DType::F32))?;
            }
            ComponentKind::Autoencoder => {
                architecture.autoencoder(files, part.folder)?.load(&loader, part.folder, Halves::Both)?;
            }
        }
    }
    Ok(())
}
