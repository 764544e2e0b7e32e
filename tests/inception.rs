//! Inception-v3 against torchvision's and pytorch-fid's modules, block by block, with weights that both sides compute.

#[path = "cases/inception.rs"]
mod rules;

use candle_core::{DType, Device, Tensor};
use rules::{NamedWeights, picture, write_weights};
use serde_json::Value;
use std::path::Path;
use tweedie::images::{ColorType, Photo, Picture, Samples};
use tweedie::layers::Weights;
use tweedie::metrics::{FeatureNetwork, InceptionFeatures, InceptionResizing};
use tweedie::models::{Inception, InceptionForm};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Of a tensor's root mean square. Sums of up to 4,032 products in f32 in another order, in a depth of 47 convolutions, some of them by
/// Winograd's transform.
const TOLERANCE: f64 = 2e-4;

fn case(name: &str) -> TestResult<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/inception").join(name);
    Ok(serde_json::from_str(&std::fs::read_to_string(path)?)?)
}

/// Whether a tensor has the values that a case has of it.
fn check(what: &str, got: &Tensor, want: &Value, tolerance: f64) -> TestResult {
    assert_eq!(serde_json::json!(got.dims()), want["shape"], "{what}");
    let got = got.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let rms = |values: &[f64]| (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt();
    let (rms, expected) = (rms(&got), want["rms"].as_f64().ok_or("no rms")?);
    assert!((rms - expected).abs() <= tolerance * expected, "{what}: {rms} instead of {expected}");
    let values = want["values"].as_array().ok_or("no values")?;
    for (i, want) in values.iter().filter_map(Value::as_f64).enumerate() {
        let got = got[i * (got.len() / values.len())];
        assert!((got - want).abs() <= tolerance * rms, "{what}, value {i}: {got} instead of {want} (rms {rms})");
    }
    Ok(())
}

fn photo(picture: &Picture) -> tweedie::Result<Photo> {
    Photo::new(picture.width(), picture.height(), ColorType::Rgb, Samples::Eight(picture.rgb().to_vec()))
}

/// The first picture of each set, as the network takes them.
fn prepared(network: &dyn FeatureNetwork) -> TestResult<Tensor> {
    Ok(Tensor::cat(&[network.prepare(&photo(&picture(0, 1)?)?)?, network.prepare(&photo(&picture(1, 1)?)?)?], 0)?)
}

#[test]
fn golden_blocks_of_both_forms() -> TestResult {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("inception.safetensors");
    for name in ["fid.json", "torchvision.json"] {
        let case = case(name)?;
        let classes = case["classes"].as_u64().ok_or("no classes")? as usize;
        write_weights(&file, classes)?;
        let opened = InceptionFeatures::open(&file, InceptionResizing::PytorchFid)?;
        let pictures = prepared(&opened)?;

        let weights = NamedWeights::default();
        let network = Inception::new(&Weights::new(&weights), InceptionForm::of_classes(classes), classes)?;
        let mut blocks = case["blocks"].as_array().into_iter().flatten();
        let features = network.features_told(&pictures, &mut |block, x| {
            let want = blocks.next().filter(|want| want["name"] == block);
            let checked = want.ok_or_else(|| format!("{block} comes unexpected").into());
            let checked = checked.and_then(|want| check(&format!("{name}, {block}"), &x.to_nchw()?, want, TOLERANCE));
            checked.map_err(|error| tweedie::Error::invalid(block, error, "the reference has other values"))
        })?;
        assert!(blocks.next().is_none());
        check(&format!("{name}, features"), &features, &case["features"], TOLERANCE)?;

        let seen = opened.picture_features(&pictures)?;
        check(&format!("{name}, features of the file"), &seen.features, &case["features"], TOLERANCE)?;
        check(&format!("{name}, logits"), &seen.logits, &case["logits"], TOLERANCE)?;
        assert_eq!((opened.width(), opened.classes()), (2048, classes));
    }
    Ok(())
}

/// torch rounds the places between pixels to f32: of 48 pixels to within 2e-6, times steps of up to 2 from one to the next.
#[test]
fn golden_resizing() -> TestResult {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("inception.safetensors");
    write_weights(&file, 1008)?;
    let case = case("resized.json")?;
    for (name, resizing) in [("pytorch-fid", InceptionResizing::PytorchFid), ("clean-fid", InceptionResizing::CleanFid)]
    {
        check(name, &prepared(&InceptionFeatures::open(&file, resizing)?)?, &case[name], 1e-5)?;
    }
    Ok(())
}

#[test]
fn a_file_that_is_no_inception_says_so() -> TestResult {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("other.safetensors");
    let refused = |parts: &[&str]| -> TestResult {
        let message =
            InceptionFeatures::open(&file, InceptionResizing::PytorchFid).err().ok_or("it was opened")?.to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{parts:?} are not all in: {message}");
        Ok(())
    };
    let save = |tensors: &[(&str, Tensor)]| -> TestResult {
        let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
        Ok(candle_core::safetensors::save(&tensors, &file)?)
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu);
    save(&[("fc.weight", zeros(&[10, 512])?)])?;
    refused(&["other.safetensors", "no Inception-v3", "pt_inception-2015-12-05-6726825d.pth"])?;
    // Of all that is missing the error has some names.
    save(&[("fc.weight", zeros(&[1000, 2048])?), ("Mixed_7c.branch1x1.conv.weight", zeros(&[320, 2048, 1, 1])?)])?;
    refused(&["Conv2d_1a_3x3.conv.weight", "other.safetensors"])?;
    std::fs::write(&file, "no weights")?;
    refused(&["other.safetensors"])
}
