//! ControlNets and T2I-Adapters.

use super::cases::TestResult;
use super::{golden, largest};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tweedie::NoiseLevel;
use tweedie::conditioning::Conditioning;
use tweedie::denoising::{Cache, Call};
use tweedie::images::Photo;
use tweedie::models::{ControlModel, Strength};
use tweedie::noise::TorchGenerator;
use tweedie_pipelines::{ControlImage, LatentDiffusion, TaskKind, TextToImageRequest, Usage};

/// A control model's folder with its `config.json` and its tensors changed.
fn changed_control(
    name: &str,
    config: impl Fn(&mut Value),
    tensors: impl Fn(&mut HashMap<String, Tensor>) -> TestResult,
) -> TestResult<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    let from = golden("models").join(name);
    let mut json: Value = serde_json::from_str(&std::fs::read_to_string(from.join("config.json"))?)?;
    config(&mut json);
    std::fs::write(folder.path().join("config.json"), json.to_string())?;
    let file = "diffusion_pytorch_model.safetensors";
    let mut stored = candle_core::safetensors::load(from.join(file), &Device::Cpu)?;
    tensors(&mut stored)?;
    candle_core::safetensors::save(&stored, folder.path().join(file))?;
    Ok(folder)
}

/// The message of a pipeline with this control model.
fn control_refusal(model: &str, control: &Path) -> TestResult<String> {
    let builder = LatentDiffusion::builder().model_folder(golden("models").join(model)).control(control);
    Ok(builder.usage(Usage::Once(TaskKind::TextToImage)).build().err().ok_or("it was taken")?.to_string())
}

#[test]
fn control_models_that_do_not_fit_are_refused() -> TestResult {
    let says = |model: &str, control: &Path, parts: &[&str]| -> TestResult {
        let message = control_refusal(model, control)?;
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        Ok(())
    };
    let tensor = "controlnet_down_blocks.1.weight";
    let without = |tensors: &mut HashMap<String, Tensor>| {
        tensors.remove(tensor).map(|_| ()).ok_or_else(|| "it was not there".into())
    };
    let folder = changed_control("controlnet", |_| (), without)?;
    says("sd15", folder.path(), &["1 tensor missing", tensor])?;
    let cut = |tensors: &mut HashMap<String, Tensor>| {
        let shorter = tensors[tensor].narrow(0, 0, 8)?.contiguous()?;
        tensors.insert(tensor.into(), shorter);
        Ok(())
    };
    let folder = changed_control("controlnet", |_| (), cut)?;
    says("sd15", folder.path(), &["of another shape", tensor, "[8, "])?;
    let field = |name: &'static str, value: Value| move |json: &mut Value| json[name] = value.clone();
    let folder = changed_control("controlnet", field("_class_name", "ControlNetXS".into()), |_| Ok(()))?;
    says("sd15", folder.path(), &["ControlNetXS", "T2IAdapter"])?;
    let folder = changed_control("controlnet", field("conditioning_embedding_out_channels", 7.into()), |_| Ok(()))?;
    says("sd15", folder.path(), &["conditioning_embedding_out_channels", "7"])?;
    let folder = changed_control("t2i-full", field("channels", vec![24, 48].into()), |_| Ok(()))?;
    says("sd15", folder.path(), &["channels", "[24, 48]", "[24, 40]"])?;
    says("inpaint9", &golden("models/controlnet"), &["inpainting"])?;
    says("sd21", &golden("models/controlnet"), &["controlnet", "other sizes"])?;
    says("sd15", &golden("models/sd15/unet/diffusion_pytorch_model.safetensors"), &["something else", "conv_in"])?;
    says("sd15", &golden("nowhere"), &["nowhere", "missing"])?;
    Ok(())
}

/// The picture that a control model makes with the small Stable Diffusion 1.x.
pub fn controlled(control: &Path, guess: bool) -> TestResult<Photo> {
    let model = LatentDiffusion::builder().model_folder(golden("models/sd15")).control(control).build()?;
    let image = Photo::read(&golden("cases/control-guess/control.0.png"))?;
    let request = TextToImageRequest {
        prompt: "a bridge".into(),
        steps: Some(2),
        controls: vec![ControlImage { guess, ..ControlImage::new(image) }],
        ..TextToImageRequest::default()
    };
    Ok(model.generate(&request)?.pictures.swap_remove(0))
}

/// The tensors of a control model's folder in one file, under other names.
fn renamed_control(folder: &Path, name: &str, rename: impl Fn(&str) -> String) -> TestResult<PathBuf> {
    let file = golden("models").join(name).join("diffusion_pytorch_model.safetensors");
    let stored = candle_core::safetensors::load(file, &Device::Cpu)?;
    let mut renamed: HashMap<_, _> = stored.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
    if renamed.keys().any(|name| name.starts_with("control_model.")) {
        // The first of these files hold the whole model that was controlled.
        renamed.insert("model.diffusion_model.out.2.bias".into(), Tensor::zeros(4, DType::F32, &Device::Cpu)?);
    }
    let path = folder.join("control.safetensors");
    candle_core::safetensors::save(&renamed, &path)?;
    Ok(path)
}

/// diffusers reads the same tensors out of files with these names: see `generate_control_names.py`.
#[test]
fn golden_control_models_in_one_file() -> TestResult {
    let names = std::fs::read_to_string(golden("models/controlnet/original_names.json"))?;
    let names: HashMap<String, String> = serde_json::from_str(&names)?;
    let original: HashMap<&str, &str> = names.iter().map(|(old, new)| (new.as_str(), old.as_str())).collect();
    let folder = tempfile::tempdir()?;
    let expected = controlled(&golden("models/controlnet"), false)?;
    for (form, prefix) in [("diffusers", ""), ("bare", ""), ("prefixed", "control_model.")] {
        let rename = |name: &str| match form {
            "diffusers" => name.to_owned(),
            _ => format!("{prefix}{}", original[name]),
        };
        let path = renamed_control(folder.path(), "controlnet", rename)?;
        assert!(controlled(&path, false)? == expected, "{form}");
        if form == "bare" {
            let message = control_refusal("sd21", &path)?;
            assert!(message.contains("Stable Diffusion") && message.contains("other sizes"), "{message}");
        }
    }
    assert!(controlled(&golden("models/controlnet"), true)? != expected);
    Ok(())
}

/// The authors' code numbers the blocks of a full adapter in a row; see diffusers' `convert_original_t2i_adapter.py`.
#[test]
fn t2i_adapters_in_one_file() -> TestResult {
    let folder = tempfile::tempdir()?;
    for name in ["t2i-full", "t2i-light"] {
        let expected = controlled(&golden("models").join(name), false)?;
        let original = |tensor: &str| {
            let tensor = tensor.trim_start_matches("adapter.");
            match name {
                // One residual block at each resolution, so the numbers are those of the resolutions.
                "t2i-full" => tensor.replace("resnets.0.", ""),
                _ => tensor.replace("resnets.", "body."),
            }
        };
        let diffusers = renamed_control(folder.path(), name, str::to_owned)?;
        assert!(controlled(&diffusers, false)? == expected, "{name}");
        let authors = renamed_control(folder.path(), name, original)?;
        assert!(controlled(&authors, false)? == expected, "{name}");
    }
    Ok(())
}

/// Guess mode is told by ControlNets alone; that it does nothing else is said, and not written into pictures.
#[test]
fn guess_mode_without_a_control_net_is_warned_of() -> TestResult {
    let settled = |models: &[&str]| -> TestResult<_> {
        let builder = LatentDiffusion::builder().model_folder(golden("models/sd15"));
        let builder = models.iter().fold(builder, |builder, name| builder.control(golden("models").join(name)));
        let image = Photo::read(&golden("cases/control-guess/control.0.png"))?;
        let control = ControlImage { guess: true, ..ControlImage::new(image) };
        let controls = vec![control; models.len()];
        let request = TextToImageRequest { prompt: "a bridge".into(), controls, ..TextToImageRequest::default() };
        let settings = builder.build()?.settle(&request)?;
        let guesses: Vec<bool> = settings.controls.iter().map(|control| control.strength.guess).collect();
        Ok((guesses, settings.warnings.iter().any(|warning| warning.contains("guess"))))
    };
    assert_eq!(settled(&["t2i-full"])?, (vec![false], true));
    assert_eq!(settled(&["t2i-full", "controlnet"])?, (vec![false, true], false));
    Ok(())
}

/// A ControlNet that pools adds the mean over all places of what it would add.
#[test]
fn a_control_model_that_pools_adds_means() -> TestResult {
    let field = |json: &mut Value| json["global_pool_conditions"] = true.into();
    let pooling = changed_control("controlnet", field, |_| Ok(()))?;
    let residuals = |path: &Path| -> TestResult<Vec<Tensor>> {
        let denoise =
            LatentDiffusion::builder().model_folder(golden("models/sd15")).control(path).build()?.denoise()?;
        let ControlModel::ControlNet(model) = &denoise.controls()[0] else {
            return Err("no ControlNet".into());
        };
        let mut generator = TorchGenerator::new(8);
        let mut random =
            |shape: &[usize]| Tensor::from_vec(generator.normal(shape.iter().product()), shape, &Device::Cpu);
        let (x, picture) = (random(&[1, 4, 8, 8])?, model.embed(&random(&[1, 3, 64, 64])?)?);
        let width = model.config().encoder.cross_attention_dim[0];
        let text = Conditioning::text(random(&[1, 7, width])?);
        let strength = Strength { scale: 0.5, guess: false };
        let (level, cache) = (NoiseLevel::from_sigma(400.0, 1.0), Cache::default());
        let out = model.forward(&Call::new(&x, level, &text, &cache), &picture, strength)?;
        Ok(out.down.into_iter().chain(out.mid).collect())
    };
    let (plain, pooled) = (residuals(&golden("models/controlnet"))?, residuals(pooling.path())?);
    for (plain, pooled) in plain.iter().zip(&pooled) {
        let mean = plain.flatten(2, 3)?.mean(2)?.unsqueeze(2)?.unsqueeze(3)?;
        let error = largest(&pooled.broadcast_sub(&mean)?)? / largest(&mean)?;
        // The same sum in another order.
        assert!(error < 1e-5, "{error}");
    }
    assert_eq!(plain.len(), pooled.len());
    Ok(())
}
