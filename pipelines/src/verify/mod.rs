//! Whether a picture is what its settings say: they are read from its PNG file, the weights are found by their SHA-256,
//! and it is made again.
//!
//! # Examples
//!
//! ```
//! use std::path::Path;
//! use tweedie_pipelines::verify::Recipe;
//! use tweedie_pipelines::{LatentDiffusion, TextToImageRequest};
//!
//! let model = LatentDiffusion::builder().build()?;
//! let request = TextToImageRequest { prompt: "a fox".into(), seed: 6, steps: Some(2), ..Default::default() };
//! let record = model.record(&model.settle(&request)?);
//! let picture = model.generate(&request)?.pictures.remove(0);
//! let bytes = picture.encode_png(&record.chunks(request.seed))?;
//!
//! let recipe = Recipe::read(&bytes, Path::new("fox.png"))?;
//! let again = recipe.text_request()?;
//! assert_eq!((again.prompt.as_str(), again.seed, again.steps), ("a fox", 6, Some(2)));
//! assert_eq!(model.generate(&again)?.pictures[0], picture);
//! # Ok::<_, tweedie_pipelines::Error>(())
//! ```

mod compare;
mod faults;
mod find;
mod recipe;

pub use crate::records::provenance::InputRecord;
pub use compare::{Comparison, Verdict};
pub use find::{WeightsCheck, check_weights};
pub use recipe::Recipe;
