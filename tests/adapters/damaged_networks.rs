//! Networks in one file whose tensors are not what they should be.

use super::cases::TestResult;
use super::control_models::controlled;
use super::golden;
use candle_core::{DType, Device, Tensor};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use tweedie::checkpoints::SingleFile;
use tweedie::config::ConfigFields;
use tweedie::images::Photo;
use tweedie::models::UNet2DConditionConfig;
use tweedie::noise::TorchGenerator;
use tweedie_pipelines::{LatentDiffusion, Model, TextToImageRequest};

/// Whatever the header of such a file says, its configuration follows from it or is refused.
#[test]
fn damaged_headers_of_control_models_are_survived() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("damaged.safetensors");
    let fields = std::fs::read_to_string(golden("models/sd15/unet/config.json"))?;
    let fields = ConfigFields::from_json("unet", &fields, Path::new("config.json"))?;
    let unet = UNet2DConditionConfig::from_fields(&fields)?;
    let mut generator = TorchGenerator::new(4);
    let mut random = |below: usize| (generator.normal(1)[0].abs() * 1e6) as usize % below;
    let (mut refused, mut taken) = (0, 0);
    for name in ["controlnet", "t2i-full", "t2i-light", "taesd"] {
        let whole = std::fs::read(golden("models").join(name).join("diffusion_pytorch_model.safetensors"))?;
        let header = u64::from_le_bytes(whole[..8].try_into()?) as usize;
        // Changed digits alone would no longer fit the lengths, so whole names are exchanged too.
        let names: Vec<usize> = (8..header).filter(|&at| whole[at..].starts_with(b"_blocks.")).collect();
        for i in 0..200 {
            let mut bytes = whole.clone();
            match (i % 2, names.len()) {
                (1, count) if count > 0 => bytes[names[random(count)] + 1] = b"abcz"[random(4)],
                _ => bytes[8 + random(header)] = b"0123456789ab,]}.\"\xff"[random(18)],
            }
            std::fs::write(&path, &bytes)?;
            match SingleFile::open(&path).and_then(|file| Ok((file.tiny_autoencoder()?, file.control_config(&unet)?))) {
                Ok(_) => taken += 1,
                Err(error) => {
                    assert!(error.to_string().contains("damaged.safetensors"), "{error}");
                    refused += 1;
                }
            }
        }
    }
    // A tiny autoencoder is no control model.
    assert!(refused >= 200 && taken > 50, "{refused} {taken}");
    Ok(())
}

/// Layers of no channels: as many tensors as there should be, of shapes that fit each other, and no numbers in them.
#[test]
fn models_of_no_channels_are_refused() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("empty.safetensors");
    for name in ["controlnet", "t2i-full", "t2i-light", "taesd"] {
        let file = golden("models").join(name).join("diffusion_pytorch_model.safetensors");
        let whole = candle_core::safetensors::load(file, &Device::Cpu)?;
        let widths: BTreeSet<usize> = whole.values().flat_map(|tensor| tensor.dims().to_vec()).collect();
        for width in widths {
            let empty = whole.iter().map(|(name, tensor)| {
                let dims: Vec<usize> = tensor.dims().iter().map(|&n| if n == width { 0 } else { n }).collect();
                Ok((name.clone(), Tensor::zeros(dims, DType::F32, &Device::Cpu)?))
            });
            candle_core::safetensors::save(&empty.collect::<TestResult<HashMap<_, _>>>()?, &path)?;
            let made = if name == "taesd" { decoded(&path).map(drop) } else { controlled(&path, false).map(drop) };
            let message = made.err().ok_or_else(|| format!("{name} of no {width} made a picture"))?.to_string();
            assert!(message.contains("empty.safetensors"), "{name} of no {width}: {message}");
        }
    }
    Ok(())
}

/// The picture that an autoencoder makes of the small Stable Diffusion 1.x's latents.
fn decoded(vae: &Path) -> TestResult<Photo> {
    let builder =
        LatentDiffusion::builder().model_folder(golden("models/sd15")).vae(Some(Model::at(vae.into(), None)?));
    let request = TextToImageRequest { prompt: "a bridge".into(), steps: Some(1), ..TextToImageRequest::default() };
    Ok(builder.build()?.generate(&request)?.pictures.swap_remove(0))
}

/// A tiny autoencoder whose encoder ends early has another number of resolutions than its decoder.
#[test]
fn halves_of_different_depth_are_refused() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("halves.safetensors");
    let whole =
        candle_core::safetensors::load(golden("models/taesd/diffusion_pytorch_model.safetensors"), &Device::Cpu)?;
    let number = |name: &str| name.strip_prefix("encoder.layers.")?.split('.').next()?.parse::<usize>().ok();
    let last = whole.keys().filter_map(|name| number(name)).max().ok_or("no encoder")?;
    let (mut refused, mut taken) = (0, 0);
    for end in 0..=last {
        let kept = whole.iter().filter(|(name, _)| number(name).is_none_or(|number| number <= end));
        let kept: HashMap<_, _> = kept.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        candle_core::safetensors::save(&kept, &path)?;
        match SingleFile::open(&path)?.tiny_autoencoder() {
            Ok(config) => {
                let config = config.ok_or("no tiny autoencoder")?;
                assert_eq!(config.encoder_blocks.len(), config.decoder_blocks.len());
                taken += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("halves.safetensors"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && taken > 0, "{refused} {taken}");
    Ok(())
}
