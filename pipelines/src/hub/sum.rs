//! The sums by which the hub calls the contents of files.

use sha1::{Digest, Sha1};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use tweedie::files::{file_sha256, hexadecimal};
use tweedie::{Error, Result};

/// What the contents of a file have to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sum<'a> {
    /// SHA-256, of large files.
    Sha256(&'a str),
    /// The name of a blob in Git, of small ones: SHA-1 of `blob`, the length and the contents; of some mirrors SHA-1 of the
    /// contents alone.
    Git(&'a str),
}

impl<'a> Sum<'a> {
    /// By the name that the hub gives the contents; other servers give other names.
    pub fn of_etag(etag: &'a str) -> Option<Self> {
        let is_sum = etag.chars().all(|c| c.is_ascii_hexdigit());
        match etag.len() {
            64 if is_sum => Some(Self::Sha256(etag)),
            40 if is_sum => Some(Self::Git(etag)),
            _ => None,
        }
    }

    /// Whether a file has it.
    pub fn is_of(self, path: &Path) -> Result<bool> {
        Ok(match self {
            Self::Sha256(sum) => file_sha256(path)?.eq_ignore_ascii_case(sum),
            Self::Git(sum) => sha1(path)?.iter().any(|found| found.eq_ignore_ascii_case(sum)),
        })
    }
}

/// Of a file as Git has it, and of its contents.
fn sha1(path: &Path) -> Result<[String; 2]> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    let mut hashers = [Sha1::new_with_prefix(format!("blob {length}\0")), Sha1::new()];
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => break,
            count => hashers.iter_mut().for_each(|hasher| hasher.update(&buffer[..count])),
        }
    }
    Ok(hashers.map(|hasher| hexadecimal(&hasher.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that Git itself gives an empty file and one with a line; the second's plain SHA-1.
    #[test]
    fn small_files_have_the_names_that_git_gives_them() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        for (text, name) in [
            ("", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
            ("hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
            ("hello\n", "f572d396fae9206628714fb2ce00f72e94f2258f"),
        ] {
            std::fs::write(&path, text)?;
            assert_eq!(Sum::of_etag(name), Some(Sum::Git(name)));
            assert!(Sum::Git(name).is_of(&path)?, "{text:?}");
            std::fs::write(&path, "hello")?;
            assert!(!Sum::Git(name).is_of(&path)?);
        }
        assert_eq!(Sum::of_etag("abc-7"), None);
        Ok(())
    }
}
