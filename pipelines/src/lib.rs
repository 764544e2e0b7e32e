//! Tweedie's pipelines: the order in which its building blocks run.
//!
//! ```text
//! builder -> LatentDiffusion, shared by runs; request -> settle -> settings -> run
//!     encode (text) -> reference (given picture) -> prepare (noise) -> denoise -> decode -> pictures
//! ```
//!
//! A [`TextToImageRequest`], [`ImageToImageRequest`] or [`InpaintRequest`] says what is wanted; a
//! [`Builder`] says with which model, where, and in which number format. What it loads, a [`LatentDiffusion`], serves all
//! three, in any number of runs at a time. Each stage in [`stages`] takes what the one
//! before it returned. A [`Canvas`] leads from a photo of any size to what the model works on, and back.

mod adapters;
mod bench;
mod bf16_products;
mod builder;
mod canvas;
mod classifier;
mod control;
mod device;
#[cfg(feature = "download")]
pub mod download;
mod event;
#[cfg(any(feature = "download", feature = "hub"))]
mod http;
#[cfg(feature = "hub")]
pub mod hub;
mod image_to_image;
mod inpaint;
mod latent_diffusion;
mod model;
mod pixel;
mod previews;
mod record;
mod request;
pub mod stages;
mod task;
mod train;
mod used_weights;
pub mod verify;
mod xl;

pub use adapters::{Adapters, EmbeddingChoice, LoraChoice};
pub use bench::{Bench, BenchModel};
pub use builder::Builder;
pub use canvas::{Canvas, NativeSize};
pub use classifier::{ClassifierEvent, ClassifierOutcome, ClassifierRequest, NoiseAccuracy, judge};
pub use control::{ControlImage, ControlSettings};
pub use device::{DTypeChoice, DeviceChoice};
pub use event::{Event, Observer};
pub use image_to_image::ImageToImageRequest;
pub use inpaint::{Composite, InpaintRequest, MaskShaping};
pub use latent_diffusion::{Generated, LatentDiffusion, Seconds};
pub use model::{Defaults, Model, ModelInfo};
pub use pixel::{
    PixelBuilder, PixelModel, PixelPipeline, PixelRecord, PixelRequest, PixelSeconds, PixelSettings, Trajectory,
};
pub use previews::Previews;
pub use record::{Input, Record};
pub use request::{PromptSyntax, Request, Settings, TextToImageRequest};
pub use task::{Task, TaskKind, Usage};
pub use train::{
    BetaChoice, DecayChoice, MixedPrecisionChoice, PredictionChoice, StoredChoice, TrainEvent, TrainObserver,
    TrainOutcome, TrainRequest, TrainSettings, TrainingBench,
};
pub use tweedie::{Error, ErrorKind, Result};
pub use xl::{LastSize, Pixels, SizeRequest, Sizes, XlRequest, XlSettings};
