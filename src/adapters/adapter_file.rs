//! Opening the small files that adapters come in.

use crate::checkpoints::{ModelFiles, TensorFile};
use crate::{Error, Result};
use std::path::Path;

/// Opens an adapter's file, known by its first bytes and not by its name.
pub(super) fn open(what: &str, path: &Path) -> Result<TensorFile> {
    let (Some(name), true) = (path.file_name().and_then(|name| name.to_str()), path.is_file()) else {
        let fix =
            if path.is_dir() { "it is a folder; give the file in it" } else { "there is no such file; give its path" };
        return Err(Error::missing(format!("the {what}"), path.display(), fix));
    };
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    TensorFile::open(&ModelFiles::Folder(folder), name)
}
