//! The forms in which a model folder holds its weights.

mod tweedie;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use std::path::Path;
use tweedie::{TestResult, Tweedie, check_same_picture, copy_folder, golden, pixels, read_json};

const UNET: &str = "diffusion_pytorch_model.safetensors";

/// The golden model in the folder `model`.
fn model() -> TestResult<Tweedie> {
    let tweedie = Tweedie::new()?;
    copy_folder(&golden().join("models/sd15"), &tweedie.path("model"))?;
    Ok(tweedie)
}

/// The arguments of the golden case `sd15-ddim`.
const REQUEST: [&str; 17] = [
    "txt2img",
    "--model=model",
    "--prompt=a photograph of an astronaut riding a horse",
    "--negative-prompt=blurry, low quality",
    "--seed=42",
    "--steps=8",
    "--guidance-scale=7.5",
    "--width=64",
    "--height=64",
    "--scheduler=ddim",
    "--output=x.png",
    "--quiet",
    "--device=cpu",
    "--dtype=f32",
    "--num-images=1",
    "--batch-size=1",
    "--force",
];

fn check(tweedie: &Tweedie) -> TestResult {
    tweedie.run(&REQUEST)?.success()?;
    check_same_picture(&tweedie.path("x.png"), &golden().join("cases/sd15-ddim/expected.png"))
}

/// Splits a weight file in two with an index, as large models are published.
fn shard(folder: &Path, variant: &str) -> TestResult {
    let bytes = std::fs::read(folder.join(UNET))?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?.tensors();
    let (first, second) = tensors.split_at(tensors.len() / 3);
    let mut weight_map = Map::new();
    for (i, part) in [first, second].into_iter().enumerate() {
        let name = format!("diffusion_pytorch_model{variant}-0000{}-of-00002.safetensors", i + 1);
        let views = part.iter().map(|(name, view)| (name.clone(), view.clone()));
        std::fs::write(folder.join(&name), safetensors::serialize(views, None)?)?;
        weight_map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), Value::from(name.clone()))));
    }
    std::fs::remove_file(folder.join(UNET))?;
    let index = json!({"metadata": {"total_size": bytes.len()}, "weight_map": weight_map});
    Ok(std::fs::write(folder.join(format!("{UNET}.index{variant}.json")), index.to_string())?)
}

#[test]
fn shards_with_an_index() -> TestResult {
    for variant in ["", ".fp16"] {
        let tweedie = model()?;
        shard(&tweedie.path("model/unet"), variant)?;
        check(&tweedie)?;
    }
    Ok(())
}

#[test]
fn an_index_that_leads_elsewhere_or_nowhere_is_refused() -> TestResult {
    for (file, message) in [("../vae/x.safetensors", "leads out of the folder"), ("missing.safetensors", "cannot read")]
    {
        let tweedie = model()?;
        let unet = tweedie.path("model/unet");
        std::fs::remove_file(unet.join(UNET))?;
        let index = json!({"weight_map": {"conv_in.weight": file}});
        std::fs::write(unet.join(format!("{UNET}.index.json")), index.to_string())?;
        tweedie.run(&REQUEST)?.fails(1, &[message])?;
    }
    Ok(())
}

#[test]
fn a_half_precision_variant_serves_where_there_is_no_other() -> TestResult {
    let tweedie = model()?;
    let unet = tweedie.path("model/unet");
    std::fs::rename(unet.join(UNET), unet.join("diffusion_pytorch_model.fp16.safetensors"))?;
    let text = tweedie.path("model/text_encoder");
    std::fs::rename(text.join("model.safetensors"), text.join("model.fp16.safetensors"))?;
    check(&tweedie)
}

/// Weights of integers are none, even if they have the right names and shapes.
#[test]
fn weights_that_are_no_floats_are_named() -> TestResult {
    let tweedie = model()?;
    let path = tweedie.path("model/unet").join(UNET);
    let bytes = std::fs::read(&path)?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?.tensors();
    let views = tensors.into_iter().map(|(name, view)| {
        let dtype = if name == "conv_in.bias" { Dtype::I32 } else { view.dtype() };
        TensorView::new(dtype, view.shape().to_vec(), view.data()).map(|view| (name, view))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    std::fs::write(&path, safetensors::serialize(views, None)?)?;
    tweedie.run(&REQUEST)?.fails(1, &["1 tensor of a type that is no float (conv_in.bias: I32)"])
}

/// Buffers that old text encoders were saved with, and the nulls of a model index.
#[test]
fn what_is_no_weight_is_passed_over() -> TestResult {
    let tweedie = model()?;
    let path = tweedie.path("model/text_encoder/model.safetensors");
    let bytes = std::fs::read(&path)?;
    let mut tensors = safetensors::SafeTensors::deserialize(&bytes)?.tensors();
    let positions: Vec<u8> = (0..77i64).flat_map(i64::to_le_bytes).collect();
    let view = TensorView::new(Dtype::I64, vec![1, 77], &positions)?;
    tensors.push(("text_model.embeddings.position_ids".into(), view));
    std::fs::write(&path, safetensors::serialize(tensors, None)?)?;
    check(&tweedie)
}

fn run_with(tweedie: &Tweedie, more: &[&str]) -> TestResult {
    let mut arguments: Vec<&str> = REQUEST.iter().copied().filter(|argument| *argument != "--model=model").collect();
    arguments.extend(more);
    tweedie.run(&arguments)?.success()?;
    check_same_picture(&tweedie.path("x.png"), &golden().join("cases/sd15-ddim/expected.png"))
}

/// There is nothing to say of a family where the folder of configurations says all.
#[test]
fn one_file_and_back_draws_the_same() -> TestResult {
    let tweedie = model()?;
    tweedie.run(&["model", "convert", "model", "whole.safetensors"])?.success()?;
    run_with(&tweedie, &["--model=whole.safetensors", "--config=model"])?;
    let convert = ["model", "convert", "whole.safetensors", "back", "--config", "model", "--dtype", "f32"];
    tweedie.run(&convert)?.success()?;
    run_with(&tweedie, &["--model=back"])?;

    tweedie.run(&convert)?.fails(1, &["the output is back", "--force"])?;
    tweedie.run(&[&convert[..], &["--force"]].concat())?.success()?;
    tweedie
        .run(&["model", "convert", "back", "back", "--force"])?
        .fails(1, &["the output is back", "it is what the model is read from"])?;
    tweedie.run(&["model", "convert", "back", "x.ckpt"])?.fails(2, &["x.ckpt", "pickles", ".safetensors"])?;
    let q8 = |output| tweedie.run(&["model", "convert", "back", output, "--dtype", "q8_0"]);
    q8("x.safetensors")?.fails(2, &["x.safetensors", "q8_0 is a format of GGUF files", ".gguf"])?;
    q8("x")?.fails(2, &["q8_0 is a format of GGUF files"])?;
    q8("x.gguf")?.success()?;
    let info = tweedie.run(&["model", "info", "x.gguf", "--config", "model", "--json"])?.success()?.stdout;
    let info: Value = serde_json::from_str(&info)?;
    let unet = &info["components"][1];
    assert_eq!((&unet["name"], &unet["dtypes"]), (&json!("unet"), &json!(["f16", "f32", "q8_0"])));
    tweedie
        .run(&["model", "convert", "back", "whole.safetensors", "--config", "model"])?
        .fails(2, &["back is no file"])?;
    assert!(!tweedie.files()?.iter().any(|name| name.ends_with(".part")));

    let info = tweedie.run(&["model", "info", "whole.safetensors", "--config", "model"])?.success()?.stdout;
    let own = tweedie.run(&["model", "info", "model"])?.success()?.stdout;
    let total = |text: &str| text.lines().last().map(str::to_owned);
    assert_eq!(total(&info), total(&own));
    // Without configurations the family decides, and a model this small is of none.
    tweedie.run(&["model", "info", "whole.safetensors"])?.fails(1, &["channels", "--config"])
}

/// The model's own weights of the autoencoder are gone, so the picture is right only if another's are used.
#[test]
fn an_autoencoder_from_any_form() -> TestResult {
    let tweedie = model()?;
    copy_folder(&tweedie.path("model"), &tweedie.path("other"))?;
    tweedie.run(&["model", "convert", "other", "whole.safetensors"])?.success()?;
    std::fs::remove_file(tweedie.path("model/vae").join(UNET))?;
    let bytes = std::fs::read(tweedie.path("whole.safetensors"))?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?;
    let alone = tensors.iter().filter_map(|(name, view)| Some((name.strip_prefix("first_stage_model.")?, view)));
    std::fs::write(tweedie.path("alone.safetensors"), safetensors::serialize(alone, None)?)?;

    for vae in ["other", "other/vae", &format!("other/vae/{UNET}"), "whole.safetensors", "alone.safetensors"] {
        run_with(&tweedie, &["--model=model", "--vae", vae]).map_err(|e| format!("{vae}: {e}"))?;
    }
    let mut arguments = REQUEST.to_vec();
    arguments.extend(["--vae=alone.safetensors", "--json"]);
    let json = tweedie.run(&arguments)?.success()?.json()?;
    assert_eq!(json["settings"]["vae"], "alone");
    assert!(json["settings"]["weights_sha256"]["alone.safetensors"].is_string());
    tweedie.run(&[&REQUEST[..], &["--vae=nowhere"]].concat())?.fails(1, &["nowhere", "no such file or folder"])
}

/// A UNet alone on top of a model, in diffusers' names and in the original ones after any prefix. The model's own is gone, so
/// the picture is right only if the file's is used.
#[test]
fn a_network_alone_on_a_model() -> TestResult {
    let tweedie = model()?;
    tweedie.run(&["model", "convert", "model", "whole.safetensors"])?.success()?;
    let own = tweedie.path("model/unet").join(UNET);
    std::fs::rename(&own, tweedie.path("diffusers.safetensors"))?;
    let bytes = std::fs::read(tweedie.path("whole.safetensors"))?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?;
    for (name, prefix) in [("whole", "model.diffusion_model."), ("part", "diffusion_model."), ("bare", "")] {
        let alone = tensors.iter().filter_map(|(name, view)| {
            Some((format!("{prefix}{}", name.strip_prefix("model.diffusion_model.")?), view))
        });
        std::fs::write(tweedie.path(&format!("{name}-unet.safetensors")), safetensors::serialize(alone, None)?)?;
    }
    for file in ["diffusers", "whole-unet", "part-unet", "bare-unet"] {
        run_with(&tweedie, &[&format!("--model={file}.safetensors"), "--config=model"])
            .map_err(|e| format!("{file}: {e}"))?;
    }
    let mut arguments = REQUEST.to_vec();
    arguments[1] = "--model=diffusers.safetensors";
    tweedie.run(&arguments)?.fails(1, &["UNet of a diffusers folder alone", "--config"])?;
    arguments.extend(["--config=model", "--json"]);
    let settings = tweedie.run(&arguments)?.success()?.json()?["settings"].clone();
    let files: Vec<_> = settings["weights_sha256"].as_object().ok_or("no hashes")?.keys().cloned().collect();
    assert_eq!(files, ["text_encoder/model.safetensors", "diffusers.safetensors", &format!("vae/{UNET}")]);
    // It is no autoencoder, whose place the model's own would take.
    arguments.push("--vae=bare-unet.safetensors");
    tweedie.run(&arguments)?.fails(1, &["bare-unet.safetensors, a UNet", "no autoencoder"])?;
    Ok(())
}

/// An option says what the scheduler's file says wrongly.
#[test]
fn what_the_network_predicts_can_be_said() -> TestResult {
    let tweedie = model()?;
    let file = tweedie.path("model/scheduler/scheduler_config.json");
    let mut config = read_json(&file)?;
    config["prediction_type"] = "v_prediction".into();
    std::fs::write(&file, config.to_string())?;
    let draw = |more: &[&str]| -> TestResult<_> {
        tweedie.run(&[&REQUEST[..], more].concat())?.success()?;
        pixels(&tweedie.path("x.png"))
    };
    let wrong = draw(&[])?;
    draw(&["--prediction-type=epsilon"])?;
    check_same_picture(&tweedie.path("x.png"), &golden().join("cases/sd15-ddim/expected.png"))?;
    assert!(wrong != pixels(&tweedie.path("x.png"))? && wrong == draw(&["--prediction-type=v_prediction"])?);
    let info = tweedie.run(&["model", "info", "model"])?.success()?.stdout;
    assert!(info.contains("predicts    v_prediction\n"), "{info}");
    tweedie.run(&[&REQUEST[..], &["--prediction-type=velocity"]].concat())?.fails(2, &["velocity", "v_prediction"])
}

/// The tiny autoencoder as one file, whose configuration follows from it: in diffusers' names, in its author's, in those
/// of programs that put both halves into one file, and the decoder alone.
#[test]
fn a_tiny_autoencoder_from_one_file() -> TestResult {
    let tweedie = model()?;
    let folder = golden().join("models/taesd");
    let bytes = std::fs::read(folder.join(UNET))?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?;
    let write = |name: &str, rename: &dyn Fn(&str) -> Option<String>| -> TestResult {
        let renamed = tensors.iter().filter_map(|(name, view)| Some((rename(name)?, view)));
        Ok(std::fs::write(tweedie.path(name), safetensors::serialize(renamed, None)?)?)
    };
    // The decoder of the author's code starts with a clamp, which diffusers has outside the list.
    let shifted = |name: &str| {
        let (number, rest) = name.strip_prefix("decoder.layers.")?.split_once('.')?;
        Some(format!("{}.{rest}", number.parse::<usize>().ok()? + 1))
    };
    let both = |name: &str, of: &str| match shifted(name) {
        Some(name) => Some(format!("{of}decoder.{name}")),
        None => Some(format!("{of}{}", name.replace("encoder.layers.", "encoder."))),
    };
    write("diffusers.safetensors", &|name| Some(name.into()))?;
    write("author.safetensors", &|name| both(name, ""))?;
    write("taesd.safetensors", &|name| both(name, "taesd_"))?;
    write("decoder.safetensors", &shifted)?;
    let draw = |vae: &str| -> TestResult<_> {
        let mut arguments = REQUEST.to_vec();
        arguments.extend(["--vae", vae]);
        tweedie.run(&arguments)?.success().map_err(|e| format!("{vae}: {e}"))?;
        pixels(&tweedie.path("x.png"))
    };
    let expected = draw(&folder.to_string_lossy())?;
    for file in ["diffusers", "author", "taesd", "decoder"] {
        assert!(draw(&format!("{file}.safetensors"))? == expected, "{file}");
    }
    // Pictures are encoded too where there is an encoder.
    let arguments: Vec<&str> = REQUEST.iter().map(|a| if *a == "txt2img" { "img2img" } else { a }).collect();
    std::fs::copy(tweedie.path("x.png"), tweedie.path("photo.png"))?;
    let with = |vae| tweedie.run(&[&arguments[..], &["--image=photo.png", "--vae", vae]].concat());
    with("author.safetensors")?.success()?;
    let alone = with("decoder.safetensors")?;
    alone.fails(1, &["decoder.safetensors", "missing", "encoder.layers.0.weight"])
}

/// Image by image: what a file is called in a picture's settings, and that its hash is that of the file.
#[test]
fn a_picture_knows_its_one_file() -> TestResult {
    let tweedie = model()?;
    tweedie.run(&["model", "convert", "model", "whole.safetensors"])?.success()?;
    let arguments: Vec<&str> = REQUEST.iter().copied().filter(|argument| *argument != "--model=model").collect();
    let more = ["--model=whole.safetensors", "--config=model", "--json"];
    let settings = tweedie.run(&[&arguments[..], &more[..]].concat())?.success()?.json()?["settings"].clone();
    assert_eq!(settings["model"], "whole");
    let hashes = settings["weights_sha256"].as_object().ok_or("no hashes")?;
    assert_eq!(hashes.len(), 1, "one file is hashed once");
    let expected = ::tweedie::files::sha256(std::fs::File::open(tweedie.path("whole.safetensors"))?)?;
    assert_eq!(hashes["whole.safetensors"], expected.as_str());
    Ok(())
}
