//! Features of samples, while a model makes them.

use crate::event::Event;
use crate::model::folder_of_model;
use crate::pixel::{PixelPipeline, PixelSettings};
use crate::train::classifier_of;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tweedie::checkpoints::ModelFiles;
use tweedie::metrics::{Extraction, FeatureNetwork, Kept, PictureSet};
use tweedie::models::Watch;
use tweedie::{Error, Result};

/// By which network's features pictures are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeatureChoice {
    /// The classifier of digits that is compiled into the program.
    Lenet,
    /// The folder of a model from `tweedie train classifier`, or its run.
    Folder(PathBuf),
}

impl FromStr for FeatureChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "lenet" { Self::Lenet } else { Self::Folder(text.into()) })
    }
}

/// A network of features, with its weights.
///
/// # Errors
/// If there is none at the path, its files do not fit each other, or this build has no embedded one.
pub fn open_features(choice: &FeatureChoice) -> Result<Box<dyn FeatureNetwork>> {
    match choice {
        FeatureChoice::Folder(path) => {
            let has_classifier = |folder: &Path| folder.join("classifier/config.json").is_file();
            let folder = folder_of_model(path, has_classifier);
            if !has_classifier(&folder) {
                let fix = "it is no network that this build knows (lenet), and no folder with classifier/config.json, which \
                           `tweedie train classifier` makes";
                return Err(Error::missing("the network of `features`", path.display(), fix));
            }
            Ok(Box::new(classifier_of(&ModelFiles::folder(&folder)?)?))
        }
        #[cfg(feature = "embedded-mnist")]
        FeatureChoice::Lenet => {
            let files = tweedie_weights::LENET_DIGITS;
            Ok(Box::new(classifier_of(&ModelFiles::Embedded { name: "lenet-digits", files })?))
        }
        #[cfg(not(feature = "embedded-mnist"))]
        FeatureChoice::Lenet => {
            let fix = "this build has no embedded one; give the folder of a model that `tweedie train classifier` made";
            Err(Error::invalid("the network of `features`", "lenet", fix))
        }
    }
}

/// Features of samples, each as it would be saved.
///
/// # Errors
/// [`Error::Cancelled`] if `watch` breaks; whatever the networks report.
pub fn features_of_samples(
    network: &dyn FeatureNetwork,
    pipeline: &PixelPipeline,
    settings: &PixelSettings,
    kept: Kept,
    watch: &mut Watch<'_>,
) -> Result<PictureSet> {
    let mut extraction = Extraction::new(network, kept);
    let mut failure = None;
    let total = settings.num_images;
    let made = pipeline.run(settings, None, &mut |event| match event {
        Event::Picture { index, seed, picture, .. } => {
            match extraction.add(picture, &format!("the sample of seed {seed}")) {
                Ok(()) => watch(index + 1, total),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        }
        // The number so far, so that steps can be stopped too.
        Event::Step { batch, .. } => watch((batch * settings.batch_size).min(total), total),
        _ => ControlFlow::Continue(()),
    });
    failure.map_or(made, Err)?;
    extraction.finish()
}
