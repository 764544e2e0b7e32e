//! Files and folders that are there whole or not at all, whenever the process is killed and whoever else writes beside it.
//!
//! What is written is staged beside its place, under a name that nothing else has, and takes the place in one step.

use crate::{Error, ErrorKind, Result};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use tempfile::Builder;

/// What happens to something that has the name of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays, whenever it came.
    Stays,
    /// It gives way, once what takes its place is whole.
    GivesWay,
}

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
    #[cfg(unix)]
    File::open(folder).and_then(|file| file.sync_all()).map_err(Error::io("sync", folder))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// The folder that something is in; that of a plain name is the one that the program runs in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Replaces a file in one step.
///
/// # Errors
/// If it cannot be written; the file that was there stays.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, Existing::GivesWay, |staged| write_synced(staged, bytes)).map(|_| ())
}

/// Makes a file in one step: `write` is given the path of an empty one, and waits until it is on the disk. Gives whether it was
/// placed, which it is not if [`Existing::Stays`] and something has the name by then.
///
/// # Errors
/// If it cannot be written, or whatever `write` reports; what was there stays.
pub fn write_file(path: &Path, existing: Existing, write: impl FnOnce(&Path) -> Result<()>) -> Result<bool> {
    let folder = folder_of(path);
    let staged = builder(&staged_prefix(path)?, 0o666).tempfile_in(folder).map_err(Error::io("create", path))?;
    // Dropped before it is placed, it is removed: a full disk is not made fuller.
    let staged = staged.into_temp_path();
    write(&staged)?;
    let placed = match existing {
        Existing::GivesWay => staged.persist(path),
        Existing::Stays => staged.persist_noclobber(path),
    };
    match placed {
        Err(error) if existing == Existing::Stays && error.error.kind() == std::io::ErrorKind::AlreadyExists => {
            return Ok(false);
        }
        placed => placed.map_err(|error| Error::io("write", path)(error.error))?,
    }
    sync_folder(folder)?;
    Ok(true)
}

/// Makes a folder in one step, whatever was there: `fill` is given an empty one.
///
/// # Errors
/// If it cannot be written, or whatever `fill` reports; the folder that was there stays.
pub fn replace_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    write_folder(path, Existing::GivesWay, fill).map(|_| ())
}

/// Makes a folder in one step: `fill` is given an empty one. Gives whether it was placed, which it is not if [`Existing::Stays`] and
/// something has the name by then.
///
/// # Errors
/// If it cannot be written, or whatever `fill` reports; what was there stays.
pub fn write_folder(path: &Path, existing: Existing, fill: impl FnOnce(&Path) -> Result<()>) -> Result<bool> {
    let folder = folder_of(path);
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let staged = builder(&staged_prefix(path)?, 0o777).tempdir_in(folder).map_err(Error::io("create", path))?;
    fill(staged.path())?;
    sync_folder(staged.path())?;
    let placed = match existing {
        Existing::GivesWay => exchange(staged.path(), path).map(|()| true),
        Existing::Stays => move_to_free_name(staged.path(), path),
    };
    // What is left under the staged name, a folder that was replaced or nothing, goes with it.
    if !placed.map_err(Error::io("create", path))? {
        return Ok(false);
    }
    sync_folder(folder)?;
    Ok(true)
}

/// Puts `new` in the place of `old`, which then has the name of `new` if it was there: never is there none.
fn exchange(new: &Path, old: &Path) -> std::io::Result<()> {
    if old.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return std::fs::rename(new, old);
    }
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    // Not every system can: then there is a moment in which the old one is beside its name, whole.
    let aside = builder("", 0o700).tempdir_in(folder_of(old))?;
    let kept = aside.path().join("old");
    std::fs::rename(old, &kept)?;
    std::fs::rename(new, old).inspect_err(|_| {
        // Back to what was there; the first error tells more.
        let _ = std::fs::rename(&kept, old);
    })
}

/// Gives whether the name was free.
fn move_to_free_name(new: &Path, path: &Path) -> std::io::Result<bool> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, new, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(true),
            Err(Errno::EXIST) => return Ok(false),
            // A file system that does not know it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if path.symlink_metadata().is_ok() {
        return Ok(false);
    }
    // A folder takes the place of an empty one at most.
    std::fs::rename(new, path).map(|()| true)
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
const STAGED: &str = ".part";
/// Drawn letters and digits in a staged name.
const DRAWN: usize = 10;

/// What was to become something else when its process was killed: `step-500` of `.step-500.a1B2c3D4e5.part`.
pub fn unfinished(name: &str) -> Option<&str> {
    let (name, drawn) = name.strip_prefix('.')?.strip_suffix(STAGED)?.rsplit_once('.')?;
    (drawn.len() == DRAWN && drawn.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(name)
}

fn staged_prefix(path: &Path) -> Result<String> {
    match path.file_name() {
        Some(name) => Ok(format!(".{}.", name.to_string_lossy())),
        None => {
            Err(Error::unusable(ErrorKind::File, "a name to write to", path.display(), "give one that has a last part"))
        }
    }
}

/// Of staged files or folders; the process's mask narrows the rights.
fn builder(prefix: &str, rights: u32) -> Builder<'_, 'static> {
    let mut builder = Builder::new();
    builder.prefix(prefix).suffix(STAGED).rand_bytes(DRAWN);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(rights));
    #[cfg(not(unix))]
    let _ = rights;
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> Result<tempfile::TempDir> {
        tempfile::tempdir().map_err(Error::io("create", Path::new("a temporary folder")))
    }

    fn entries(folder: &Path) -> usize {
        std::fs::read_dir(folder).map_or(0, Iterator::count)
    }

    #[test]
    fn a_folder_that_fails_leaves_the_old_one() -> Result<()> {
        let root = folder()?;
        let folder = root.path().join("model");
        let fill = |text: &'static str| move |at: &Path| write_synced(&at.join("a"), text.as_bytes());
        let read = || std::fs::read_to_string(folder.join("a")).unwrap_or_default();
        replace_folder(&folder, fill("one"))?;
        let failed = replace_folder(&folder, |at| {
            write_synced(&at.join("a"), b"two")?;
            Err(Error::Cancelled)
        });
        assert!(failed.is_err() && read() == "one");
        assert_eq!(entries(root.path()), 1, "nothing staged is left");
        replace_folder(&folder, fill("three"))?;
        assert_eq!((read().as_str(), entries(root.path())), ("three", 1));
        Ok(())
    }

    /// Whatever came in between stays as it is, and so does what merely looks staged.
    #[test]
    fn what_has_the_name_stays_if_asked() -> Result<()> {
        let root = folder()?;
        let (file, folder) = (root.path().join("file"), root.path().join("folder"));
        for path in [&file, &folder] {
            write_synced(&path.with_extension("part"), b"somebody's")?;
        }
        let placed = write_file(&file, Existing::Stays, |staged| {
            write_synced(&file, b"first")?;
            write_synced(staged, b"second")
        });
        assert!(!placed? && std::fs::read(&file).is_ok_and(|bytes| bytes == b"first"));
        let placed = write_folder(&folder, Existing::Stays, |_| {
            std::fs::create_dir(&folder).map_err(Error::io("create", &folder))
        });
        assert!(!placed? && entries(&folder) == 0);
        assert!(write_file(&root.path().join("new"), Existing::Stays, |staged| write_synced(staged, b"x"))?);
        assert_eq!(entries(root.path()), 5, "nothing staged is left");
        Ok(())
    }

    #[test]
    fn staged_names_are_known_by_their_form() {
        assert_eq!(unfinished(".step-5.abcDEF1234.part"), Some("step-5"));
        for name in ["step-5.part", ".step-5.part", "thesis.abcDEF1234.part", ".a.abc.part", ".a.abc!EF1234.part"] {
            assert_eq!(unfinished(name), None, "{name}");
        }
    }

    /// As others make files and folders, which a process's mask narrows.
    #[cfg(unix)]
    #[test]
    fn others_may_read_what_is_written() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let root = folder()?;
        let at = |name: &str| root.path().join(name);
        write_synced(&at("plain"), b"")?;
        std::fs::create_dir(at("plain folder")).map_err(Error::io("create", root.path()))?;
        replace_file(&at("file"), b"")?;
        replace_folder(&at("folder"), |_| Ok(()))?;
        let mode = |name: &str| at(name).metadata().map_or(0, |metadata| metadata.permissions().mode());
        assert_eq!((mode("file"), mode("folder")), (mode("plain"), mode("plain folder")));
        Ok(())
    }
}
