//! Tweedie's pipelines: the order in which its building blocks run.
//!
//! ```text
//! request -> builder -> TextToImage: encode -> prepare -> denoise -> decode -> pictures
//! ```
//!
//! A [`TextToImageRequest`] says what is wanted; [`TextToImage::builder`] says with which model, where, and in
//! which number format. Each stage in [`stages`] takes what the one before it returned.

mod bench;
mod builder;
mod classifier;
mod device;
#[cfg(feature = "download")]
pub mod download;
mod event;
mod model;
mod pixel;
mod record;
mod request;
pub mod stages;
mod text_to_image;
mod train;

pub use bench::{Bench, BenchModel};
pub use builder::Builder;
pub use classifier::{ClassifierEvent, ClassifierOutcome, ClassifierRequest, NoiseAccuracy, judge};
pub use device::{DTypeChoice, DeviceChoice};
pub use event::{Event, Observer};
pub use model::{Defaults, Model, ModelInfo};
pub use pixel::{
    PixelBuilder, PixelModel, PixelPipeline, PixelRecord, PixelRequest, PixelSeconds, PixelSettings, Trajectory,
};
pub use record::Record;
pub use request::{PromptSyntax, Settings, TextToImageRequest};
pub use text_to_image::{Seconds, TextToImage};
pub use train::{
    BetaChoice, DecayChoice, PredictionChoice, StoredChoice, TrainEvent, TrainObserver, TrainOutcome, TrainRequest,
    TrainSettings,
};
pub use tweedie::{Error, Result};
