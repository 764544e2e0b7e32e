//! The folders of the cache.

use super::HubName;
use super::name::is_file_name;
use super::sum::Sum;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tweedie::{Error, Result};

/// The longest file that says which commit a branch is at.
const LONGEST_REFERENCE: u64 = 256;

/// One commit of a model in the cache.
pub(super) struct Snapshot {
    /// `models--owner--name`.
    model: PathBuf,
    commit: String,
}

impl Snapshot {
    /// `commit` must be a file name.
    pub fn new(model: PathBuf, commit: String) -> Self {
        Self { model, commit }
    }

    pub fn commit(&self) -> &str {
        &self.commit
    }

    /// Its folder, which is the model's in diffusers layout.
    pub fn folder(&self) -> PathBuf {
        self.model.join("snapshots").join(&self.commit)
    }

    /// Whether a file is there; a link that leads nowhere is not.
    pub fn has(&self, name: &str) -> bool {
        self.folder().join(name).is_file()
    }

    /// Whether a file that is there holds what it is called by; one that is no link to a blob says nothing of that.
    pub fn is_intact(&self, name: &str) -> Result<bool> {
        let path = self.folder().join(name);
        let Ok(blob) = std::fs::read_link(&path) else { return Ok(true) };
        let etag = blob.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        Sum::of_etag(etag).map_or(Ok(true), |sum| sum.is_of(&path))
    }

    /// The files that are there, and those of its sub-folders.
    pub fn names(&self) -> BTreeSet<String> {
        names_below(&self.folder(), DEEPEST)
    }

    /// Where a file of such a sum is.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.model.join("blobs").join(etag)
    }

    /// What two programs that fetch the same file lock; Python's client takes the same.
    pub fn lock(&self, etag: &str) -> PathBuf {
        let folder = self.model.file_name().unwrap_or_default();
        self.model.with_file_name(".locks").join(folder).join(format!("{etag}.lock"))
    }

    /// Makes a blob a file of this commit.
    pub fn link(&self, etag: &str, name: &str) -> Result<()> {
        let path = self.folder().join(name);
        let fail = || Error::io("create", &path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(fail())?;
        }
        if std::fs::read_link(&path).is_ok_and(|blob| blob.ends_with(etag)) {
            return Ok(());
        }
        // What is there is another file, or leads nowhere.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(fail()(error)),
            _ => link_file(&self.blob(etag), etag, name, &path).map_err(fail()),
        }
    }
}

/// How many folders deep a file can be.
const DEEPEST: usize = 6;

/// The paths of the files below a folder.
fn names_below(folder: &Path, depth: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (name, path) in entries(folder) {
        if path.is_file() {
            names.insert(name);
        } else if depth > 1 && path.is_dir() {
            names.extend(names_below(&path, depth - 1).into_iter().map(|inner| format!("{name}/{inner}")));
        }
    }
    names
}

/// A relative link, so that the cache can be moved.
#[cfg(unix)]
fn link_file(_: &Path, etag: &str, name: &str, path: &Path) -> std::io::Result<()> {
    let up = "../".repeat(2 + name.matches('/').count());
    std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), path)
}

/// Links to files need rights that not every user has elsewhere.
#[cfg(not(unix))]
fn link_file(blob: &Path, _: &str, _: &str, path: &Path) -> std::io::Result<()> {
    std::fs::hard_link(blob, path).or_else(|_| std::fs::copy(blob, path).map(|_| ()))
}

/// The names and paths of what is in a folder; nothing if it is not there.
fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}

/// The commit that a branch or tag was last seen at, or the commit itself.
pub(super) fn commit_of(model: &Path, revision: &str) -> Option<String> {
    let reference = model.join("refs").join(revision);
    let commit = if reference.metadata().is_ok_and(|data| data.is_file() && data.len() <= LONGEST_REFERENCE) {
        std::fs::read_to_string(reference).ok()?.trim().to_owned()
    } else {
        revision.to_owned()
    };
    (is_file_name(&commit) && model.join("snapshots").join(&commit).is_dir()).then_some(commit)
}

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    /// Its name.
    pub name: HubName,
    /// Bytes on disk of all its revisions.
    pub bytes: u64,
    /// The commits of which there are files.
    pub commits: Vec<String>,
    /// Branches and tags, with the commits that they were last seen at.
    pub references: Vec<(String, String)>,
}

impl CachedModel {
    /// The name that means one of its commits.
    pub fn at(&self, commit: &str) -> HubName {
        self.name.clone().at(commit)
    }
}

pub(super) fn list(cache: &Path) -> Result<Vec<CachedModel>> {
    if cache.exists() {
        std::fs::read_dir(cache).map_err(Error::io("read", cache))?;
    }
    let mut models = Vec::new();
    for (folder, path) in entries(cache) {
        let Some(name) = HubName::of_folder(&folder).filter(|_| is_real_folder(&path)) else { continue };
        let mut commits: Vec<String> = entries(&path.join("snapshots")).into_iter().map(|(name, _)| name).collect();
        commits.retain(|commit| is_file_name(commit));
        commits.sort();
        let mut references: Vec<_> = entries(&path.join("refs"))
            .into_iter()
            .filter_map(|(reference, _)| Some((reference.clone(), commit_of(&path, &reference)?)))
            .collect();
        references.sort();
        models.push(CachedModel { name, bytes: bytes_of(&path), commits, references });
    }
    models.sort_by_key(|model| model.name.id());
    Ok(models)
}

pub(super) fn remove(cache: &Path, name: &HubName) -> Result<u64> {
    let folder = name.folder();
    let path = cache.join(&folder);
    // A link would lead out of the cache.
    if !is_real_folder(&path) {
        let fix = format!("{} does not have it; `tweedie model list` shows what it has", cache.display());
        return Err(Error::missing("the model", name.id(), fix));
    }
    let bytes = bytes_of(&path);
    std::fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?;
    let locks = cache.join(".locks").join(&folder);
    if is_real_folder(&locks) {
        std::fs::remove_dir_all(&locks).map_err(Error::io("remove", &locks))?;
    }
    Ok(bytes)
}

fn is_real_folder(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|data| data.is_dir())
}

/// Bytes of all files below a folder; what links lead to counts where it is.
fn bytes_of(folder: &Path) -> u64 {
    let of = |path: PathBuf| match path.symlink_metadata() {
        Ok(data) if data.is_dir() => bytes_of(&path),
        Ok(data) if data.is_file() => data.len(),
        _ => 0,
    };
    entries(folder).into_iter().map(|(_, path)| of(path)).sum()
}
