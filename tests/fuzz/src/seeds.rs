//! The inputs that fuzzing starts from, made of what the ordinary tests have.

use crate::parts::join;
use crate::readers::TestResult;
use crate::readers::runs::good_files;
use crate::targets::{CONFIGURATIONS, OF_PIXELS, golden, model};
use crate::torch_files::{checkpoint, text, view};
use candle_core::{DType, Device, Tensor};
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use tweedie::images::read_png_text;
use tweedie::text::clip_vocabulary;
use tweedie_pipelines::{LoraRequest, Options, TextToImageRequest};

/// Longer files are left out: few changes of them change what is read.
const LONGEST: usize = 32 << 10;

/// Writes a folder for each target.
///
/// # Errors
/// If a golden file cannot be read, or a seed cannot be written.
pub fn write_seeds(folder: &Path) -> TestResult {
    let run = good_files(tempfile::tempdir()?.path())?;
    let seeds = [
        ("safetensors", safetensors_files()?),
        ("torch", torch_files()?),
        ("gguf", vec![std::fs::read(golden("gguf/tensors.gguf"))?]),
        ("model_config", configurations()?),
        ("tokenizer", tokenizers()?),
        ("lora", loras()?),
        ("picture", pictures()?),
        ("idx", sets()?),
        ("run_folder", vec![join(&run)]),
        ("run_log", vec![run[1].clone(), br#"{"step": 1, "loss": {"generator": 0.5, "discriminator": 0}}"#.to_vec()]),
        ("prompt", prompts()?),
        ("request", requests()?),
        ("settings", settings()?),
    ];
    for (target, seeds) in seeds {
        let folder = folder.join(target);
        std::fs::create_dir_all(&folder)?;
        for (i, seed) in seeds.iter().filter(|seed| seed.len() <= LONGEST).enumerate() {
            std::fs::write(folder.join(format!("seed-{i:02}")), seed)?;
        }
    }
    Ok(())
}

fn tensors() -> TestResult<BTreeMap<String, Tensor>> {
    let tensor = |i: usize| Ok((format!("layer.{i}.weight"), Tensor::zeros((i + 1, 3), DType::F32, &Device::Cpu)?));
    (0..4).map(tensor).collect()
}

fn safetensors_files() -> TestResult<Vec<Vec<u8>>> {
    let stored = |name: &str, dtype: &str, shape: &[usize], ends: [usize; 2]| {
        json!({name: {"dtype": dtype, "shape": shape, "data_offsets": ends}}).to_string().into_bytes()
    };
    let model = "model.diffusion_model.input_blocks.0.0.weight";
    Ok(vec![
        safetensors::serialize(&tensors()?, None)?,
        stored("a", "F16", &[2, 3], [0, 12]),
        stored("a", "BF16", &[], [0, 2]),
        stored("b", "F8_E4M3", &[4], [0, 4]),
        stored("b", "I64", &[1], [0, 8]),
        stored(model, "F32", &[320, 4, 3, 1], [0, 15360]),
        json!({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F64", "shape": [2, 0], "data_offsets": [4, 4]}})
        .to_string()
        .into_bytes(),
    ])
}

/// Whole files, and pickles alone.
fn torch_files() -> TestResult<Vec<Vec<u8>>> {
    let mut pickle = b"\x80\x02}q\0(".to_vec();
    for i in 0..3u8 {
        text(&mut pickle, &format!("layer.{i}"));
        view(&mut pickle, "0", 6, i, (&[1, 3], &[1, 2]));
    }
    pickle.extend(b"u.");
    let mut nested = b"\x80\x02}(X\x0a\0\0\0state_dict}".to_vec();
    text(&mut nested, "module.w");
    view(&mut nested, "1", 4, 0, (&[2, 2], &[2, 1]));
    nested.extend(b"sX\x0b\0\0\0global_stepK\x07u.");
    Ok(vec![checkpoint(&tensors()?)?, pickle, nested, b"\x80\x04\x95\x08\0\0\0\0\0\0\0]\x94(K\x01K\x02e.".to_vec()])
}

/// Each configuration of a golden model alone.
fn configurations() -> TestResult<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    let models = [("sd15", &CONFIGURATIONS[..], 0), ("pixel28", &OF_PIXELS[..], CONFIGURATIONS.len())];
    for (model, names, first) in models {
        for (i, name) in names.iter().enumerate() {
            let mut parts = vec![Vec::new(); first + i];
            parts.push(std::fs::read(golden("models").join(model).join(name))?);
            seeds.push(join(&parts));
        }
    }
    Ok(seeds)
}

/// A vocabulary with few merges in both forms.
fn tokenizers() -> TestResult<Vec<Vec<u8>>> {
    const MERGES: usize = 12;
    let merges = std::fs::read_to_string(golden("models/sd15/tokenizer/merges.txt"))?;
    let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with('#')).take(MERGES).collect();
    let vocabulary = clip_vocabulary(&merges.join("\n"));
    let vocab: Value = vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), id)).collect();
    let mut json: Value = serde_json::from_slice(&std::fs::read(golden("tokenizer/json/tokenizer.json"))?)?;
    for token in json["added_tokens"].as_array_mut().into_iter().flatten() {
        token["id"] = token["content"].as_str().map_or(Value::Null, |content| vocab[content].clone());
    }
    json["model"]["vocab"] = vocab.clone();
    json["model"]["merges"] = merges.iter().map(|merge| merge.split(' ').collect::<Vec<_>>()).collect();
    Ok(vec![json.to_string().into_bytes(), join(&[vocab.to_string(), merges.join("\n")])])
}

/// The names in the golden files of adapters, and those files that are short.
fn loras() -> TestResult<Vec<Vec<u8>>> {
    let mut seeds = Vec::new();
    let mut folders = vec![golden("models/lora"), golden("models/embedding")];
    folders.extend(std::fs::read_dir(golden("adapters"))?.flatten().map(|entry| entry.path()));
    folders.sort();
    for file in folders.iter().flat_map(std::fs::read_dir).flatten().flatten().map(|entry| entry.path()) {
        if !file.extension().is_some_and(|ending| ending == "safetensors") {
            continue;
        }
        let bytes = std::fs::read(&file)?;
        let shape = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
        let tensors: BTreeMap<_, _> = header.tensors().into_iter().collect();
        let names = tensors.iter().take(12).map(|(name, info)| format!("{name} {}\n", shape(&info.shape)));
        seeds.push(names.collect::<String>().into_bytes());
        if bytes.len() < 4096 {
            seeds.push(bytes);
        }
    }
    Ok(seeds)
}

fn pictures() -> TestResult<Vec<Vec<u8>>> {
    let mut files: Vec<_> = std::fs::read_dir(golden("pictures/files"))?.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| !path.to_string_lossy().contains("expected"));
    files.sort();
    Ok(files.iter().map(std::fs::read).collect::<Result<_, _>>()?)
}

fn sets() -> TestResult<Vec<Vec<u8>>> {
    let images = [&[0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 4, 0, 0, 0, 4][..], &[7; 80]].concat();
    let labels = [&[0, 0, 8, 1, 0, 0, 0, 5][..], &[0, 1, 2, 1, 0]].concat();
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).and_then(|()| encoder.finish())
    };
    Ok(vec![join(&[images.clone(), labels.clone()]), join(&[gzip(&images)?, gzip(&labels)?])])
}

fn prompts() -> TestResult<Vec<Vec<u8>>> {
    let all: Value = serde_json::from_slice(&std::fs::read(golden("tokenizer/prompts.json"))?)?;
    let mut prompts = Vec::new();
    texts(&all, &mut prompts);
    prompts.truncate(60);
    prompts.push(
        "a (fluffy:1.3) [cat] (((and))) a \\(dog\\) BREAK on <lora:ink:0.8> AND a {hill}, 日本, [a:b:0.5], [c|d]"
            .into(),
    );
    Ok(prompts.into_iter().map(String::into_bytes).collect())
}

/// All texts in JSON.
fn texts(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::String(text) => found.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| texts(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| texts(value, found)),
        _ => {}
    }
}

/// A request in which little is at its default.
fn full_request() -> TextToImageRequest {
    TextToImageRequest {
        prompt: "a (red:1.2) fox".into(),
        negative_prompt: Some("blurry".into()),
        steps: Some(3),
        guidance_scale: Some(7.5),
        guidance_interval: Some((0.3, f64::INFINITY)),
        apg: Some(Default::default()),
        scheduler: Some("dpm++2m-karras".into()),
        timestep_spacing: Some("trailing".into()),
        prediction_type: Some("epsilon".into()),
        scheduler_config: json!({"beta_start": 0.001}).as_object().cloned().unwrap_or_default(),
        seed: 7,
        width: Some(64),
        height: Some(64),
        num_images: 2,
        clip_skip: 1,
        loras: vec![LoraRequest { name: "ink.safetensors".into(), weight: -0.5 }],
        ..TextToImageRequest::default()
    }
}

fn requests() -> TestResult<Vec<Vec<u8>>> {
    let alone = |name: &str, value: Value| json!({"prompt": "a fox", name: value}).to_string().into_bytes();
    let full = Value::from(full_request().write()).to_string().into_bytes();
    let inpaint = json!({"mask_resize": "max", "outpaint": {"left": 8}, "composite": false, "resample": 2});
    let options = ["7", "left=64,top=32", "0.3,5", "512x768", "random", "1,2,3"].map(|text| text.as_bytes().to_vec());
    let mut seeds = vec![
        full,
        alone("timesteps", json!([900, 500.5, 10])),
        alone("sigmas", json!([14.6, 3, 0.5, 0])),
        alone("strength", json!(0.3)),
        alone("inpaint", inpaint),
        alone("classes", json!([1, 2])),
        alone("xl", json!({"prompt_2": "oil", "sizes": {"target": [64, 64]}})),
    ];
    let schedulers = ["ddim", "euler-a", "unipc", "lms-exponential", "edm-euler", "flow-euler", "tcd", "pndm", "ddpm"];
    seeds.extend(schedulers.map(|name| alone("scheduler", name.into())));
    seeds.extend(options);
    Ok(seeds)
}

/// The settings of the golden model's pictures, and those in pictures of older versions, also as other programs write them.
fn settings() -> TestResult<Vec<Vec<u8>>> {
    let model = model()?;
    let request = TextToImageRequest { loras: Vec::new(), ..full_request() };
    let plain = TextToImageRequest { prompt: "a fox".into(), ..TextToImageRequest::default() };
    let json = |request: &TextToImageRequest| -> TestResult<_> { Ok(model.record(&model.settle(request)?).json(7)) };
    let (full, mut adapted) = (json(&request)?, json(&plain)?);
    adapted["loras"] = json!([{"name": "ink", "weight": 0.5, "sha256": "00", "applied": "beside"}]);
    adapted["embeddings"] = json!([{"name": "thing", "token": "<thing>", "sha256": "00"}]);
    adapted["controls"] = json!([{"name": "edges", "scale": 1.0, "start": 0.0, "end": 1.0, "image": {"sha256": "00"}}]);
    let mut repainted = json(&plain)?;
    repainted["kind"] = "inpaint".into();
    repainted["strength"] = 0.5.into();
    let mut seeds: Vec<_> = [full, json(&plain)?, adapted, repainted].map(|seed| seed.to_string().into_bytes()).into();
    let mut pictures: Vec<_> = std::fs::read_dir(golden("../../pipelines/tests/pictures"))?.flatten().collect();
    pictures.sort_by_key(|entry| entry.path());
    for picture in pictures.into_iter().map(|entry| entry.path()) {
        // What is no PNG file has no settings.
        let texts = read_png_text(&std::fs::read(&picture)?, &picture).unwrap_or_default();
        seeds.extend(texts.into_iter().map(|text| text.text.into_bytes()));
    }
    Ok(seeds)
}
