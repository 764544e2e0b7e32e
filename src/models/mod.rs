//! The networks, each a configuration and a forward pass.
//!
//! Models are built from the checkpoint's own `config.json`; fields that it omits take diffusers' defaults,
//! and an option that is not supported is an error that names it. They are made of [`crate::layers`] alone.
//!
//! # Examples
//!
//! ```
//! use tweedie::checkpoints::RandomWeights;
//! use tweedie::layers::Weights;
//! use tweedie::models::{LeNet, LeNetConfig};
//! use tweedie::{DType, Device, Tensor};
//!
//! // A network is a function of its configuration and weights, wherever these come from.
//! let weights = RandomWeights::new(1, DType::F32, &Device::Cpu);
//! let config = LeNetConfig::new(1, 28, vec!["cat".into(), "dog".into()], false);
//! let network = LeNet::new(config, &Weights::new(&weights))?;
//! let pictures = Tensor::zeros((3, 1, 28, 28), DType::F32, &Device::Cpu)?;
//! let logits = network.forward(&pictures, &Tensor::zeros(3, DType::F32, &Device::Cpu)?)?;
//! assert_eq!(logits.dims(), [3, 2]);
//! # Ok::<_, tweedie::Error>(())
//! ```

mod attention_block;
pub mod autoencoder;
pub mod clip;
mod controlled;
pub mod controlnet;
pub mod inception;
pub mod judge;
pub mod lenet;
mod patch_discriminator;
mod resnet;
pub mod t2i_adapter;
pub mod unet;
pub mod unet2d;
mod unet_blocks;

pub use autoencoder::{
    Autoencoder, AutoencoderConfig, AutoencoderKl, AutoencoderTiny, AutoencoderTinyConfig, DiagonalGaussian,
    EitherAutoencoderConfig, Halves, LatentSpace, Memory, Strips, Watch,
};
pub use clip::{ClipTextConfig, ClipTextModel, ClipTextOutput, ClipVisionConfig, ClipVisionModel};
pub use controlled::{Control, ControlConfig, ControlModel, ControlledUNet};
pub use controlnet::{ControlNet, ControlNetConfig, Strength};
pub use inception::{Inception, InceptionForm};
pub use judge::{Judge, JudgeClasses, JudgeConfig, JudgeHead, Shown};
pub use lenet::{LeNet, LeNetConfig};
pub use patch_discriminator::{PatchDiscriminator, PatchDiscriminatorConfig};
pub use t2i_adapter::{T2iAdapter, T2iAdapterConfig, T2iAdapterKind};
pub use unet::{ControlResiduals, UNet2DConditionConfig, UNet2DConditionModel};
pub use unet2d::{ClassEmbedding, UNet2DConfig, UNet2DModel};
