//! LoRAs and their relatives.

use super::cases::{TestResult, roots};
use super::{golden, largest};
use candle_core::{DType, Device, Tensor};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tweedie::adapters::Loras;
use tweedie::families::{Family, SDXL};
use tweedie::images::Photo;
use tweedie::kernels::MatmulPrecision;
use tweedie::layers::{Backend, Computation, Weight, WeightSource};
use tweedie::noise::TorchGenerator;
use tweedie_pipelines::{
    Adapters, DeviceChoice, EmbeddingChoice, LatentDiffusion, LoraChoice, Model, TextToImageRequest,
};

/// Weights in memory.
struct Stored {
    tensors: HashMap<String, Tensor>,
    dtype: DType,
}

impl Stored {
    fn open(path: &Path) -> TestResult<Self> {
        Ok(Self { tensors: candle_core::safetensors::load(path, &Device::Cpu)?, dtype: DType::F32 })
    }
}

impl WeightSource for Stored {
    fn tensor(&self, name: &str, shape: &[usize]) -> tweedie::Result<Tensor> {
        Ok(self.tensors[name].reshape(shape)?.to_dtype(self.dtype)?)
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }
}

/// Every weight of `stored`, through the LoRAs.
fn merged(loras: Loras, stored: &Stored) -> TestResult<HashMap<String, Tensor>> {
    Ok(merged_with_warnings(loras, stored)?.0)
}

/// The same, with what of the files had no effect.
fn merged_with_warnings(loras: Loras, stored: &Stored) -> TestResult<(HashMap<String, Tensor>, Vec<String>)> {
    let source = loras.over("unet", stored);
    let through = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), source.tensor(name, tensor.dims())?));
    let all = stored.tensors.iter().map(through).collect::<TestResult<_>>()?;
    let warnings = loras.finish("a test's model")?;
    Ok((all, warnings))
}

/// Every weight of `stored`, with the LoRAs beside it.
fn adapted(loras: Loras, stored: &Stored) -> TestResult<Vec<Weight>> {
    let source = loras.beside("unet", stored);
    let computation = Computation { backend: Backend::Kernels, products: MatmulPrecision::Full };
    let weights = stored.tensors.iter().filter(|(_, tensor)| tensor.rank() >= 2);
    let all =
        weights.map(|(name, tensor)| source.weight(name, tensor.dims(), computation)).collect::<Result<_, _>>()?;
    loras.finish("a test's model")?;
    Ok(all)
}

#[test]
fn golden_weights_with_adapters_in_them() -> TestResult {
    let mut ran = 0;
    for root in roots() {
        let Ok(entries) = std::fs::read_dir(root.join("adapters")) else { continue };
        for folder in entries.map(|entry| entry.map(|entry| entry.path())) {
            let folder = folder?;
            let Ok(text) = std::fs::read_to_string(folder.join("case.json")) else { continue };
            let json: Value = serde_json::from_str(&text)?;
            let weights: Vec<f64> =
                json["weights"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
            for form in ["safetensors", "pt", "old.pt"] {
                let files: Vec<PathBuf> = (0..weights.len()).map(|i| folder.join(format!("lora.{i}.{form}"))).collect();
                // Some are there as PyTorch's pickles too.
                if form != "safetensors" && !files[0].exists() {
                    continue;
                }
                let loras =
                    Loras::open(files.iter().map(PathBuf::as_path).zip(weights.iter().copied()), &SDXL.lora_target(2))?;
                let got = merged(loras, &Stored::open(&root.join("adapters/base.safetensors"))?)?;
                for (name, want) in candle_core::safetensors::load(folder.join("merged.safetensors"), &Device::Cpu)? {
                    let error = largest(&(&got[&name] - &want)?)? / largest(&want)?;
                    // Sums of tens of products in f32, in another order.
                    assert!(error < 2e-6, "{}: {form}: {name} differs by {error:.1e}", folder.display());
                }
                ran += 1;
            }
        }
    }
    assert!(ran >= 18, "{ran} cases");
    Ok(())
}

/// A LoRA of rank 2 for a module of the test's model, in a file of its own.
fn write_lora(folder: &Path, tensors: &[(&str, &[usize])]) -> TestResult<PathBuf> {
    let mut generator = TorchGenerator::new(5);
    let tensors = tensors.iter().map(|(name, shape)| {
        let values = generator.normal(shape.iter().product());
        Ok(((*name).to_owned(), Tensor::from_vec(values, *shape, &Device::Cpu)?))
    });
    let path = folder.join("test.safetensors");
    candle_core::safetensors::save(&tensors.collect::<TestResult<HashMap<_, _>>>()?, &path)?;
    Ok(path)
}

const DOWN: &str = "lora_unet_down_blocks_0_linear.lora_down.weight";
const UP: &str = "lora_unet_down_blocks_0_linear.lora_up.weight";

/// The message that a LoRA of these tensors ends in.
fn refusal(tensors: &[(&str, &[usize])]) -> TestResult<String> {
    let folder = tempfile::tempdir()?;
    let path = write_lora(folder.path(), tensors)?;
    let outcome = Loras::open([(path.as_path(), 1.0)], &SDXL.lora_target(2))
        .map_err(Into::into)
        .and_then(|loras| merged(loras, &Stored::open(&golden("adapters/base.safetensors"))?));
    Ok(outcome.err().ok_or("it was taken")?.to_string())
}

#[test]
fn what_does_not_fit_is_named() -> TestResult {
    let says = |tensors: &[(&str, &[usize])], parts: &[&str]| -> TestResult {
        let message = refusal(tensors)?;
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        Ok(())
    };
    says(&[(DOWN, &[2, 11]), (UP, &[12, 2])], &[DOWN, "[2, 11]", "[12, 10]"])?;
    says(&[(DOWN, &[2, 10]), (UP, &[12, 3])], &[UP, "[12, 3]"])?;
    says(&[(DOWN, &[2, 10]), (UP, &[12])], &[UP, "[12]"])?;
    says(&[(DOWN, &[2, 10])], &["Up", "is missing", DOWN])?;
    let kronecker = "lora_unet_down_blocks_0_linear.lokr_w1_a";
    says(&[(kronecker, &[5, 1]), ("lora_unet_down_blocks_0_linear.lokr_w1_b", &[1, 5])], &[kronecker, "5x5"])?;
    says(&[("lora_unet_conv_in.oft_blocks", &[2, 2])], &["OFT", "not supported", "LoHa"])?;
    let glora: [(&str, &[usize]); 3] =
        [("lora_unet_a.alpha", &[]), ("lora_unet_a.a1.weight", &[2, 2]), ("lora_unet_a.b2.weight", &[2, 2])];
    says(&glora, &["lora_unet_a.a1.weight is GLoRA, which is not supported"])?;
    says(&[("lora_unet_a.alpha", &[])], &["lora_unet_a.alpha is no part of a LoRA"])?;
    says(&[("cond_stage_model.weight", &[2, 2])], &["cond_stage_model.weight", "`model`"])?;
    says(
        &[(ELSEWHERE, &[2, 8]), (OF_XL, &[2, 2048])],
        &["2 of its 2 weights", "a test's model", "Stable Diffusion XL"],
    )?;
    let folder =
        Loras::open([(golden("adapters").as_path(), 1.0)], &SDXL.lora_target(2)).err().ok_or("a folder")?.to_string();
    assert!(folder.contains("is a folder; give the file in it"), "{folder}");
    let twice = "unet.down_blocks.0.linear.lora_A.weight";
    says(&[(DOWN, &[2, 10]), (twice, &[2, 10]), (UP, &[12, 2])], &[twice, DOWN, "keep one"])?;
    Ok(())
}

const ELSEWHERE: &str = "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight";
const OF_XL: &str = "lora_unet_down_blocks_0_attn2_to_k.lora_down.weight";

/// A file that is of use is used, and one warning, always the same, says what of it is not.
#[test]
fn what_has_no_effect_is_told_and_the_rest_is_used() -> TestResult {
    let folder = tempfile::tempdir()?;
    let stored = Stored::open(&golden("adapters/base.safetensors"))?;
    let of_use: [(&str, &[usize]); 2] = [(DOWN, &[2, 10]), (UP, &[12, 2])];
    let used = |more: &[(&str, &[usize])]| -> TestResult<(Tensor, Vec<String>)> {
        let path = write_lora(folder.path(), &[&of_use[..], more].concat())?;
        let loras = Loras::open([(path.as_path(), 1.0)], &SDXL.lora_target(2))?;
        let (mut tensors, warnings) = merged_with_warnings(loras, &stored)?;
        Ok((tensors.remove("down_blocks.0.linear.weight").ok_or("no weight")?, warnings))
    };
    let (alone, warnings) = used(&[])?;
    assert!(warnings.is_empty(), "{warnings:?}");
    let unknown: [(&str, &[usize]); 6] = [
        (OF_XL, &[2, 2048]),
        (ELSEWHERE, &[2, 8]),
        ("z.something", &[1]),
        ("a.something", &[1]),
        ("lora_unet_conv_in.oft_blocks", &[2, 2]),
        ("lora_unet_conv_in.a1.weight", &[2, 2]),
    ];
    for _ in 0..5 {
        let (weight, warnings) = used(&unknown)?;
        assert_eq!(largest(&(&weight - &alone)?)?, 0.0);
        let file = folder.path().join("test.safetensors");
        let expected = format!(
            "a part of the LoRA {} has no effect: 2 of its 3 weights are not in this model, which is a test's model: first \
             {ELSEWHERE}; take a LoRA for this model (this one is for Stable Diffusion XL); 2 of its tensors are no part of a \
             LoRA: first a.something; 1 of its tensors are GLoRA, which is not supported: first lora_unet_conv_in.a1.weight; 1 \
             of its tensors are OFT, which is not supported: first lora_unet_conv_in.oft_blocks",
            file.display()
        );
        assert_eq!(warnings, [expected]);
    }
    Ok(())
}

/// Biases, norms, and IA3's factors of what goes in or comes out.
#[test]
fn vectors_change_and_multiply_weights() -> TestResult {
    const WEIGHT: &str = "down_blocks.0.linear.weight";
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("lora.safetensors");
    let numbers = |count: usize, seed: u32| -> TestResult<Tensor> {
        let values = TorchGenerator::new(seed.into()).normal(count);
        Ok(Tensor::from_vec(values, count, &Device::Cpu)?)
    };
    let mut stored = Stored::open(&golden("adapters/base.safetensors"))?;
    for (i, name) in
        ["down_blocks.0.linear.bias", "down_blocks.0.norm.weight", "down_blocks.0.norm.bias"].iter().enumerate()
    {
        stored.tensors.insert((*name).into(), numbers(12, i as u32)?);
    }
    let through = |file: HashMap<String, Tensor>, beside: bool| -> TestResult<HashMap<String, Tensor>> {
        candle_core::safetensors::save(&file, &path)?;
        let loras = Loras::open([(path.as_path(), 0.5)], &SDXL.lora_target(2))?;
        if !beside {
            return merged(loras, &stored);
        }
        let vectors = stored.tensors.iter().filter(|(_, tensor)| tensor.rank() == 1);
        let source = loras.beside("unet", &stored);
        vectors.map(|(name, tensor)| Ok((name.clone(), source.tensor(name, tensor.dims())?))).collect()
    };
    let near = |got: &Tensor, want: &Tensor| -> TestResult {
        let error = largest(&(got - want)?)?;
        assert!(error < 1e-6, "{error:.1e}");
        Ok(())
    };

    let changes = HashMap::from([
        ("lora_unet_down_blocks_0_linear.diff_b".to_owned(), numbers(12, 7)?),
        ("lora_unet_down_blocks_0_norm.w_norm".to_owned(), numbers(12, 8)?),
        ("lora_unet_down_blocks_0_norm.b_norm".to_owned(), numbers(12, 9)?),
    ]);
    for beside in [false, true] {
        let got = through(changes.clone(), beside)?;
        for (name, seed) in [("linear.bias", 7), ("norm.weight", 8), ("norm.bias", 9)] {
            let name = format!("down_blocks.0.{name}");
            near(&got[&name], &(&stored.tensors[&name] + (numbers(12, seed)? * 0.5)?)?)?;
        }
    }
    let short = HashMap::from([("lora_unet_down_blocks_0_linear.diff_b".to_owned(), numbers(11, 7)?)]);
    let message = through(short, false).err().ok_or("it was taken")?.to_string();
    assert!(message.contains("diff_b has shape [11], needed 12 values"), "{message}");

    for on_input in [false, true] {
        let factors = numbers(if on_input { 10 } else { 12 }, 3)?;
        let file = HashMap::from([
            ("lora_unet_down_blocks_0_linear.weight".to_owned(), factors.clone()),
            ("lora_unet_down_blocks_0_linear.on_input".to_owned(), Tensor::new(u8::from(on_input), &Device::Cpu)?),
        ]);
        let base = &stored.tensors[WEIGHT];
        let factors = factors.reshape(if on_input { (1, 10) } else { (12, 1) })?;
        near(&through(file, false)?[WEIGHT], &(base + base.broadcast_mul(&(factors * 0.5)?)?)?)?;
    }
    Ok(())
}

/// OneTrainer puts the words that it trained with a LoRA into the LoRA's file.
#[test]
fn words_come_with_a_lora() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("lora.safetensors");
    let mut tensors = candle_core::safetensors::load(golden("models/lora/kohya.safetensors"), &Device::Cpu)?;
    let alone = candle_core::safetensors::load(golden("models/embedding/thing.safetensors"), &Device::Cpu)?;
    let vectors = alone.into_values().next().ok_or("no vectors")?;
    tensors.insert("bundle_emb.my word.string_to_param.*".into(), vectors.clone());
    candle_core::safetensors::save(&tensors, &path)?;

    let picture = |lora: &Path, word: Option<&Path>| -> TestResult<Photo> {
        let loras = vec![LoraChoice { path: lora.into(), weight: 1.0 }];
        let embeddings = word.iter().map(|path| EmbeddingChoice { path: path.into(), token: None }).collect();
        let builder = LatentDiffusion::builder().model(Model::Folder(golden("models/sd15"))).device(DeviceChoice::Cpu);
        let model = builder.adapters(Adapters { loras, embeddings, ..Adapters::default() }).build()?;
        let request =
            TextToImageRequest { steps: Some(2), seed: 3, prompt: "a photo of my word".into(), ..Default::default() };
        let mut generated = model.generate(&request)?;
        assert!(generated.warnings.is_empty(), "{:?}", generated.warnings);
        let other = model.generate(&TextToImageRequest { prompt: "a photo".into(), ..request })?;
        // Nobody asked for a word that came with a LoRA.
        assert_eq!(other.warnings.len(), word.iter().count(), "{:?}", other.warnings);
        Ok(generated.pictures.remove(0))
    };
    let kohya = golden("models/lora/kohya.safetensors");
    let word = folder.path().join("my word.safetensors");
    candle_core::safetensors::save(&HashMap::from([("emb_params", vectors)]), &word)?;
    let apart = picture(&kohya, Some(&word))?;
    assert!(picture(&path, None)?.samples() == apart.samples());
    assert!(picture(&kohya, None)?.samples() != apart.samples());
    // Given by itself too, it is one word.
    assert!(picture(&path, Some(&word))?.samples() == apart.samples());
    Ok(())
}

/// What a merged weight is, where the type of storage and what was asked of products are these.
fn merged_weight(dtype: DType, products: MatmulPrecision) -> TestResult<(DType, Tensor, Tensor)> {
    const NAME: &str = "down_blocks.0.linear.weight";
    let folder = tempfile::tempdir()?;
    let path = write_lora(folder.path(), &[(DOWN, &[2, 10]), (UP, &[12, 2])])?;
    let mut stored = Stored::open(&golden("adapters/base.safetensors"))?;
    let base = stored.tensors[NAME].to_dtype(dtype)?.to_dtype(DType::F32)?;
    stored.dtype = dtype;
    let loras = Loras::open([(path.as_path(), 0.5)], &SDXL.lora_target(2))?;
    let computation = Computation { backend: Backend::Kernels, products };
    let weight = loras.over("unet", &stored).weight(NAME, &[12, 10], computation)?;
    loras.finish("a test's model")?;
    let file = candle_core::safetensors::load(&path, &Device::Cpu)?;
    let want = (base + (file[UP].matmul(&file[DOWN])? * 0.5)?)?;
    Ok((weight.form().dtype(), weight.form().to_dense()?.to_dtype(DType::F32)?, want))
}

/// Rounding a merged weight to half precision would move pictures for nothing, unless products round it anyway. That follows from
/// what was asked for, whatever this machine has instructions for.
#[test]
fn a_merged_weight_is_rounded_where_products_are_and_only_there() -> TestResult {
    for stored in [DType::F32, DType::F16, DType::BF16] {
        for products in [MatmulPrecision::Full, MatmulPrecision::Bf16] {
            let rounded = products == MatmulPrecision::Bf16 && stored == DType::BF16;
            let (dtype, got, want) = merged_weight(stored, products)?;
            assert_eq!(dtype, if rounded { DType::BF16 } else { DType::F32 }, "{stored:?} {products:?}");
            // Eight bits of a bf16 number are kept, so half of the ninth is lost at most.
            let tolerance = if rounded { largest(&want)? / 256.0 } else { 1e-6 };
            assert!(largest(&(got - &want)?)? <= tolerance, "{stored:?} {products:?}");
        }
    }
    Ok(())
}

/// As a tensor, a merged weight is in f32: nothing is known of the products.
#[test]
fn what_no_lora_touches_stays_as_it_is_stored() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = write_lora(folder.path(), &[(DOWN, &[2, 10]), (UP, &[12, 2])])?;
    let mut stored = Stored::open(&golden("adapters/base.safetensors"))?;
    stored.dtype = DType::F16;
    let got = merged(Loras::open([(path.as_path(), 0.5)], &SDXL.lora_target(2))?, &stored)?;
    assert_eq!(got["down_blocks.0.linear.weight"].dtype(), DType::F32);
    assert_eq!(got["down_blocks.0.conv.weight"].dtype(), DType::F16);
    Ok(())
}

/// Files that are cut off or changed anywhere give an error or a result, in little memory.
#[test]
fn damaged_files_are_survived() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("damaged.safetensors");
    let stored = Stored::open(&golden("adapters/base.safetensors"))?;
    let mut generator = TorchGenerator::new(1);
    let mut random = |below: usize| (generator.normal(1)[0].abs() * 1e6) as usize % below.max(1);
    let (mut refused, mut taken) = (0, 0);
    for name in ["lokr-conv/lora.0", "loha-conv/lora.0", "dora/lora.0", "locon-mid/lora.0"] {
        let whole = std::fs::read(golden(&format!("adapters/{name}.safetensors")))?;
        let header = u64::from_le_bytes(whole[..8].try_into()?) as usize + 8;
        for i in 0..400 {
            let mut bytes = whole.clone();
            match i % 4 {
                0 => bytes.truncate(random(whole.len())),
                // A digit of a shape or an offset, a letter of a name, the length itself.
                1 | 2 => bytes[random(header)] = b"0123456789ab,]}\"\xff"[random(17)],
                _ => bytes[random(whole.len())] ^= 1 << random(8),
            }
            std::fs::write(&path, &bytes)?;
            let open = || Loras::open([(path.as_path(), 1.0)], &SDXL.lora_target(2)).map_err(Into::into);
            let merged = open().and_then(|loras| merged(loras, &stored).map(drop));
            let beside = open().and_then(|loras| adapted(loras, &stored).map(drop));
            if merged.is_ok() {
                taken += 1
            } else {
                refused += 1
            }
            for error in [merged, beside].into_iter().filter_map(Result::err) {
                assert!(error.to_string().contains("damaged.safetensors"), "{error}");
            }
        }
    }
    // Every truncation is refused, and a change of a value is not noticed.
    assert!(refused >= 400 && taken > 0, "{refused} {taken}");
    Ok(())
}
