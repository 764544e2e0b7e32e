//! The random numbers of `torch.randn`.

mod cases;

use candle_core::{Device, Tensor};
use cases::{TestResult, roots};
use serde_json::Value;
use tweedie::noise::{NoiseSource, TorchNoise};

/// Absolute. torch's vectorised path differs from exact sines, cosines and logarithms by up to 2e-6.
const TOLERANCE: f32 = 3e-6;

fn worst(got: &Tensor, want: &Tensor) -> TestResult<f32> {
    assert_eq!(got.dims(), want.dims());
    Ok((got - want)?.abs()?.max_all()?.to_scalar::<f32>()?)
}

fn shape(value: &Value) -> Vec<usize> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_u64().map(|v| v as usize)).collect()
}

#[test]
fn golden_normal_values_of_torch() -> TestResult {
    let mut checked = 0;
    for root in roots().iter().map(|root| root.join("rng")).filter(|folder| folder.is_dir()) {
        let description: Value = serde_json::from_str(&std::fs::read_to_string(root.join("rng.json"))?)?;
        let values = candle_core::safetensors::load(root.join("randn.safetensors"), &Device::Cpu)?;
        let list = |name: &str| description[name].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();

        for single in list("single") {
            let seed = single["seed"].as_u64().ok_or("no seed")?;
            let got = TorchNoise::shared(seed).normal(&shape(&single["shape"]))?;
            let key = text(&single["key"]);
            let error = worst(&got, &values[&key])?;
            assert!(error <= TOLERANCE, "{key}: {error}");
            checked += 1;
        }
        for sequence in list("sequences") {
            let mut noise = TorchNoise::shared(sequence["seed"].as_u64().ok_or("no seed")?);
            let keys = sequence["keys"].as_array().into_iter().flatten();
            for (key, dims) in keys.zip(sequence["shapes"].as_array().into_iter().flatten()) {
                let error = worst(&noise.normal(&shape(dims))?, &values[&text(key)])?;
                assert!(error <= TOLERANCE, "{key}: {error}");
                checked += 1;
            }
        }
        for batch in list("batches") {
            let mut seeds: Vec<u64> =
                batch["seeds"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
            let dims = shape(&batch["shape"]);
            // A list of one generator serves the whole batch.
            let mut noise = match (seeds.len(), dims[0]) {
                (1, images) if images > 1 => TorchNoise::shared(seeds.remove(0)),
                _ => TorchNoise::per_image(&seeds),
            };
            let error = worst(&noise.normal(&dims)?, &values[&text(&batch["key"])])?;
            assert!(error <= TOLERANCE, "{}: {error}", batch["key"]);
            checked += 1;
        }
    }
    assert!(checked > 0, "no golden random numbers were found");
    Ok(())
}

#[test]
fn an_image_has_the_same_noise_in_any_batch() -> TestResult {
    let together = TorchNoise::per_image(&[5, 6, 7]).normal(&[3, 4, 8, 8])?;
    for (i, seed) in [5, 6, 7].into_iter().enumerate() {
        let alone = TorchNoise::per_image(&[seed]).normal(&[1, 4, 8, 8])?;
        assert_eq!(worst(&alone, &together.narrow(0, i, 1)?)?, 0.0);
    }
    Ok(())
}

#[test]
fn noise_for_another_number_of_images_is_refused() {
    assert!(TorchNoise::per_image(&[1, 2]).normal(&[3, 4]).is_err());
}
