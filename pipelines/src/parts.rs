//! Files in the place of a model's components.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use tweedie::checkpoints::{ComponentKind, ModelFiles, SingleFile};
use tweedie::config::ConfigFields;
use tweedie::families::{Detected, Families};
use tweedie::{Error, ErrorKind, Result};

/// Files with one component each, which the model's own gives way to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    /// The denoising network.
    pub unet: Option<PathBuf>,
    /// Text encoders, in any order.
    pub text_encoders: Vec<PathBuf>,
}

impl Parts {
    /// The files of a model with these in their places.
    pub fn over(&self, model: ModelFiles, families: &Families) -> Result<ModelFiles> {
        if self.unet.is_none() && self.text_encoders.is_empty() {
            return Ok(model);
        }
        let detected = families.detect(&model)?;
        let (layout, mut files, mut taken) = (families.file_layout(&model), model, Vec::new());
        if let Some(path) = &self.unet {
            let (weights, component) = (SingleFile::open(path)?, detected.component(ComponentKind::Network)?.folder);
            files = ModelFiles::Replaced { model: Arc::new(files), component, weights, layout };
        }
        for path in &self.text_encoders {
            let weights = SingleFile::open(path)?;
            let component = text_encoder(&weights, path, &files, &detected)?;
            if taken.contains(&component) {
                let fix = format!("another file is the {component} already; give each component once");
                return Err(Error::invalid("the model's parts", path.display(), fix));
            }
            taken.push(component);
            files = ModelFiles::Replaced { model: Arc::new(files), component, weights, layout };
        }
        Ok(files)
    }
}

/// The text encoder of a model whose states are as wide as those of a file.
fn text_encoder(weights: &SingleFile, path: &Path, files: &ModelFiles, detected: &Detected) -> Result<&'static str> {
    const EMBEDDING: &str = "token_embedding.weight";
    let unusable = |fix: String| Error::unusable(ErrorKind::Model, "the text encoder", path.display(), fix);
    let tensors = weights.file().tensors();
    let width = tensors.iter().find(|tensor| tensor.name.ends_with(EMBEDDING)).and_then(|tensor| tensor.shape.get(1));
    let Some(&width) = width else {
        return Err(unusable(format!("it has no {EMBEDDING}; give a file with a CLIP text encoder")));
    };
    let mut widths = Vec::new();
    for component in detected.family.components().iter().filter(|part| part.kind == ComponentKind::TextEncoder) {
        let config: ConfigFields = files.config(component.folder, "config.json")?;
        let of_model = config.optional_usize("hidden_size")?.unwrap_or(512);
        if of_model == width {
            return Ok(component.folder);
        }
        widths.push(of_model.to_string());
    }
    Err(unusable(format!("its states are {width} wide; the model's text encoders have {}", widths.join(" and "))))
}
