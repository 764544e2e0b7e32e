//! The files of a tokenizer.

use super::tokenizer::{clip_vocabulary, unpacked_merges};
use crate::checkpoints::ModelFiles;
use crate::files::{hexadecimal, text_of, write_synced};
use crate::{Error, ErrorKind, Result};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// The words that a model was trained on, one a line, if they are few: no program but this one looks for it.
pub(super) const WORDS: &str = "words.txt";

/// What a tokenizer is read from.
pub(super) trait TokenizerSource {
    /// Whether there is a file of this name.
    fn has(&self, name: &str) -> bool;

    /// Its contents.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>>;

    /// Where the files are, for messages.
    fn place(&self) -> PathBuf;

    /// The contents of a text file.
    fn text(&self, name: &str) -> Result<String> {
        text_of(self.bytes(name)?.into_owned())
            .map_err(|reason| Error::malformed(ErrorKind::Model, "text file", &self.place().join(name), reason))
    }
}

/// A folder of a model.
pub(super) struct InModel<'a> {
    pub files: &'a ModelFiles,
    pub folder: &'a str,
}

impl TokenizerSource for InModel<'_> {
    fn has(&self, name: &str) -> bool {
        self.files.exists(&format!("{}/{name}", self.folder))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        self.files.read(&format!("{}/{name}", self.folder))
    }

    fn place(&self) -> PathBuf {
        self.files.path(self.folder)
    }
}

/// The files of a tokenizer in memory, in the forms that transformers reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerFiles(Vec<(&'static str, Vec<u8>)>);

impl TokenizerFiles {
    /// Files that a tokenizer may have.
    pub(crate) const NAMES: [&str; 6] =
        ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", WORDS];

    pub(super) fn new<const N: usize>(files: [(&'static str, String); N]) -> Self {
        Self(files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect())
    }

    /// Those in a folder of a model. A list of merges alone is given with the vocabulary that follows from it.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn read(files: &ModelFiles, folder: &str) -> Result<Self> {
        let source = InModel { files, folder };
        let mut read = Vec::new();
        for name in Self::NAMES.into_iter().filter(|name| source.has(name)) {
            read.push((name, source.bytes(name)?.into_owned()));
        }
        let (packed, has_merges) = ("merges.txt.gz", read.iter().any(|(name, _)| *name == "merges.txt"));
        if source.has(packed) && !has_merges {
            let place = source.place();
            let merges = unpacked_merges(&source.bytes(packed)?).map_err(Error::io("unpack", &place.join(packed)))?;
            let vocabulary = clip_vocabulary(&merges).into_iter().enumerate();
            let vocabulary: Map<_, _> = vocabulary.map(|(id, token)| (token, id.into())).collect();
            read.push(("vocab.json", Value::Object(vocabulary).to_string().into_bytes()));
            read.push(("merges.txt", merges.into_bytes()));
        }
        Ok(Self(read))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes them into a folder, which is made.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        self.0.iter().try_for_each(|(name, bytes)| write_synced(&folder.join(name), bytes))
    }

    /// The SHA-256 of names and contents, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for (name, bytes) in self.files() {
            hasher.update(name);
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        hexadecimal(&hasher.finalize())
    }

    /// Names and contents.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (*name, bytes.as_slice()))
    }
}

impl TokenizerSource for TokenizerFiles {
    fn has(&self, name: &str) -> bool {
        self.files().any(|(known, _)| known == name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let found = self.files().find(|(known, _)| *known == name);
        found.map(|(_, bytes)| Cow::Borrowed(bytes)).ok_or_else(|| {
            Error::invalid(format!("the tokenizer's file {name}"), "missing", "give a tokenizer that has it")
        })
    }

    fn place(&self) -> PathBuf {
        "the tokenizer".into()
    }
}
