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
mod device;
mod event;
mod model;
mod pixel;
mod record;
mod request;
pub mod stages;
mod text_to_image;

pub use bench::{Bench, BenchModel};
pub use builder::Builder;
pub use device::{DTypeChoice, DeviceChoice};
pub use event::{Event, Observer};
pub use model::{Defaults, Model, ModelInfo};
pub use pixel::{
    PixelBuilder, PixelModel, PixelPipeline, PixelRecord, PixelRequest, PixelSeconds, PixelSettings, Trajectory,
};
pub use record::Record;
pub use request::{PromptSyntax, Settings, TextToImageRequest};
pub use text_to_image::{Seconds, TextToImage};
pub use tweedie::{Error, Result};
