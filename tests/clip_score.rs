//! CLIP's picture encoder and the CLIP score against transformers.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tweedie::images::Picture;
use tweedie::metrics::{Bootstrap, ClipModel, clip_score, clip_scores};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The largest difference.
fn off(a: &Tensor, b: &Tensor) -> TestResult<f32> {
    assert_eq!(a.dims(), b.dims());
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
}

#[test]
fn golden_directions_and_scores() -> TestResult {
    let stored = candle_core::safetensors::load(golden("clip/stages.safetensors"), &Device::Cpu)?;
    let case: Value = serde_json::from_str(&std::fs::read_to_string(golden("clip/case.json"))?)?;
    let texts = |name: &str| -> Vec<String> {
        case[name].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let model = ClipModel::open(&golden("clip/model"))?;
    let mut prepared = Vec::new();
    for name in texts("pictures") {
        prepared.push(model.prepare(&Picture::read(&golden("pictures/resize").join(name))?)?);
    }
    let prepared = Tensor::cat(&prepared, 0)?;
    // Pillow's bytes to the bit, so what is left is the rounding of a quotient.
    assert!(off(&prepared, &stored["prepared"])? < 1e-6);
    let pictures = model.pictures(&prepared)?;
    // Unit vectors of 24 values, through two layers in f32.
    assert!(off(&pictures, &stored["pictures"])? < 1e-5);
    let captions = texts("texts");
    let directions = model.texts(&captions.iter().map(String::as_str).collect::<Vec<_>>())?;
    assert_eq!(directions.cut, 0);
    assert!(off(&directions.directions, &stored["texts"])? < 1e-5);
    let scores = clip_scores(&pictures, &directions.directions)?;
    for (score, expected) in scores.iter().zip(case["scores"].as_array().into_iter().flatten()) {
        // A hundred times what the directions may be off by.
        assert!((score - expected.as_f64().ok_or("no score")?).abs() < 1e-3, "{scores:?}");
    }
    assert_eq!((scores.len(), case["scores"].as_array().map(Vec::len)), (3, Some(3)));
    Ok(())
}

/// A picture and a text in the same direction have 100, in opposite ones 0; the mean has an interval around it.
#[test]
fn scores_are_cosines_that_are_not_negative() -> TestResult {
    let pictures = Tensor::new(&[[1f32, 0.0], [0.6, 0.8], [0.0, 1.0]], &Device::Cpu)?;
    let texts = Tensor::new(&[[1f32, 0.0], [0.8, 0.6], [0.0, -1.0]], &Device::Cpu)?;
    let scores = clip_scores(&pictures, &texts)?;
    for (score, expected) in scores.iter().zip([100.0, 96.0, 0.0]) {
        // f32 of 0.6 and 0.8.
        assert!((score - expected).abs() < 1e-5, "{scores:?}");
    }
    let figure = clip_score(&scores, &Bootstrap { resamples: 500, seed: 1 })?;
    let interval = figure.interval.ok_or("no interval")?;
    assert!((figure.value - 196.0 / 3.0).abs() < 1e-5 && interval.low < figure.value && figure.value < interval.high);
    assert!(clip_score(&[], &Bootstrap::NONE).is_err());
    assert!(clip_scores(&pictures, &texts.narrow(0, 0, 2)?).is_err());
    let nan = (&pictures * f64::NAN)?;
    assert!(clip_scores(&nan, &texts).is_err_and(|error| error.to_string().contains("CLIP")));
    Ok(())
}

#[test]
fn what_is_no_clip_model_says_so() -> TestResult {
    let refused = |folder: &Path, parts: &[&str]| -> TestResult {
        let message = ClipModel::open(folder).err().ok_or("it was opened")?.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} are not all in: {message}");
        Ok(())
    };
    refused(&golden("models/sd15/text_encoder"), &["text_config", "no CLIP model", "clip-vit-base-patch32"])?;
    let folder = tempfile::tempdir()?;
    for entry in std::fs::read_dir(golden("clip/model"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
    }
    let path = folder.path().join("config.json");
    let config: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
    let with = |part: &str, field: &str, value: Value| -> TestResult {
        let mut changed = config.clone();
        changed[part][field] = value;
        Ok(std::fs::write(&path, changed.to_string())?)
    };
    for (field, value) in [
        ("patch_size", json!(0)),
        ("patch_size", json!(31)),
        ("num_channels", json!(1)),
        ("num_attention_heads", json!(5)),
    ] {
        with("vision_config", field, value)?;
        refused(folder.path(), &[field])?;
    }
    with("vision_config", "hidden_size", json!(24))?;
    refused(folder.path(), &["class_embedding"])?;
    with("vision_config", "patch_size", json!(7))?;
    std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"image_std": [0.2, 0.0, 0.2]}"#)?;
    refused(folder.path(), &["image_std", "above 0"])?;
    // What a model's own file says of pictures counts.
    let even = r#"{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;
    std::fs::write(folder.path().join("preprocessor_config.json"), even)?;
    let grey = Picture::new(30, 30, vec![255; 2700])?;
    let white = ClipModel::open(folder.path())?.prepare(&grey)?;
    assert!(white.flatten_all()?.to_vec1::<f32>()?.iter().all(|value| *value == 1.0) && white.dtype() == DType::F32);
    std::fs::remove_file(folder.path().join("model.safetensors"))?;
    refused(folder.path(), &["model.safetensors", "models in several files"])
}
