//! Files that pictures are made from.

use anyhow::Context;
use std::path::Path;
use tweedie::checkpoints::sha256;
use tweedie_pipelines::Input;

/// What a picture says of such a file.
pub fn input(role: &'static str, path: &Path) -> anyhow::Result<Input> {
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let sha256 = sha256(file).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Input { role, name, sha256 })
}
