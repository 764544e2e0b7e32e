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
//!
//! # Examples
//!
//! ```
//! use std::ops::ControlFlow;
//! use tweedie_pipelines::{Error, Event, LatentDiffusion, TextToImageRequest};
//!
//! // The embedded model, loaded once and shared by threads.
//! let model = LatentDiffusion::builder().build()?;
//! let request = TextToImageRequest { prompt: "a fox on a blue background".into(), steps: Some(4), ..Default::default() };
//! let settings = model.settle(&request)?;
//! let (drawn, stopped) = std::thread::scope(|scope| {
//!     let drawn = scope.spawn(|| model.generate(&request));
//!     // Progress comes as events; who breaks stops the run.
//!     let stopped = scope.spawn(|| {
//!         model.run(&settings, &mut |event| match event {
//!             Event::Step { done, steps, .. } if 2 * done >= steps => ControlFlow::Break(()),
//!             _ => ControlFlow::Continue(()),
//!         })
//!     });
//!     (drawn.join(), stopped.join())
//! });
//! let picture = drawn.expect("no panic")?.pictures.remove(0);
//! assert!(matches!(stopped.expect("no panic"), Err(Error::Cancelled)));
//!
//! // The picture says how it was made.
//! let folder = tempfile::tempdir()?;
//! picture.save(&folder.path().join("fox.png"), &model.record(&settings).chunks(request.seed))?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod adapted;
mod adapters;
mod bench;
mod bf16_products;
mod builder;
mod canvas;
mod control;
mod device;
#[cfg(feature = "download")]
pub mod download;
mod evaluation;
mod event;
#[cfg(any(feature = "download", feature = "hub"))]
mod http;
#[cfg(feature = "hub")]
pub mod hub;
mod latent_diffusion;
pub mod memory;
mod model;
mod most_alike;
mod native_size;
mod parts;
mod pixel;
mod previews;
mod records;
mod requests;
#[cfg(feature = "server")]
pub mod serve;
mod settings;
pub mod stages;
mod task;
mod train;
mod used_weights;
pub mod verify;
mod xl;

pub use adapters::{Adapters, EmbeddingChoice, LoraChoice};
pub use bench::{Bench, BenchModel};
pub use builder::Builder;
pub use canvas::Canvas;
pub use device::{DTypeChoice, DeviceChoice};
pub use evaluation::{
    AskedPrompt, EvaluationEvent, EvaluationObserver, FeatureChoice, LikelihoodOptions, OdeLikelihood, PixelSamples,
    PromptEvaluation, PromptSamples, PromptScores, PromptSet, SampleEvent, SampleObserver, Samples,
    features_of_samples, has_ode_likelihood, likelihood_bound, ode_likelihood, open_features, open_judge,
};
pub use event::{Event, Observer};
pub use latent_diffusion::{Generated, LatentDiffusion, Seconds};
pub use model::{ComponentInfo, Defaults, Model, ModelInfo, PredictionDoubt, Purpose};
pub use most_alike::most_alike;
pub use native_size::NativeSize;
pub use pixel::{
    PixelBuilder, PixelClass, PixelModel, PixelPipeline, PixelRecord, PixelRequest, PixelSeconds, PixelSettings,
    Trajectory,
};
pub use previews::{LatentColours, Previews};
pub use records::record::{Input, Record};
pub use records::reuse::ReusedSettings;
pub use requests::control::ControlImage;
pub use requests::fast::Fast;
pub use requests::image_to_image::ImageToImageRequest;
pub use requests::inpaint::{InpaintOptions, InpaintRequest, MaskFill};
pub use requests::kind::{FlagValue, OptionKind};
pub use requests::lora::LoraRequest;
pub use requests::options::{OptionInfo, Options, WrongOption};
pub use requests::request::Request;
pub use requests::text_to_image::{PromptSyntax, TextToImageRequest};
pub use requests::xl::{NegativeSizeRequest, Pixels, SizeRequest, XlRequest};
pub use settings::{ControlSettings, Settings};
pub use task::{Task, TaskKind, Usage};
pub use train::{
    AutoencoderTrainingSettings, BetaChoice, ClassifierTrainingSettings, CommonSettings, DecayChoice,
    EmbeddingTrainingSettings, FrozenModelData, FrozenModelSettings, FrozenModelTraining, HeldChoice,
    JudgeTrainingData, JudgeTrainingSettings, LatentBetaChoice, LatentTrainingData, LatentTrainingSettings,
    LoraFormChoice, LoraModulesChoice, LoraTrainingSettings, MixedPrecisionChoice, PixelTrainingSettings,
    PredictionChoice, Preparation, SeenPictures, SharedSettings, StoredChoice, TrainRequest, TrainingBench,
    TrainingData, TrainingModels, TrainingSet, TrainingSettings, judge, open_classifier,
};
pub use tweedie::{Error, ErrorKind, Result};
pub use xl::{LastSize, Sizes, XlSettings};
