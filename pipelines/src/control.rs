//! Models that steer a run by a picture.

use crate::adapters::UsedAdapter;
use crate::model::{Model, component_alone};
use std::path::Path;
use tweedie::checkpoints::{ModelFiles, SingleFile};
use tweedie::families::{Architecture, ControlSource, Loader};
use tweedie::models::ControlModel;
use tweedie::{Error, ErrorKind, Result};

/// Loads a control model for a model of this architecture: a folder in diffusers layout or a file.
pub(crate) fn load(
    model: &Model,
    loader: &Loader<'_>,
    architecture: &dyn Architecture,
) -> Result<(ControlModel, UsedAdapter)> {
    if let Model::File { path, .. } = model {
        let (built, _) = architecture.control(ControlSource::File(&SingleFile::open(path)?), loader)?;
        return Ok((built, UsedAdapter::named("controls", model.name(), path.clone())));
    }
    let (Model::Folder(path) | Model::Cached { folder: path, .. }) = model else {
        let fix = "give the folder or the file of a ControlNet or T2I-Adapter";
        return Err(Error::invalid("the control model", "the embedded model", fix));
    };
    let (files, component) = find(path)?;
    let (built, names) =
        architecture.control(ControlSource::Folder { files: &files, component: &component }, loader)?;
    let file = names.first().map_or_else(|| path.clone(), |name| files.path(name));
    let name = if matches!(model, Model::Cached { .. }) { model.name() } else { component };
    Ok((built, UsedAdapter::named("controls", name, file)))
}

/// The folder that holds a control model's files, as a component of the folder around it.
fn find(path: &Path) -> Result<(ModelFiles, String)> {
    let what = || format!("the control model {}", path.display());
    let folder = ["", "controlnet", "adapter"].map(|name| path.join(name));
    let Some(folder) = folder.into_iter().find(|folder| folder.join("config.json").is_file()) else {
        let (kind, value) = match path.is_dir() {
            true => (ErrorKind::Model, "without a config.json"),
            false => (ErrorKind::Missing, "missing"),
        };
        let fix = "give a ControlNet or T2I-Adapter as one file, or its folder in diffusers layout, with config.json and \
                   a safetensors file";
        return Err(Error::unusable(kind, what(), value, fix));
    };
    component_alone(&folder, &what())
}
