//! Pictures as latents, which are made once.

use super::settings::Preparation;
use std::path::Path;
use tweedie::models::Autoencoder;
use tweedie::training::data::{Buckets, CaptionedPictures, LatentOptions, LatentSet};
use tweedie::{Error, Result};

/// Pictures to be encoded, and where their latents are kept.
pub(super) struct Encoded<'a> {
    /// The pictures.
    pub pictures: &'a CaptionedPictures,
    /// What encodes them.
    pub autoencoder: &'a dyn Autoencoder,
    /// Which latents are kept.
    pub options: LatentOptions,
    /// The file.
    pub path: &'a Path,
    /// Whether it is the run's own, which gives way to latents of other pictures.
    pub of_run: bool,
    /// What they are made from.
    pub key: &'a str,
}

impl Encoded<'_> {
    /// The latents in the file if they were made from the same; else they are made, at the sizes of `buckets`, and written.
    pub fn latents(
        &self,
        buckets: impl FnOnce() -> Result<Buckets>,
        preparation: &mut Preparation<'_, '_>,
    ) -> Result<LatentSet> {
        if let Some(set) = LatentSet::read(self.path, self.key)? {
            return Ok(set);
        }
        if !self.of_run && self.path.exists() {
            let fix = "it holds those of other pictures, of another autoencoder or of other settings; give it another name, or remove it";
            return Err(Error::invalid("`latents`", self.path.display(), fix));
        }
        let mut watch = |done, total| preparation.tell("encoding pictures", "pictures", done, total);
        let set = LatentSet::encode(self.pictures, &buckets()?, self.autoencoder, self.options, &mut watch)?;
        set.write(self.path, self.key)?;
        Ok(set)
    }
}
