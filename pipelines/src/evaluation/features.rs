//! By which network's features pictures are compared.

use crate::train::{classifier_folder, classifier_of, has_classifier};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tweedie::checkpoints::ModelFiles;
use tweedie::metrics::{FeatureNetwork, InceptionFeatures, InceptionResizing};
use tweedie::{Error, Result};

/// What pytorch-fid calls the file of its network.
const FID_INCEPTION: &str = "pt_inception-2015-12-05-6726825d.pth";

/// By which network's features pictures are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeatureChoice {
    /// The classifier of digits that is compiled into the program.
    Lenet,
    /// The Inception-v3 of FID, where pytorch-fid has put it.
    Inception,
    /// A file of an Inception-v3, or the folder of a model from `tweedie train classifier` or of its run.
    Path(PathBuf),
}

impl FromStr for FeatureChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "lenet" => Self::Lenet,
            "inception" => Self::Inception,
            path => Self::Path(path.into()),
        })
    }
}

/// A network of features, with its weights. How pictures are resized is Inception's alone to know: other networks take pictures of
/// their own size.
///
/// # Errors
/// If there is none at the path, its files do not fit each other, this build has no embedded one, or `resizing` is given for a network
/// that does not resize.
pub fn open_features(choice: &FeatureChoice, resizing: Option<InceptionResizing>) -> Result<Box<dyn FeatureNetwork>> {
    let inception = match choice {
        FeatureChoice::Lenet => None,
        FeatureChoice::Inception => Some(fid_inception()?),
        FeatureChoice::Path(path) => Some(path.clone()).filter(|path| path.is_file()),
    };
    if let Some(file) = inception {
        return Ok(Box::new(InceptionFeatures::open(&file, resizing.unwrap_or_default())?));
    }
    if resizing.is_some() {
        let fix = "networks other than Inception take pictures of their own size alone; leave it out, or give Inception as `features`";
        return Err(Error::invalid("`resize`", "given", fix));
    }
    match choice {
        FeatureChoice::Path(path) => classifier(path),
        FeatureChoice::Lenet | FeatureChoice::Inception => embedded_lenet(),
    }
}

fn classifier(path: &Path) -> Result<Box<dyn FeatureNetwork>> {
    let folder = classifier_folder(path);
    if !has_classifier(&folder) {
        let fix = "it is no network that this build knows (lenet, inception), no file of Inception-v3, and no folder with \
                   classifier/config.json, which `tweedie train classifier` makes";
        return Err(Error::missing("the network of `features`", path.display(), fix));
    }
    Ok(Box::new(classifier_of(&ModelFiles::folder(&folder)?)?))
}

#[cfg(feature = "embedded-mnist")]
fn embedded_lenet() -> Result<Box<dyn FeatureNetwork>> {
    let files = tweedie_weights::LENET_DIGITS;
    Ok(Box::new(classifier_of(&ModelFiles::Embedded { name: "lenet-digits", files })?))
}

#[cfg(not(feature = "embedded-mnist"))]
fn embedded_lenet() -> Result<Box<dyn FeatureNetwork>> {
    let fix = "this build has no embedded one; give the folder of a model that `tweedie train classifier` made";
    Err(Error::invalid("the network of `features`", "lenet", fix))
}

/// Where PyTorch keeps what pytorch-fid has downloaded: `TORCH_HOME`, or a folder of the user's caches.
fn fid_inception() -> Result<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = path("TORCH_HOME")
        .or_else(|| path("XDG_CACHE_HOME").map(|caches| caches.join("torch")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/torch")));
    let file = home.map(|home| home.join("hub/checkpoints").join(FID_INCEPTION));
    file.filter(|file| file.is_file()).ok_or_else(|| {
        let fix = format!(
            "it is not among what PyTorch has downloaded; give its file, {FID_INCEPTION} of pytorch-fid or torchvision's \
             inception_v3, as `features`"
        );
        Error::missing("the network of `features`", "inception", fix)
    })
}
