//! Adapters: what they make of weights, and files that are damaged or belong elsewhere.

mod cases;

use candle_core::{DType, Device, Tensor};
use cases::{TestResult, roots};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use tweedie::NoiseLevel;
use tweedie::adapters::{Loras, TextualInversion};
use tweedie::checkpoints::{ModelFiles, SingleFile};
use tweedie::conditioning::Conditioning;
use tweedie::config::ConfigFields;
use tweedie::denoising::{Cache, Call};
use tweedie::families::{Family, SDXL};
use tweedie::images::Photo;
use tweedie::kernels::MatmulPrecision;
use tweedie::layers::{Backend, Computation, Weight, WeightSource};
use tweedie::models::{ControlModel, Strength, UNet2DConditionConfig};
use tweedie::noise::TorchGenerator;
use tweedie::text::{Tokenizer, weighted_chunks};
use tweedie_pipelines::{
    Adapters, ControlImage, DeviceChoice, EmbeddingChoice, LatentDiffusion, LoraChoice, Model, TaskKind,
    TextToImageRequest, Usage,
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

fn largest(x: &Tensor) -> TestResult<f32> {
    Ok(x.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar()?)
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

fn golden(name: &str) -> PathBuf {
    roots()[0].join(name)
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

/// A file of tensors of ones in a folder of its own, read as an embedding.
fn embedding(tensors: &[(&str, &[usize])], token: Option<&str>) -> TestResult<TextualInversion> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("my word.safetensors");
    let ones = tensors
        .iter()
        .map(|(name, shape)| Ok(((*name).to_owned(), Tensor::ones(*shape, DType::F32, &Device::Cpu)?)))
        .collect::<TestResult<HashMap<_, _>>>()?;
    candle_core::safetensors::save(&ones, &path)?;
    Ok(TextualInversion::read(&path, token)?)
}

#[test]
fn an_embedding_is_called_as_asked_or_as_its_file_says() -> TestResult {
    let token = |tensors: &[(&str, &[usize])], token| -> TestResult<String> {
        Ok(embedding(tensors, token)?.token().to_owned())
    };
    assert_eq!(token(&[("<thing>", &[2, 8])], None)?, "<thing>");
    assert_eq!(token(&[("<thing>", &[8])], Some("other"))?, "other");
    assert_eq!(token(&[("emb_params", &[2, 8])], None)?, "my word");
    for [l, g] in [["clip_l", "clip_g"], ["text_encoders_0", "text_encoders_1"]] {
        let both = embedding(&[(l, &[2, 8]), (g, &[2, 12])], None)?;
        assert_eq!((both.token(), both.encoders()), ("my word", 2));
    }
    // The original code calls every word `*` and has a dictionary around it; diffusers has its token.
    for (file, token) in [("thing.pt", "thing"), ("thing.ldm.pt", "thing.ldm"), ("thing.bin", "<thing>")] {
        let word = TextualInversion::read(&golden("models/embedding").join(file), None)?;
        assert_eq!((word.token(), word.encoders()), (token, 1), "{file}");
    }
    let refused = |tensors: &[(&str, &[usize])], part: &str| {
        let message = embedding(tensors, None).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(message.contains(part) && message.contains("my word.safetensors"), "{part}: {message}");
    };
    refused(&[("a", &[2, 8]), ("b", &[2, 8])], "2 tensors (a, b)");
    refused(&[("clip_l", &[2, 8]), ("clip_g", &[3, 12])], "different numbers");
    refused(&[("x", &[2, 2, 2])], "[2, 2, 2]");
    Ok(())
}

#[test]
fn the_token_of_a_textual_inversion_stands_for_all_its_tokens_in_any_syntax() -> TestResult {
    let mut tokenizer = Tokenizer::from_files(&ModelFiles::folder(&golden("models/sd15"))?, "tokenizer")?;
    let plain = tokenizer.encode_text("a cat")?;
    let ids = tokenizer.add_token("<thing>", 3)?;
    assert_eq!(ids, [ids[0], ids[0] + 1, ids[0] + 2], "the next that are free");
    assert_eq!(tokenizer.encode_text("a cat")?, plain);
    let with = tokenizer.encode_text("a <Thing> cat")?;
    assert_eq!(with, [&plain[..1], &ids, &plain[1..]].concat());
    assert_eq!(tokenizer.encode_text("<thing>_2")?, ids[2..]);
    let chunks = weighted_chunks(&tokenizer, "a (<thing>:1.5) cat")?;
    let weights: Vec<f32> = chunks[0].weights[1..].iter().take_while(|&&w| w == 1.5 || w == 1.0).copied().collect();
    assert_eq!(weights[..5], [1.0, 1.5, 1.5, 1.5, 1.0]);
    let again = tokenizer.add_token("<thing>", 1).map_err(|e| e.to_string());
    assert!(again.is_err_and(|message| message.contains("<thing>")));
    Ok(())
}

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
fn controlled(control: &Path, guess: bool) -> TestResult<Photo> {
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

/// An embedding's file that is cut off or changed anywhere gives an error or a word.
#[test]
fn damaged_embeddings_are_survived() -> TestResult {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("damaged.safetensors");
    let mut generator = TorchGenerator::new(2);
    let mut random = |below: usize| (generator.normal(1)[0].abs() * 1e6) as usize % below;
    let mut refused = 0;
    for i in 0..1200 {
        let whole = golden("models/embedding").join(["thing.safetensors", "thing.pt", "thing.ldm.pt"][i % 3]);
        let whole = std::fs::read(whole)?;
        let mut bytes = whole.clone();
        if i % 2 == 0 {
            bytes.truncate(random(whole.len()));
        } else {
            bytes[random(whole.len())] = random(256) as u8;
        }
        std::fs::write(&path, &bytes)?;
        if let Err(error) = TextualInversion::read(&path, None) {
            assert!(error.to_string().contains("damaged.safetensors"), "{error}");
            refused += 1;
        }
    }
    assert!(refused >= 600, "{refused}");
    Ok(())
}
