//! The forms in which a model folder holds its weights.

mod tweedie;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use std::path::Path;
use tweedie::{TestResult, Tweedie, check_same_picture, copy_folder, golden};

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
