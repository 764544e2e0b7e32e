//! Classifiers of pictures, which judge them and guide towards a class.

use super::Loader;
use crate::Result;
use crate::denoising::Classifier;
use crate::models::{LeNet, LeNetConfig};
use std::fmt;

/// A classifier of pictures, with its weights.
pub trait PictureClassifier: Classifier + fmt::Debug + Send + Sync {
    /// What is known of it.
    fn facts(&self) -> ClassifierFacts;
}

/// Which pictures a classifier tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassifierFacts {
    /// Channels of the pictures.
    pub channels: usize,
    /// Their height and width.
    pub sample_size: (usize, usize),
    /// The number of classes.
    pub classes: usize,
    /// Whether it was trained on noisy pictures, and is told how noisy one is.
    pub noisy: bool,
}

impl PictureClassifier for LeNet {
    fn facts(&self) -> ClassifierFacts {
        let config = self.config();
        ClassifierFacts {
            channels: config.in_channels,
            sample_size: (config.sample_size, config.sample_size),
            classes: config.class_names.len(),
            noisy: config.time_embedding.is_some(),
        }
    }
}

/// The classifier in the folder `component` of a loader's files, with the names of the files that its weights came from.
///
/// # Errors
/// If it is of no kind that is known, or the weights cannot be had.
pub fn load_classifier(
    loader: &Loader<'_>,
    component: &'static str,
) -> Result<(Box<dyn PictureClassifier>, Vec<String>)> {
    let config = LeNetConfig::from_fields(&loader.files.config(component, "config.json")?)?;
    let (classifier, files) = loader.load(component, &[], |weights| LeNet::new(config, weights))?;
    Ok((Box::new(classifier), files))
}
