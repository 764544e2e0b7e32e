//! How near pictures of rounded numbers are to those of f32, and what is the same in every format.

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;
use std::path::Path;
use std::process::Command;
use tweedie::NoiseLevel;
use tweedie::adapters::Loras;
use tweedie::checkpoints::{Checkpoint, ElementType, Held, ModelFiles, Precision};
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call, Network};
use tweedie::families::{Family, SD1};
use tweedie::images::{Photo, Picture};
use tweedie::kernels::{InstructionSet, MatmulPrecision};
use tweedie::layers::{WeightSource, Weights};
use tweedie::models::{UNet2DConditionConfig, UNet2DConditionModel};
use tweedie_pipelines::{Builder, DTypeChoice, LatentDiffusion, TextToImageRequest};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Peak signal-to-noise ratio in dB.
fn psnr(a: &Picture, b: &Picture) -> f64 {
    let squares: f64 = a.rgb().iter().zip(b.rgb()).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2)).sum();
    10.0 * (255.0 * 255.0 * a.rgb().len() as f64 / squares).log10()
}

fn pictures(builder: Builder) -> TestResult<Vec<Picture>> {
    let request = TextToImageRequest {
        prompt: "a fox on a blue background".into(),
        steps: Some(8),
        num_images: 2,
        ..TextToImageRequest::default()
    };
    Ok(builder.build()?.generate(&request)?.pictures.iter().map(Photo::to_picture).collect())
}

/// They were seen at 55 dB, those of weights in eight bits at 47, of weights in four bits at 29, and those of f16, which is what the
/// embedded weights are, at no difference. The bounds allow twice the error.
#[test]
fn pictures_of_rounded_numbers_are_near_those_of_f32() -> TestResult {
    let exact = pictures(LatentDiffusion::builder())?;
    let kinds = [
        ("weights in f16", LatentDiffusion::builder().dtype(DTypeChoice::F16), f64::INFINITY),
        ("weights in bf16", LatentDiffusion::builder().dtype(DTypeChoice::BF16).products(MatmulPrecision::Full), 50.0),
        ("products in bf16", LatentDiffusion::builder().products(MatmulPrecision::Bf16), 50.0),
        ("weights in eight bits", LatentDiffusion::builder().dtype(DTypeChoice::Q8), 38.0),
        ("weights in four bits", LatentDiffusion::builder().dtype(DTypeChoice::Q4), 22.0),
    ];
    for (name, builder, least) in kinds {
        for (i, (exact, rounded)) in exact.iter().zip(pictures(builder)?).enumerate() {
            let psnr = psnr(exact, &rounded);
            println!("{name}, picture {i}: {psnr:.1} dB");
            assert!(psnr >= least, "{name}, picture {i}: {psnr:.1} dB");
        }
    }
    Ok(())
}

/// The tensors of a file, each third one in f16, each third one in bf16.
fn save_mixed(from: &Path, to: &Path) -> TestResult {
    let mut tensors = candle_core::safetensors::load(from, &Device::Cpu)?;
    let mut names: Vec<_> = tensors.keys().cloned().collect();
    names.sort();
    for (name, dtype) in names.iter().zip([DType::F16, DType::BF16, DType::F32].into_iter().cycle()) {
        let stored = tensors[name].to_dtype(DType::F32)?.to_dtype(dtype)?;
        tensors.insert(name.clone(), stored);
    }
    Ok(candle_core::safetensors::save(&tensors, to)?)
}

/// The bits of what a UNet makes of a wave.
fn unet_output(files: &ModelFiles, keeps_halves: bool, lora: Option<&Path>) -> TestResult<Vec<u32>> {
    let name = "unet/config.json";
    let config = ConfigFields::from_json("unet", &files.read_text(name)?, &files.path(name))?;
    let config = UNet2DConditionConfig::from_fields(&config)?;
    let checkpoint = Checkpoint::open(files, "unet", Precision::Full, DType::F32, &Device::Cpu)?;
    let checkpoint = checkpoint.held(if keeps_halves { Held::AsStored } else { Held::AsAsked });
    for stored in checkpoint.stored().collect::<Vec<_>>() {
        let expected = match stored.dtype {
            ElementType::Plain(Dtype::F16) if keeps_halves => DType::F16,
            ElementType::Plain(Dtype::BF16) if keeps_halves => DType::BF16,
            _ => DType::F32,
        };
        assert_eq!(checkpoint.tensor(&stored.name, &stored.shape)?.dtype(), expected, "{}", stored.name);
    }
    let loras = Loras::open(lora.map(|path| (path, 0.8)), &SD1.lora_target(config.layers_per_block[0]))?;
    let merged = loras.over("unet", &checkpoint);
    let weights = Weights::new(&merged).with_products(MatmulPrecision::Full);
    let unet = UNet2DConditionModel::new(&weights, config.clone(), DType::F32)?;
    checkpoint.finish(&[])?;
    let wave = |shape: &[usize], step: f32| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| (i as f32 * step).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    };
    let text = Conditioning::text(wave(&[2, 77, config.cross_attention_dim[0]], 0.11)?);
    let x = wave(&[2, config.in_channels, 16, 16], 0.37)?;
    let level = NoiseLevel::from_sigma(500.0, 1.0);
    let output = unet.forward(&Call::new(&x, level, &text, &Cache::default()))?;
    Ok(output.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}

/// What `--dtype auto` does with large models where full products are faster, or asked for. Where a LoRA is merged into a weight, the sum is in f32.
#[test]
fn weights_that_stay_as_they_are_stored_change_no_bit() -> TestResult {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let folder = tempfile::tempdir()?;
    let unet = folder.path().join("unet");
    std::fs::create_dir(&unet)?;
    let given = golden.join("models/sd15/unet");
    std::fs::copy(given.join("config.json"), unet.join("config.json"))?;
    save_mixed(&given.join(WEIGHTS), &unet.join(WEIGHTS))?;
    let files = ModelFiles::folder(folder.path())?;
    let lora = golden.join("models/lora/kohya.safetensors");
    let plain = unet_output(&files, false, None)?;
    assert!(plain == unet_output(&files, true, None)?);
    let merged = unet_output(&files, false, Some(&lora))?;
    assert!(merged == unet_output(&files, true, Some(&lora))?);
    assert!(plain != merged);
    Ok(())
}

/// What was asked for is computed whatever the machine could do besides: on all its instruction sets, each in a process of its own.
#[test]
fn no_instruction_set_changes_what_formats_mean() -> TestResult {
    let used = InstructionSet::in_use();
    for set in InstructionSet::ALL.into_iter().filter(|&set| set <= InstructionSet::of_machine() && set != used) {
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["--exact", "weights_that_stay_as_they_are_stored_change_no_bit"]).env("TWEEDIE_ISA", set.name());
        let output = child.output()?;
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}
