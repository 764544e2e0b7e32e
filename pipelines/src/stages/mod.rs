//! The stages of a pipeline. Each takes what the one before it returned; none knows another.

mod decode;
mod denoise;
mod encode;
mod prepare;
mod reference;

pub use decode::Decode;
pub use denoise::Denoise;
pub use encode::{Encode, Encoded};
pub use prepare::{Known, Prepared, prepare};
pub use reference::{Reference, reference};
