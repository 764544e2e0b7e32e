//! The weights and pictures of the golden cases of Inception-v3, by the rules of `generate_inception.py`.
#![allow(dead_code)] // every test binary uses a part

use candle_core::{DType, Device, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use tweedie::images::Picture;
use tweedie::layers::{WeightSource, Weights};
use tweedie::models::{Inception, InceptionForm};
use tweedie::training::data::SplitMix64;

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

const WIDTH: usize = 48;
const HEIGHT: usize = 40;

/// Weights that follow from their names, and those that were asked for.
#[derive(Default)]
pub struct NamedWeights(RefCell<HashMap<String, Tensor>>);

impl WeightSource for NamedWeights {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        let (scale, shift) = match shape {
            _ if name == "fc.weight" => (2.0, 0.0),
            [_, inputs, height, width] => ((6.0 / (inputs * height * width) as f64).sqrt() as f32, 0.0),
            _ if name.ends_with("bn.weight") || name.ends_with("running_var") => (0.25, 1.0),
            _ => (0.25, 0.0),
        };
        let hashed = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let mut stream = SplitMix64::new(name.bytes().fold(0xcbf2_9ce4_8422_2325, hashed));
        let mut value = || ((stream.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0) * scale + shift;
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| value()).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
        self.0.borrow_mut().insert(name.into(), tensor.clone());
        Ok(tensor)
    }

    fn contains(&self, _: &str) -> bool {
        true
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

/// Writes a network's file: every tensor that it asks for, and what training leaves beside them.
pub fn write_weights(path: &Path, classes: usize) -> TestResult {
    let weights = NamedWeights::default();
    Inception::new(&Weights::new(&weights), InceptionForm::of_classes(classes), classes)?;
    weights.tensor("fc.bias", &[classes])?;
    weights.tensor("AuxLogits.fc.bias", &[classes])?;
    let mut tensors = weights.0.into_inner();
    tensors.insert("Conv2d_1a_3x3.bn.num_batches_tracked".into(), Tensor::zeros(1, DType::I64, &Device::Cpu)?);
    Ok(candle_core::safetensors::save(&tensors, path)?)
}

/// Picture `i` of the set of dark stripes, 0, or of that of bright squares, 1.
pub fn picture(set: usize, i: usize) -> tweedie::Result<Picture> {
    let value = |y: usize, x: usize, c: usize| match set {
        0 => ((x * (i + 1) + y * (2 * i + 3)) * (c + 2) + 37 * i) % 128,
        _ => ((x / (i % 5 + 2) * 53 + y / (i % 3 + 3) * 71) * (c + 1) + x * y * (i % 4) + 11 * i) % 256,
    };
    let rgb = (0..3 * WIDTH * HEIGHT).map(|at| value(at / 3 / WIDTH, at / 3 % WIDTH, at % 3) as u8).collect();
    Picture::new(WIDTH, HEIGHT, rgb)
}

/// So many pictures of a set as files in a new folder.
pub fn write_pictures(folder: &Path, set: usize, count: usize) -> TestResult {
    std::fs::create_dir(folder)?;
    for i in 0..count {
        picture(set, i)?.save(&folder.join(format!("{i:02}.png")), &[])?;
    }
    Ok(())
}
