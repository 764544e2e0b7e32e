//! Training: data sets, losses, optimisers and runs that survive.

pub mod classification;
pub mod data;
