//! Training: data sets, losses, optimisers and runs that survive.

pub mod data;
