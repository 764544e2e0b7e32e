//! Where a converted model may go: nothing gives way to it but another one, and never what it is made from.

use crate::checkpoints::{ModelFiles, SingleFile};
use crate::families::{Component, Families};
use crate::files::{Existing, folder_of};
use crate::text::TokenizerFiles;
use crate::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// What a model's folder has beside its components and tokenizers.
pub(super) const SETTINGS: [&str; 3] = ["model_index.json", "scheduler/scheduler_config.json", "defaults.json"];

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A folder in diffusers layout.
    Folder,
    /// One file.
    File,
}

/// Whether the model of these files may be written to a place.
///
/// # Errors
/// If the place is, holds or lies in something that the model is read from; if something is there, and it is to stay or is not
/// a model of this form alone.
pub(super) fn check(files: &ModelFiles, output: &Path, form: Form, existing: Existing) -> Result<()> {
    let refused = |fix: String| Err(Error::unusable(ErrorKind::File, "the output", output.display(), fix));
    apart_from(files, output)?;
    let Ok(there) = output.symlink_metadata() else { return Ok(()) };
    if there.is_symlink() {
        return refused("it is a link, which is not written through; give another name, or remove it".into());
    }
    if existing == Existing::Stays {
        return refused("it is there; choose another `output`, or `force` to replace it".into());
    }
    let foreign = match form {
        Form::Folder if there.is_dir() => foreign_entry(output)?,
        Form::File if there.is_file() => (!is_model(files, output)).then(|| "it is no model".into()),
        Form::Folder => Some("it is there, and no folder".into()),
        Form::File => Some("it is there, and no file".into()),
    };
    match foreign {
        Some(foreign) => refused(format!("{foreign}, and only models are replaced; take another name")),
        None => Ok(()),
    }
}

/// Whether an output is, holds, or lies in what a model is read from.
fn apart_from(files: &ModelFiles, output: &Path) -> Result<()> {
    let canonical = |path: &Path| path.canonicalize().map_err(Error::io("find", path));
    let place = match (output.canonicalize(), output.file_name()) {
        (Ok(place), _) => place,
        // The folder is made with it.
        (Err(_), Some(name)) => match folder_of(output).canonicalize() {
            Ok(folder) => folder.join(name),
            Err(_) => return Ok(()),
        },
        (Err(_), None) => return Err(Error::invalid("the output", output.display(), "give it a name")),
    };
    for source in places(files) {
        let input = canonical(&source)?;
        let relation = match () {
            () if input == place => "is",
            () if input.starts_with(&place) => "holds",
            () if place.starts_with(&input) => "lies in",
            () => continue,
        };
        let fix = format!("it {relation} what the model is read from, {}; take another name", source.display());
        return Err(Error::unusable(ErrorKind::File, "the output", output.display(), fix));
    }
    Ok(())
}

/// What a model is read from.
fn places(files: &ModelFiles) -> Vec<PathBuf> {
    match files {
        ModelFiles::Folder(folder) => vec![folder.clone()],
        ModelFiles::Embedded { .. } => Vec::new(),
        ModelFiles::Single { configs, weights, .. } => [vec![weights.path().to_path_buf()], places(configs)].concat(),
        ModelFiles::Replaced { model, weights, .. } => [vec![weights.path().to_path_buf()], places(model)].concat(),
    }
}

/// Whether a file is a whole model: of a known family, or with the components that these files are of.
fn is_model(files: &ModelFiles, path: &Path) -> bool {
    let (families, Ok(file)) = (Families::built_in(), SingleFile::open(path)) else { return false };
    if families.detect_file(file.file()).is_ok() {
        return true;
    }
    let (layout, tensors) = (families.file_layout(files), file.file().tensors());
    let mut parts =
        families.components().into_iter().filter(|part| files.exists(&format!("{}/config.json", part.folder)));
    parts.all(|part| {
        let found = layout.component(file.file(), part.folder, files);
        found.is_ok_and(|found| tensors.iter().any(|tensor| tensor.name.starts_with(&found.names.prefix)))
    })
}

/// Something in a folder that is no part of a model as it is written here, in words; and so if there is no model in it.
fn foreign_entry(folder: &Path) -> Result<Option<String>> {
    let parts = Families::built_in().components();
    let mut components = 0;
    for entry in entries(folder)? {
        let name = name_of(&entry);
        let part = parts.iter().find(|part| part.folder == name);
        let of_folder = known_files(&parts, &name);
        let foreign = match entry.is_symlink() || entry.is_file() != of_folder.is_none() {
            true => Some(name.clone()),
            false if of_folder.is_none() => (!SETTINGS.contains(&name.as_str())).then(|| name.clone()),
            false => {
                let known = |path: &PathBuf| {
                    path.is_file()
                        && !path.is_symlink()
                        && of_folder.iter().flatten().any(|file| *file == name_of(path))
                };
                let foreign = entries(&entry)?.into_iter().find(|path| !known(path));
                foreign.map(|path| format!("{name}/{}", name_of(&path)))
            }
        };
        if let Some(foreign) = foreign {
            return Ok(Some(format!("it holds {foreign}, which is no part of a model as it is written here")));
        }
        components += usize::from(part.is_some());
    }
    Ok((components == 0).then(|| "it is a folder without a model".into()))
}

/// The files that a folder of a model has, if it has this folder.
fn known_files(parts: &[Component], folder: &str) -> Option<Vec<String>> {
    if let Some(part) = parts.iter().find(|part| part.folder == folder) {
        return Some(vec!["config.json".into(), format!("{}.safetensors", part.kind.file_stem())]);
    }
    if parts.iter().any(|part| part.tokenizer == Some(folder)) {
        return Some(TokenizerFiles::NAMES.map(str::to_owned).into());
    }
    let settings = SETTINGS.iter().filter_map(|name| name.strip_prefix(folder)?.strip_prefix('/'));
    let settings: Vec<String> = settings.map(str::to_owned).collect();
    (!settings.is_empty()).then_some(settings)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    Ok(entries)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
