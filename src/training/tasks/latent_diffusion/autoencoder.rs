//! The autoencoder of a latent diffusion model in training, which stays as it is.

use crate::checkpoints::ModelFiles;
use crate::files::{hexadecimal, write_synced};
use crate::models::Autoencoder;
use crate::{Error, Result};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::Path;

/// An autoencoder with its files, which the finished model has copies of: they are held in memory, so that it does not matter
/// what becomes of them in the meantime.
pub struct FrozenAutoencoder {
    network: Box<dyn Autoencoder>,
    /// Names and contents.
    files: Vec<(String, Vec<u8>)>,
}

impl fmt::Debug for FrozenAutoencoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.files.iter().map(|(name, _)| name).collect();
        f.debug_struct("FrozenAutoencoder").field("network", &self.network).field("files", &names).finish()
    }
}

impl FrozenAutoencoder {
    /// An autoencoder in a `folder` of a model, and the names of the files of its weights there.
    ///
    /// # Errors
    /// If a file cannot be read, or the model is one file, of which no part can be copied as it is.
    pub fn new(network: Box<dyn Autoencoder>, files: &ModelFiles, folder: &str, weights: &[String]) -> Result<Self> {
        if let ModelFiles::Single { weights, .. } = files {
            let fix = "it is copied into the finished model, which is a folder; convert the file to one first";
            return Err(Error::invalid("the autoencoder", weights.path().display(), fix));
        }
        let mut copies = Vec::new();
        for name in std::iter::once(&format!("{folder}/config.json")).chain(weights) {
            let bytes = match files {
                ModelFiles::Folder(root) => {
                    let path = root.join(name);
                    std::fs::read(&path).map_err(Error::io("read", &path))?
                }
                other => other.read(name)?.into_owned(),
            };
            let file_name = name.rsplit('/').next().unwrap_or(name);
            copies.push((file_name.to_owned(), bytes));
        }
        Ok(Self { network, files: copies })
    }

    /// The network.
    pub fn network(&self) -> &dyn Autoencoder {
        self.network.as_ref()
    }

    /// The SHA-256 of its files, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        for (name, bytes) in &self.files {
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name);
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        }
        hexadecimal(&hasher.finalize())
    }

    /// Writes the files into a folder, which is made.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        self.files.iter().try_for_each(|(name, bytes)| write_synced(&folder.join(name), bytes))
    }
}
