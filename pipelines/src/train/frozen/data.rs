//! What something is trained on for a model that stays as it is: captioned pictures, and the model.

use super::FrozenModelSettings;
use crate::model::Model;
use crate::train::{TrainingSet, captioned};
use serde_json::{Map, Value, json};
use tweedie::families::Families;
use tweedie::training::data::{CaptionedPictures, LatentOptions};
use tweedie::training::tasks::FrozenModel;
use tweedie::{Error, Result};

/// Captioned pictures, and the model that stays as it is.
#[derive(Debug)]
pub struct FrozenModelData {
    pictures: CaptionedPictures,
    /// Heights and widths of the files.
    sizes: Vec<(usize, usize)>,
    /// Height and width of what the network sees.
    size: (usize, usize),
    fingerprint: String,
    model: Option<FrozenModel>,
    base: Map<String, Value>,
}

impl FrozenModelData {
    /// Looks at the pictures, and loads the model.
    ///
    /// `resize` is the side of the square that each picture is made to; by default that of the model's own pictures.
    ///
    /// # Errors
    /// If a picture cannot be read, which is named with its line in the list, or the model cannot be used.
    pub fn read(
        pictures: CaptionedPictures,
        resize: Option<usize>,
        settings: &FrozenModelSettings,
        model: &Model,
    ) -> Result<Self> {
        let (fingerprint, sizes) = (pictures.fingerprint()?, pictures.sizes()?);
        let frozen = FrozenModel::load(&model.files()?, &Families::built_in(), settings.held())?;
        let size = resize.map_or(frozen.native_size(), |side| (side, side));
        let multiple = frozen.autoencoder().latent_space().factor;
        for side in [size.0, size.1] {
            if side == 0 || side > 4096 || !side.is_multiple_of(multiple) {
                let fix = format!("it is a multiple of {multiple}, up to 4096; give such a number to `resize`");
                return Err(Error::invalid("a side of the pictures", side, fix));
            }
        }
        let base = json!({"family": frozen.family(), "sha256": frozen.fingerprint()});
        let base = base.as_object().cloned().unwrap_or_default();
        Ok(Self { pictures, sizes, size, fingerprint, model: Some(frozen), base })
    }

    pub(in crate::train) fn pictures(&self) -> &CaptionedPictures {
        &self.pictures
    }

    /// All captions; batches name them by their numbers here.
    pub(in crate::train) fn captions(&self) -> Vec<String> {
        self.pictures.captions().map(str::to_owned).collect()
    }

    /// Heights and widths of the files.
    pub(super) fn sizes(&self) -> &[(usize, usize)] {
        &self.sizes
    }

    /// Height and width of all pictures, or of a picture of about as many pixels where they keep their proportions.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    pub(super) fn model(&self) -> Result<&FrozenModel> {
        self.model.as_ref().ok_or_else(taken)
    }

    pub(in crate::train) fn take_model(&mut self) -> Result<FrozenModel> {
        self.model.take().ok_or_else(taken)
    }

    /// What the model is, by which a run that goes on sees that it is the same.
    pub(in crate::train) fn base(&self) -> &Map<String, Value> {
        &self.base
    }

    /// What latents are made from: pictures, their size, the model and how it computes, and which are kept.
    /// `buckets`: the least number of pictures of each, if there are several.
    pub(super) fn latents_key(&self, options: LatentOptions, buckets: Option<usize>, computed: &str) -> String {
        let ((height, width), pictures, model) = (self.size, &self.fingerprint, &self.base["sha256"]);
        let LatentOptions { flip, deviations } = options;
        format!("{pictures} {model} {computed} {height}x{width} {flip} {deviations} {buckets:?}")
    }
}

fn taken() -> Error {
    Error::invalid("the model", "not there", "taken by an earlier task; read the data again")
}

impl TrainingSet for FrozenModelData {
    fn images(&self) -> usize {
        self.pictures.len()
    }

    fn seen_in_epoch(&self, trained: &[usize]) -> usize {
        self.pictures.seen_in_epoch(trained)
    }

    fn record(&self) -> Map<String, Value> {
        captioned::record(&self.pictures, self.size, &self.fingerprint)
    }
}
