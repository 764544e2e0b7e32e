//! Inception-v3 as a network of features: its files, and pictures in its form.

use super::feature_network::{FeatureNetwork, PictureFeatures};
use crate::checkpoints::{ComponentNames, SingleFile, TensorNames};
use crate::images::{FloatResizing, Photo};
use crate::layers::Weights;
use crate::models::{Inception, InceptionForm};
use crate::{DType, Device, Error, ErrorKind, Result};
use candle_core::Tensor;
use std::path::Path;

/// How names begin and end of tensors that training alone has a use for.
const AUXILIARY: &str = "AuxLogits.";
const COUNTED: &str = ".num_batches_tracked";

/// Pictures that go through the network at a time: their activations take some 12 MB each.
const AT_ONCE: usize = 8;

/// How pictures of any size become 299x299 from -1 to 1, which shows in every figure (Parmar, Zhang and Zhu 2022, "On aliased
/// resizing and surprising subtleties in GAN evaluation").
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum InceptionResizing {
    /// pytorch-fid's: torch's bilinear `interpolate`, then `2 x / 255 - 1`. torchvision's network takes the same: what its pictures
    /// are normalised by, `transform_input` takes back.
    #[default]
    PytorchFid,
    /// clean-fid's: Pillow's bicubic filter of each channel in floats, limited to 0 to 255, then `(x - 128) / 128`.
    CleanFid,
}

/// Inception-v3 with its weights, on the CPU.
#[derive(Debug)]
pub struct InceptionFeatures {
    network: Inception,
    resizing: InceptionResizing,
}

impl InceptionFeatures {
    /// Loads the network from a file of its weights: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, which has 1008 classes, or
    /// torchvision's `inception_v3`, or the same tensors as safetensors.
    ///
    /// # Errors
    /// If there is no such file, it is of another network, damaged or incomplete.
    pub fn open(path: &Path, resizing: InceptionResizing) -> Result<Self> {
        let file = SingleFile::open(path)?;
        let tensors = file.file().tensors();
        let last = tensors.iter().find(|tensor| tensor.name == "fc.weight").map(|tensor| tensor.shape.as_slice());
        let (Some(&[classes, Inception::WIDTH]), true) =
            (last, tensors.iter().any(|tensor| tensor.name.starts_with("Mixed_7c.")))
        else {
            let fix = "it is no Inception-v3 under torchvision's names; give pytorch-fid's \
                       pt_inception-2015-12-05-6726825d.pth, or torchvision's inception_v3";
            return Err(Error::unusable(ErrorKind::Model, "the network of `features`", path.display(), fix));
        };
        let form = InceptionForm::of_classes(classes);
        let names = tensors.iter().map(|tensor| &tensor.name).filter(|name| name.ends_with(COUNTED));
        let unused = names.cloned().chain([AUXILIARY.to_owned(), "fc.bias".to_owned()]).collect();
        let names = ComponentNames { names: TensorNames::plain(""), unused };
        let checkpoint = file.checkpoint("Inception-v3", names, None, DType::F32, &Device::Cpu);
        let network = Inception::new(&Weights::new(&checkpoint), form, classes);
        // What did not fit explains a failure to build better than the failure itself.
        checkpoint.finish(&[])?;
        Ok(Self { network: network?, resizing })
    }
}

impl FeatureNetwork for InceptionFeatures {
    fn width(&self) -> usize {
        Inception::WIDTH
    }

    fn classes(&self) -> usize {
        self.network.classes()
    }

    fn prepare(&self, photo: &Photo) -> Result<Tensor> {
        let side = Inception::SIDE;
        let picture = photo.to_picture();
        let values: Vec<f32> = match self.resizing {
            InceptionResizing::PytorchFid => {
                let resized = picture.resized_floats(side, side, FloatResizing::Interpolation)?;
                resized.into_iter().map(|value| 2.0 * (value / 255.0) - 1.0).collect()
            }
            InceptionResizing::CleanFid => {
                let resized = picture.resized_floats(side, side, FloatResizing::Bicubic)?;
                resized.into_iter().map(|value| (value.clamp(0.0, 255.0) - 128.0) / 128.0).collect()
            }
        };
        Ok(Tensor::from_vec(values, (1, side, side, 3), &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()?)
    }

    fn picture_features(&self, pictures: &Tensor) -> Result<PictureFeatures> {
        let count = pictures.dim(0)?;
        let parts = (0..count)
            .step_by(AT_ONCE)
            .map(|first| self.network.features(&pictures.narrow(0, first, AT_ONCE.min(count - first))?));
        let features = Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?;
        Ok(PictureFeatures { logits: self.network.classify(&features)?, features })
    }
}
