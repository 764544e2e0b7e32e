//! Adapters: what they make of weights and pictures, and files that are damaged or belong elsewhere.

#[path = "../cases/mod.rs"]
mod cases;

mod control_models;
mod damaged_networks;
mod embeddings;
mod loras;

use candle_core::{DType, Tensor};
use cases::{TestResult, roots};
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    roots()[0].join(name)
}

fn largest(x: &Tensor) -> TestResult<f32> {
    Ok(x.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar()?)
}
