//! Files and folders that are there whole or not at all, whenever the process is killed.

use crate::{Error, Result};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Writes a file and waits until it is on the disk.
///
/// # Errors
/// If it cannot be written; a part of it may be there then.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", path))
}

/// Waits until a folder's entries are on the disk, so that a file that was made or renamed in it stays.
///
/// # Errors
/// If the system cannot.
pub fn sync_folder(folder: &Path) -> Result<()> {
    // Only Unix lets a folder be opened as a file; elsewhere renaming is all there is.
    // The folder of a plain name is the one that the program runs in.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    #[cfg(unix)]
    File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io("sync", folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Replaces a file in one step.
///
/// # Errors
/// If it cannot be written; the file that was there stays.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let staged = staged_name(path);
    let write = || {
        write_synced(&staged, bytes)?;
        std::fs::rename(&staged, path).map_err(Error::io("write", path))?;
        path.parent().map_or(Ok(()), sync_folder)
    };
    write().inspect_err(|_| {
        // A full disk is not made fuller. Whether this works or not, the first error tells more.
        let _ = std::fs::remove_file(&staged);
    })
}

/// Makes a folder in one step: `fill` writes into a staged one, which then takes its name. A folder that is there
/// gives way.
///
/// # Errors
/// If it cannot be written, or whatever `fill` reports; the folder that was there stays.
pub fn replace_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let staged = staged_name(path);
    remove_folder(&staged)?;
    let write = || {
        std::fs::create_dir_all(&staged).map_err(Error::io("create", &staged))?;
        fill(&staged)?;
        sync_folder(&staged)?;
        remove_folder(path)?;
        std::fs::rename(&staged, path).map_err(Error::io("create", path))?;
        path.parent().map_or(Ok(()), sync_folder)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_dir_all(&staged);
    })
}

/// Removes a folder with all that is in it, if it is there.
///
/// # Errors
/// If something in it cannot be removed.
pub fn remove_folder(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The ending of what is not finished.
pub const STAGED: &str = ".part";

/// The name beside `path` under which it is written before it takes its place.
pub fn staged_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(STAGED);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_fails_leaves_the_old_one() -> Result<()> {
        let root = tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))?;
        let folder = root.path().join("model");
        let fill = |text: &'static str| move |at: &Path| write_synced(&at.join("a"), text.as_bytes());
        let read = || std::fs::read_to_string(folder.join("a")).unwrap_or_default();
        replace_folder(&folder, fill("one"))?;
        let failed = replace_folder(&folder, |at| {
            write_synced(&at.join("a"), b"two")?;
            Err(Error::Cancelled)
        });
        assert!(failed.is_err() && read() == "one");
        assert_eq!(std::fs::read_dir(root.path()).map_or(0, Iterator::count), 1, "nothing staged is left");
        replace_folder(&folder, fill("three"))?;
        assert_eq!(read(), "three");
        Ok(())
    }
}
