//! Networks whose features pictures are compared by.

use crate::images::Photo;
use crate::models::LeNet;
use crate::training::data::network_input;
use crate::{DType, Device, Error, ErrorKind, Result};
use candle_core::Tensor;
use std::fmt;

/// What a network sees in pictures.
#[derive(Debug, Clone)]
pub struct PictureFeatures {
    /// `[batch, width]`.
    pub features: Tensor,
    /// Unnormalised logarithms of the classes' probabilities, `[batch, classes]`.
    pub logits: Tensor,
}

/// A network whose features pictures are compared by.
pub trait FeatureNetwork: fmt::Debug + Send + Sync {
    /// How many features a picture has.
    fn width(&self) -> usize;

    /// How many classes it tells apart.
    fn classes(&self) -> usize;

    /// A picture as the network takes it, `[1, channels, height, width]`.
    ///
    /// # Errors
    /// If the network takes pictures of another size alone.
    fn prepare(&self, photo: &Photo) -> Result<Tensor>;

    /// What it sees in prepared pictures, `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// If they are not as [`Self::prepare`] makes them.
    fn picture_features(&self, pictures: &Tensor) -> Result<PictureFeatures>;
}

/// The hidden layer of the classifier. One of noisy pictures takes them as free of noise.
impl FeatureNetwork for LeNet {
    fn width(&self) -> usize {
        self.config().hidden_size
    }

    fn classes(&self) -> usize {
        self.config().class_names.len()
    }

    fn prepare(&self, photo: &Photo) -> Result<Tensor> {
        let side = self.config().sample_size;
        let (width, height) = (photo.width(), photo.height());
        if (width, height) != (side, side) {
            let fix = format!(
                "the network of features takes {side}x{side}; give one for this size as `features`, which \
                 `tweedie train classifier` makes, or pictures of its size"
            );
            return Err(Error::unusable(ErrorKind::File, "the pictures' size", format!("{width}x{height}"), fix));
        }
        network_input(photo, self.config().in_channels)
    }

    fn picture_features(&self, pictures: &Tensor) -> Result<PictureFeatures> {
        let clean = Tensor::zeros(pictures.dim(0)?, DType::F32, &Device::Cpu)?;
        let features = self.features(pictures, &clean)?;
        Ok(PictureFeatures { logits: self.classify(&features)?, features })
    }
}
