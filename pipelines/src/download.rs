//! Data sets over HTTP and HTTPS.
//!
//! A file is fetched beside its place, compared with its SHA-256 and then renamed, so what is there under its name
//! is whole. Nothing that is there is overwritten: a file that is right is left alone, one that is not is an error.
//!
//! # Examples
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use tweedie_pipelines::download::{MNIST, MNIST_MIRROR, fetch};
//!
//! fetch(&MNIST, MNIST_MIRROR, Path::new("mnist"), &mut |event| {
//!     println!("{event:?}");
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<_, tweedie_pipelines::Error>(())
//! ```

use crate::http::agent_config;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use tweedie::training::data::{contents_sha256, find_idx};
use tweedie::{Error, ErrorKind, Result};

/// Where MNIST is fetched from if nothing else is said.
pub const MNIST_MIRROR: &str = "https://ossci-datasets.s3.amazonaws.com/mnist/";

/// MNIST's files. The sums are those of the contents, so that a mirror may have compressed them in its own way.
pub const MNIST: [RemoteFile<'static>; 4] = [
    RemoteFile {
        name: "train-images-idx3-ubyte.gz",
        sha256: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    },
    RemoteFile {
        name: "train-labels-idx1-ubyte.gz",
        sha256: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    },
    RemoteFile {
        name: "t10k-images-idx3-ubyte.gz",
        sha256: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    },
    RemoteFile {
        name: "t10k-labels-idx1-ubyte.gz",
        sha256: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
];

/// Bytes of the largest file that is fetched.
const LARGEST: u64 = 256 << 20;

/// A file to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteFile<'a> {
    /// Its name, at the mirror and on disk.
    pub name: &'a str,
    /// The SHA-256 of its contents, decompressed if it is compressed, in hexadecimal.
    pub sha256: &'a str,
}

/// What a download tells its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadEvent<'a> {
    /// A file is there already.
    Present(&'a str),
    /// So many bytes of a file have come.
    Progress {
        /// The file.
        name: &'a str,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, if the server says.
        total: Option<u64>,
    },
    /// A file is there now.
    Saved(&'a str),
}

/// Fetches what a folder does not have yet from `mirror`, a URL to which names are appended; makes the folder if need
/// be. The observer may break, which stops the download.
///
/// # Errors
/// If a file cannot be fetched, is not the right one, or one of that name is there and is another.
pub fn fetch(
    files: &[RemoteFile<'_>],
    mirror: &str,
    folder: &Path,
    observer: &mut dyn FnMut(DownloadEvent<'_>) -> ControlFlow<()>,
) -> Result<()> {
    if !mirror.starts_with("http://") && !mirror.starts_with("https://") {
        return Err(Error::invalid("the mirror", mirror, "give a URL that starts with https:// or http://"));
    }
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let agent = agent_config().build().new_agent();
    for file in files {
        let event = match find_idx(folder, file.name) {
            Some(path) => {
                check(&path, file, "move it away, or choose another folder")?;
                DownloadEvent::Present(file.name)
            }
            None => {
                let url = format!("{}/{}", mirror.trim_end_matches('/'), file.name);
                fetch_one(&agent, &url, file, folder, observer)?;
                DownloadEvent::Saved(file.name)
            }
        };
        if observer(event).is_break() {
            return Err(Error::Cancelled);
        }
    }
    Ok(())
}

fn fetch_one(
    agent: &ureq::Agent,
    url: &str,
    file: &RemoteFile<'_>,
    folder: &Path,
    observer: &mut dyn FnMut(DownloadEvent<'_>) -> ControlFlow<()>,
) -> Result<()> {
    let failed =
        |reason: String| Error::unusable(ErrorKind::File, format!("the download of {url}"), "not possible", reason);
    let response = agent.get(url).call().map_err(|error| failed(reason(&error)))?;
    let total = response.body().content_length();
    let mut reader = response.into_body().into_with_config().limit(LARGEST).reader();
    let cut = |done: u64, why: String| {
        let of = total.map_or(String::new(), |total| format!(" of {total}"));
        failed(format!("the connection ended after {done}{of} bytes ({why}); run it again"))
    };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    let staged = builder.prefix(".tweedie-").suffix(".part").tempfile_in(folder);
    let mut staged = staged.map_err(Error::io("create a file in", folder))?;
    let path = folder.join(file.name);
    let (mut done, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(cut(done, e.to_string())),
        };
        staged.write_all(&buffer[..count]).map_err(Error::io("write", &path))?;
        done += count as u64;
        if observer(DownloadEvent::Progress { name: file.name, done, total }).is_break() {
            return Err(Error::Cancelled);
        }
    }
    if total.is_some_and(|total| total != done) {
        return Err(cut(done, "it was closed".into()));
    }
    check(staged.path(), file, &format!("{url} has another file; choose another `mirror`")).map_err(
        |error| match error {
            Error::Malformed { reason, .. } => {
                failed(format!("what came is not whole ({reason}), or choose another `mirror`"))
            }
            other => other,
        },
    )?;
    staged.as_file().sync_all().map_err(Error::io("write", &path))?;
    staged.persist_noclobber(&path).map_err(|e| Error::io("create", &path)(e.error))?;
    Ok(())
}

/// Whether a file is the right one.
fn check(path: &Path, file: &RemoteFile<'_>, fix: &str) -> Result<()> {
    let found = contents_sha256(path)?;
    if found == file.sha256 {
        return Ok(());
    }
    let what = format!("the SHA-256 of what {} holds", path.with_file_name(file.name).display());
    Err(Error::unusable(ErrorKind::File, what, found, format!("it should be {}; {fix}", file.sha256)))
}

/// Why there is no answer, and what to do.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::StatusCode(404) => "the server has no such file (status 404); choose another `mirror`".into(),
        ureq::Error::StatusCode(code) => format!("the server answered with status {code}; try again later"),
        other => format!("{other}; check the network, or choose another `mirror`"),
    }
}
