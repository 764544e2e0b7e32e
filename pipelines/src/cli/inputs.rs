//! Files that pictures are made from.

use std::path::Path;
use tweedie::files::file_sha256;
use tweedie_pipelines::Input;

/// What a picture says of such a file.
pub fn input(role: &'static str, path: &Path) -> anyhow::Result<Input> {
    let sha256 = file_sha256(path)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Input { role, name, sha256 })
}
